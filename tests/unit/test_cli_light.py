"""The front door is quick: help and lists need no heavy library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tunesmith.apps.cli.main import app
from tunesmith.run.catalogue import catalogue

COMMANDS = [
    *("plan", "inspect", "train", "resume", "evaluate", "compare", "chat", "export", "demo", "list", "soup", "import"),
    *("verse", "serve", "keys"),
]
GROUPED = [
    *(f"keys {name}" for name in ("add", "list", "remove")),
    *(f"adapter {name}" for name in ("show", "add", "extract", "convert")),
    *(f"verse {name}" for name in ("check", "scan", "rhyme", "pair", "clean", "dataset")),
]
TUNESMITH = Path(sys.executable).with_name("tunesmith")


def run(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([TUNESMITH, *words], capture_output=True, text=True, check=False, **options)


def test_help_is_there_at_once():
    """The best of five, in seconds of computing, whatever else the machine does: 0.1 where this was written."""
    seconds = []
    for _ in range(5):
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)

    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["verse", "--help"],
        ["verse", "clean", "--help"],
        ["list"],
        ["list", "settings"],
    ],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_heavy(words):
    code = f"""
import sys
from tunesmith.apps.cli import main
sys.argv = ["tunesmith", *{words}]
try:
    main()
except SystemExit:
    pass
heavy = ("torch", "transformers", "tokenizers", "peft", "datasets", "pyarrow", "accelerate", "sacrebleu", "rouge_score")
print([name for name in heavy if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.splitlines()[-1] == "[]"


def test_help_names_every_command():
    shown = run("--help").stdout

    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []


@pytest.mark.parametrize("command", [*COMMANDS, *GROUPED])
def test_every_command_says_what_it_does_and_what_each_option_is(command):
    group, _, inner = command.rpartition(" ")
    commands = typer.main.get_command(app).commands
    found = (commands[group].commands if group else commands)[inner]

    assert found.help.endswith(".")
    assert [parameter.name for parameter in found.params if not (parameter.help or "").endswith(".")] == []


def test_a_list_names_each_entry_with_what_it_is():
    shown = run("list")

    assert shown.returncode == 0
    assert [name for names in catalogue().values() for name in names if f"  {name} " not in shown.stdout] == []


def test_python_m_works_too():
    done = subprocess.run([sys.executable, "-m", "tunesmith", "--help"], capture_output=True, text=True, check=True)

    assert "Commands:" in done.stdout


def test_without_a_command_help_is_shown():
    done = run()

    assert "Commands:" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "trian"),
        (["train"], "RECIPE"),
        (["train", "--overwrit", "a.yaml"], "--overwrit"),
        (["export", "run"], "--to"),
        (["export", "run", "--to", "x", "--dtype", "int8"], "int8"),
        (["inspect", "a.yaml", "--records", "-1"], "--records"),
        (["inspect", "a.yaml", "--records", "many"], "--records"),
        (["evaluate", "run", "--answered", "-5"], "--answered"),
        (["chat", "run", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["chat", "run", "--temperature", "-1"], "--temperature"),
        (["chat", "run", "--device", "gpu"], "--device"),
        (["compare", "one"], "B"),
        (["list", "method"], "did you mean 'methods'?"),
    ],
    ids=" ".join,
)
def test_a_mistyped_command_line_is_exit_code_2_and_names_what_is_wrong(words, said):
    done = run(*words)

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr

"""The command line in careless hands: every mistake is one clear message and exit code 2, never a traceback."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.apps.cli import main

TUNESMITH = Path(sys.executable).with_name("tunesmith")
SETTINGS = """\
data: {{train: {train}, validation: {validation}, max_tokens: 160}}
method: {{type: lora, rank: 4}}
schedule: {{steps: 3, batch_size: 4, warmup: 0}}
evaluation: {{examples: 2, scores: [chrf], generation: {{max_new_tokens: 4}}}}
engine: {{device: cpu}}
"""


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, saved_model, data) -> Path:
    """A folder with a model, a base model without template, data, a recipe, a finished and a stopped run."""
    folder = tmp_path_factory.mktemp("工作 place")
    shutil.copytree(saved_model("qwen3"), folder / "model")
    shutil.copytree(saved_model("qwen3"), folder / "base", ignore=shutil.ignore_patterns("*.jinja"))
    shutil.copy(data[0], folder / "train.json")
    shutil.copy(data[1], folder / "validation.json")
    recipe = "model: model\n" + SETTINGS.format(train="train.json", validation="validation.json") + "output: run\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tunesmith", "train", "recipe.yaml"])
        with pytest.raises(SystemExit) as end:
            main()
    os.chdir(before)
    assert not end.value.code
    shutil.copytree(folder / "run", folder / "stopped", ignore=shutil.ignore_patterns("weights", "evaluation.json"))
    (folder / "broken").mkdir()
    (folder / "broken" / "note.txt").write_text("mine")
    (folder / "nothing").mkdir()
    return folder


class Ended:
    """How a command ended and what it wrote."""

    def __init__(self, code: object, captured) -> None:
        self.code, self.out, self.err = code or 0, captured.out, captured.err


@pytest.fixture
def tunesmith(workplace, monkeypatch, capsys):
    """Return a function that runs a command line in the workplace, in this process."""
    monkeypatch.chdir(workplace)

    def run(*words: str, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(end.value.code, capsys.readouterr())

    return run


# --- what goes wrong


MISTAKES = {
    # recipes
    "train resipe.yaml": "no such recipe: resipe.yaml (did you mean 'recipe.yaml'?)",
    "plan run": "run is a folder; give a recipe file (to go on with this run: tunesmith resume run)",
    "inspect nothing": "nothing is a folder; give a recipe file",
    "plan train.json": "train.json: a configuration is an object, name -> value",
    "train recipe.yaml seed=-1": "override 'seed=-1': seed: should be at least 0, found -1",
    "train recipe.yaml --epochs=3": "--epochs",
    "plan recipe.yaml schedule.epochs": "is not of the form setting=value",
    # models
    "train recipe.yaml model=modle": "no such folder: modle\n    hint: did you mean 'model'?",
    "train recipe.yaml model=./modle": "no such folder: ./modle",
    "train recipe.yaml model=nothing": "nothing holds no model: expected config.json or adapter_config.json",
    "train recipe.yaml model=train.json": "train.json is a file\n    hint: give the folder that holds config.json",
    "train recipe.yaml model=stopped": "stopped is a run without weights yet; finish it with: tunesmith resume stopped",
    "train recipe.yaml model=base output=new": "the tokenizer has no chat template (a base model?)",
    "train recipe.yaml model.revision=x model.path=": "needs exactly one of path and scratch",
    # data
    "train recipe.yaml data.train=trian.json": "no such file or folder: trian.json (did you mean 'train.json'?)",
    "train recipe.yaml data.train=nothing": "no data files in the folder nothing",
    "train recipe.yaml data.validation=nosuch.json": "no such file or folder: nosuch.json",
    "train recipe.yaml data.max_tokens=3 output=new": "nothing to learn: none of 24 conversations",
    "train recipe.yaml data.max_tokens=60 data.too_long=refuse output=new": "longer than data.max_tokens = 60",
    "train recipe.yaml stage=pretrain output=new": "pretrain learns plain text, but this row is a dialogue",
    # methods
    "train recipe.yaml method.rank=100000000 output=new": "method.rank: 100000000 is more than any matrix",
    "train recipe.yaml method.targets=foo_proj output=new": "'foo_proj' is a pattern that must match the whole name",
    "train recipe.yaml method=freeze method.last=9 output=new": "first + last = 9, but the model has 2 blocks",
    "train recipe.yaml engine.precision=float16 output=new": "float16 does not train on a CPU",
    "train recipe.yaml schedule.decay_arguments.foo=1 output=new": "decay_arguments.foo: cosine does not take it",
    # outputs
    "train recipe.yaml": "run already holds a run. Go on with it: tunesmith resume run; replace it: add --overwrite",
    "train recipe.yaml output=broken": "output: broken already holds other files; name a new folder",
    "train recipe.yaml output=broken --overwrite": "output: broken already holds other files; name a new folder",
    "train recipe.yaml output=.": "output: . already holds other files; name a new folder",
    "train recipe.yaml output=. --overwrite": "output: . already holds other files; name a new folder",
    "train recipe.yaml model=run output=run --overwrite": "output: run holds run, which this recipe reads",
    "train recipe.yaml output=train.json": "output: train.json is a file; name a folder",
    "train recipe.yaml output=train.json/run": "cannot write train.json/run: Not a directory",
    "train recipe.yaml output=/proc/nosuch": "cannot write /proc/nosuch: No such file or directory",
    # runs
    "resume run": "run is finished; to train further, start a new recipe with model: run",
    "resume nothing": "nothing is not a run's folder",
    "resume nosuch": "nosuch is not a run's folder",
    "resume recipe.yaml": "recipe.yaml is not a run's folder",
    # evaluation
    "evaluate nosuch": "no such folder: nosuch",
    "evaluate train.json": "train.json is a file",
    "evaluate nothing": "nothing holds no model",
    "evaluate stopped": "stopped is a run without weights yet",
    "evaluate model": "which data? name a file with --data",
    "evaluate run --data nosuch.json": "no such file or folder: nosuch.json",
    "evaluate run --data recipe.yaml": "recipe.yaml: files ending in .yaml are not known",
    "evaluate run --score blue": "unknown score 'blue' (did you mean 'bleu'?)",
    "evaluate run --output table.txt": "table.txt: the comparison is written as .html or .json",
    "evaluate run --output nothing": "nothing: the comparison is written as .html or .json",
    "evaluate run --output /proc/nosuch.json --answered 0": "cannot write /proc/nosuch.json",
    "compare run nosuch": "no such folder: nosuch",
    "compare nosuch run": "no such folder: nosuch",
    "evaluate run --device cuda": "device: cuda was asked for, but this machine has cpu",
    # export and chat
    "export run --to broken": "broken is not empty; name a new folder",
    "export run --to train.json": "train.json is a file; name a new folder",
    "export nosuch --to exported": "no such folder: nosuch",
    "export stopped --to exported": "stopped is a run without weights yet",
    "chat nosuch": "no such folder: nosuch",
    "chat recipe.yaml": "recipe.yaml is a file",
    "chat stopped --prompt hello": "stopped is a run without weights yet",
    "list nothing": "there is no list of 'nothing'; there are methods,",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(tunesmith, words):
    ended = tunesmith(*words.split())

    assert ended.code == 2
    assert MISTAKES[words] in ended.err
    assert "Traceback" not in ended.err
    assert ended.err.lower().count("error:") == 1


@pytest.mark.parametrize("prompt", ["", "   ", "\\n"])
def test_an_empty_prompt_is_refused(tunesmith, prompt):
    ended = tunesmith("chat", "run", "--prompt", prompt)

    assert (ended.code, ended.err) == (2, "error: the prompt is empty\n")


@pytest.mark.parametrize("words", [words for words in MISTAKES if "output=new" not in words])
def test_a_mistake_leaves_everything_as_it_was(tunesmith, workplace, words):
    before = contents(workplace)
    tunesmith(*words.split())

    assert contents(workplace) == before


def contents(folder: Path) -> dict[Path, int]:
    """Return when each file was written; a report is made anew from the rest of its run whenever somebody looks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "report.html"]
    return {path: path.stat().st_mtime_ns for path in files}


# --- what goes right


def test_a_run_says_where_its_report_is_and_what_comes_next(tunesmith, workplace):
    """Output that is no terminal is plain lines: no escape codes, no carriage returns."""
    ended = tunesmith("train", "recipe.yaml", "output=结果 1", "seed=1")

    assert ended.code == 0
    assert "step 3/3" in ended.out
    assert "report: 结果 1/report.html\ntalk to it: tunesmith chat '结果 1'\n" in ended.out
    assert "\x1b" not in ended.out
    assert "\r" not in ended.out
    assert (workplace / "结果 1" / "weights" / "adapter_model.safetensors").exists()


def test_overwriting_replaces_the_run_and_nothing_else(tunesmith, workplace):
    shutil.copytree(workplace / "run", workplace / "old")
    (workplace / "old" / "notes.txt").write_text("mine")
    (workplace / "old" / "checkpoints" / "step-99999999").mkdir()
    ended = tunesmith("train", "recipe.yaml", "output=old", "--overwrite")

    assert ended.code == 0
    assert not (workplace / "old" / "checkpoints" / "step-99999999").exists()
    assert (workplace / "old" / "notes.txt").read_text() == "mine"


def test_a_folder_without_results_is_taken_without_asking(tunesmith, workplace):
    """A run that failed before its first step holds nothing to lose."""
    (workplace / "failed").mkdir()
    for name in ("recipe.yaml", "plan.json"):
        shutil.copy(workplace / "run" / name, workplace / "failed")
    assert tunesmith("train", "recipe.yaml", "output=failed").code == 0


def test_a_stopped_run_goes_on(tunesmith, workplace):
    shutil.copytree(workplace / "stopped", workplace / "going on")
    recipe = (workplace / "going on" / "recipe.yaml").read_text("utf-8")
    (workplace / "going on" / "recipe.yaml").write_text(
        recipe.replace("output: run", "output: going on"), encoding="utf-8"
    )
    ended = tunesmith("resume", "going on")

    assert ended.code == 0
    assert (workplace / "going on" / "weights").is_dir()


def test_a_validation_file_that_was_trained_on_is_noticed(tunesmith):
    ended = tunesmith("plan", "recipe.yaml", "data.validation=train.json")

    assert ended.code == 0
    assert "24 of 24 validation conversations are also in the training data" in " ".join(ended.out.split())


def test_a_plan_without_validation_data_says_so(tunesmith):
    shown = tunesmith("plan", "recipe.yaml", "data.validation=[]", "evaluation.scores=[]").out
    (row,) = [line for line in shown.splitlines() if "evaluate every" in line]

    assert "—" in row
    assert "no validation data" in row


def test_a_plan_tells_once_that_answers_lose_their_end(tunesmith):
    changes = ("data.max_tokens=60", "data.validation=[]", "evaluation.scores=[]")
    notices = json.loads(tunesmith("plan", "recipe.yaml", *changes, "--json").out)["notices"]
    (notice,) = [notice for notice in notices if "data.too_long" in notice]

    assert "training answers lost their end at data.max_tokens = 60: raise it, or drop them" in notice


def test_a_plan_and_an_inspection_are_also_json(tunesmith):
    plan = json.loads(tunesmith("plan", "recipe.yaml", "--json").out)
    inspection = json.loads(tunesmith("inspect", "recipe.yaml", "--json", "--records", "1").out)

    assert plan["settled"]["steps"] == 3
    assert inspection["counts"]["train"]["examples"] == 24
    assert len(inspection["records"]) == 1


def test_an_inspection_marks_what_is_trained(tunesmith):
    ended = tunesmith("inspect", "recipe.yaml", "--records", "1")
    shown = ended.out.partition("\n\n")[0]
    trained = "".join(part.partition("]]")[0] for part in shown.split("[[")[1:])

    assert trained.replace("|", "") == "mist 0.<im_end>"


def test_a_run_is_evaluated_on_its_own_held_out_data(tunesmith, workplace):
    ended = tunesmith("evaluate", "run", "--answered", "2", "--max-new-tokens", "4", "--output", "evaluation.json")
    written = json.loads((workplace / "evaluation.json").read_text("utf-8"))

    assert ended.code == 0
    assert "held-out data of run" in ended.out
    assert written["examples"] == 6
    assert written["models"] == ["model"]
    assert len(written["rows"]) == 2


def test_two_models_are_compared_side_by_side(tunesmith, workplace):
    ended = tunesmith("compare", "model", "run", "--answered", "1", "--max-new-tokens", "4", "--output", "both.html")

    assert ended.code == 0
    assert "<html" in (workplace / "both.html").read_text("utf-8")


def test_json_output_is_nothing_but_json(tunesmith):
    found = json.loads(tunesmith("evaluate", "run", "--answered", "1", "--max-new-tokens", "2", "--json").out)

    assert found["examples"] == 6


def test_questions_can_be_piped_in(tunesmith):
    """A line that ends with a backslash goes on; what is no UTF-8 is replaced; an empty line asks nothing."""
    answer = tunesmith("chat", "run", "--max-new-tokens", "3", "--prompt", "one\\ntwo").out
    ended = tunesmith(
        "chat", "run", "--max-new-tokens", "3", stdin="one\\\ntwo\n\n/new\none\\\ntwo\n/what\n\udcff\n/quit\nnever\n"
    )

    assert ended.code == 0
    assert ended.out.startswith(answer + answer)
    assert "no such command: /what; there are /help, /new, /again, " in ended.out


def test_each_question_is_asked_after_all_that_was_said(tunesmith, monkeypatch):
    asked = []

    def answer(model, tokenizer, prompt, *rest, **options):
        asked.append(tokenizer.decode(prompt))
        yield f"answer {len(asked)}"

    monkeypatch.setattr("tunesmith.generation.sample.stream_answer", answer)
    ended = tunesmith("chat", "run", "--system", "Be kind.", stdin="one\ntwo\n/new\nthree\n")
    turn = "<|im_start|>{}\n{}<|im_end|>\n".format
    system, begin = turn("system", "Be kind."), "<|im_start|>assistant\n"

    assert ended.out == "answer 1\nanswer 2\nanswer 3\n"
    assert asked == [
        system + turn("user", "one") + begin,
        system + turn("user", "one") + turn("assistant", "answer 1") + turn("user", "two") + begin,
        system + turn("user", "three") + begin,
    ]


def test_input_that_ends_at_once_asks_nothing(tunesmith):
    ended = tunesmith("chat", "run", stdin="")

    assert (ended.code, ended.out) == (0, "")


def test_a_base_model_without_a_template_goes_on_with_the_text(tunesmith):
    assert tunesmith("chat", "base", "--prompt", "mist", "--max-new-tokens", "3").code == 0


def test_an_export_is_a_model_that_can_be_talked_to(tunesmith, workplace):
    ended = tunesmith("export", "run", "--to", "out/模型 1")

    assert ended.code == 0
    assert "tunesmith chat 'out/模型 1'" in ended.out
    assert (workplace / "out/模型 1" / "config.json").exists()
    asked = ["--prompt", "mist", "--max-new-tokens", "4"]
    assert tunesmith("chat", "out/模型 1", *asked).out == tunesmith("chat", "run", *asked).out


def test_windows_line_endings_change_nothing(tunesmith, workplace):
    (workplace / "windows.yaml").write_bytes((workplace / "recipe.yaml").read_bytes().replace(b"\n", b"\r\n"))

    assert tunesmith("plan", "windows.yaml", "--json").out == tunesmith("plan", "recipe.yaml", "--json").out


# --- what only a process of its own shows


def start(workplace: Path, *words: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [TUNESMITH, *words], cwd=workplace, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8"
    )


def wait_for(process: subprocess.Popen, text: str) -> str:
    """Return the output up to the line with *text*."""
    read = ""
    while text not in read:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        read += line
    return read


def test_ctrl_c_stops_a_run_after_its_step_and_says_how_to_go_on(workplace):
    process = start(
        workplace, "train", "recipe.yaml", "output=inter rupted", "schedule.steps=100000", "evaluation.every=50000"
    )
    wait_for(process, "step 1/")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "everything is saved. Go on with: " in out
    assert "tunesmith resume 'inter rupted'\n" in out
    assert "Traceback" not in err


def wait_until_idle(process) -> None:
    """Return when *process* has used no processor time for a second: it waits for somebody."""
    used, since = "", time.monotonic()
    while time.monotonic() - since < 1:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        if (now := f"{fields[11]} {fields[12]}") != used:
            used, since = now, time.monotonic()
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see that the program waits")
def test_ctrl_c_while_it_waits_is_no_traceback(workplace):
    """While modules are imported an interrupt can be lost in them; at the prompt it cannot."""
    process = start(workplace, "chat", "run")
    wait_until_idle(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate("", timeout=60)

    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in err


@pytest.mark.parametrize("words", ["list", "inspect recipe.yaml --records 24", "plan recipe.yaml --json"])
def test_a_reader_that_goes_away_is_no_traceback(workplace, words):
    process = start(workplace, *words.split())
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=60)

    assert err == ""


def test_a_full_disk_is_said(workplace):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([TUNESMITH, "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (2, "error: no space left on the device that is written to\n")

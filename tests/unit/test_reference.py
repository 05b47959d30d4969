"""The reference pages say what the code does; to write them again: python -m tunesmith.run.reference docs/reference."""

import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.recipe import Recipe
from tunesmith.run.catalogue import REGISTRIES, settings
from tunesmith.run.reference import reference_pages

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
NAMES = ["settings", "methods", "stages", "optimizers", "quantizations", "formats", "scores", "templates", "commands"]
NAMES += ["importing", "constraints", "cleaners", "verse-rules"]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference_pages()


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_up_to_date(pages, name):
    assert (FOLDER / f"{name}.md").read_text("utf-8") == pages[f"{name}.md"]


def test_there_are_no_other_pages(pages):
    by_other_hands = {"matrix.md", "architectures.md"}  # written by programs in bench that train
    found = {path.name for path in FOLDER.glob("*.md")} - by_other_hands

    assert found == set(pages) == {f"{name}.md" for name in NAMES}


def test_every_setting_and_plugin_has_its_place(pages):
    for path, _, _ in settings(Recipe):
        assert f"| `{path.rpartition('.')[2]}` |" in pages["settings.md"], path
    for kind, registry in REGISTRIES.items():
        for name in registry.names():
            assert f"\n## {name}\n" in pages[f"{kind}.md"], name


def test_every_row_of_a_table_has_as_many_cells_as_its_heading(pages):
    for text in pages.values():
        tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("| ")]
        for table in tables:
            assert {line.replace(r"\|", "").count("|") for line in table} == {table[0].count("|")}, table[0]


def test_the_command_writes_the_pages(tmp_path):
    command = [sys.executable, "-m", "tunesmith.run.reference"]
    subprocess.run([*command, str(tmp_path / "pages")], check=True)
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)

    assert {path.name for path in (tmp_path / "pages").iterdir()} == {f"{name}.md" for name in NAMES}
    assert (wrong.returncode, wrong.stderr) == (1, "usage: python -m tunesmith.run.reference FOLDER\n")

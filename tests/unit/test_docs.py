"""The pages: links lead somewhere, commands and settings exist, both languages show the same, code runs."""

import ast
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from tunesmith.apps.cli.main import app
from tunesmith.recipe.document import Document, read_document
from tunesmith.recipe.schema import Recipe
from tunesmith.run.catalogue import REGISTRIES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GUIDE = ROOT / "docs" / "guide"
TRANSLATED = [
    (ROOT / "README.md", ROOT / "README_zh.md"),
    *((page, GUIDE / "zh" / page.name) for page in sorted(GUIDE.glob("*.md"))),
]

WRONG_ON_PURPOSE = {"method.rnak=8"}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`\n]+)`")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(page, *languages):
    return [text for language, text in _BLOCK.findall(page.read_text("utf-8")) if language in languages]


def prose(page):
    return _BLOCK.sub("", page.read_text("utf-8"))


def without_comments(text):
    lines = (re.sub(r"(^|\s+)#\s.*$", "", line) for line in text.splitlines())
    return [line for line in lines if line.strip()]


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    """The words of each ``tunesmith …`` on a page, in blocks and in the text."""
    shown = [line.removeprefix("$ ") for block in blocks(page, "bash", "text") for line in block.splitlines()]
    for text in [*shown, *_INLINE.findall(prose(page).replace("\\|", "|"))]:
        called = re.match(r"(?:torchrun .* -m )?tunesmith ([a-z].*)", text)
        if called:
            words = shlex.split(called[1], comments=True)
            yield words[: words.index("--")] if "--" in words else words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_images_lead_to_files(page):
    local = [link for link in _LINK.findall(prose(page)) if not link.startswith(("http:", "https:"))]
    missing = []
    for link in local:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_in_the_text_exist(page):
    named = re.findall(r"\b(?:recipes|tests|src)/[\w/.-]*\w", page.read_text("utf-8"))

    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist_with_the_options_that_are_shown(page):
    known = typer.main.get_command(app).commands
    wrong = []
    for group in [name for name in known if hasattr(known[name], "commands")]:
        known = known | {f"{group} {name}": inner for name, inner in known[group].commands.items()}
    for name, *words in commands(page):
        if words and f"{name} {words[0]}" in known:
            name, words = f"{name} {words[0]}", words[1:]
        options = {option for parameter in known[name].params for option in parameter.opts} if name in known else set()
        if name not in known or not {w for w in words if w.startswith("--")} <= options:
            wrong.append((name, *words))

    assert wrong == []


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "6-extending"], ids=name_of)
def test_changes_on_a_command_line_are_settings(page):
    """The extending page is left out: it names plug-ins that its reader has yet to write."""
    for words in commands(page):
        recipe = {"model": "base", "data": {"train": [{"path": "data.jsonl"}]}, "output": "run"}
        document = Document(recipe, {(): "the page"})
        changes = [
            word
            for before, word in pairwise(words)
            if re.match(r"[a-z_.0-9]+=", word)
            and word not in WRONG_ON_PURPOSE
            and before not in ("--adapter", "--set", "--kinds")
            and words[0] != "serve"  # there they name adapters
        ]
        for change in changes:
            document.apply(change.replace("templates/letters.jinja", "alpaca"))

        assert document.problems == []
        Recipe.model_validate(document.values)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_recipes_that_are_shown_whole_can_be_read(page, tmp_path):
    for number, text in enumerate(blocks(page, "yaml")):
        if re.search("^model:", text, re.MULTILINE) and re.search("^output:", text, re.MULTILINE):
            path = tmp_path / f"{number}.yaml"
            path.write_text(text, encoding="utf-8")
            document = read_document(path)

            assert document.problems == []
            Recipe.model_validate(document.values)


@pytest.mark.parametrize(("english", "chinese"), TRANSLATED, ids=lambda page: page.name)
def test_both_languages_show_the_same(english, chinese):
    """Same blocks but for comments, same code in the text, same number of tables' rows."""
    expected, found = (_BLOCK.findall(page.read_text("utf-8")) for page in (english, chinese))

    assert [(kind, without_comments(text)) for kind, text in found] == [
        (kind, without_comments(text)) for kind, text in expected
    ]
    assert sorted(set(_INLINE.findall(prose(chinese)))) == sorted(set(_INLINE.findall(prose(english))))
    assert len(re.findall(r"^\|", prose(chinese), re.MULTILINE)) == len(
        re.findall(r"^\|", prose(english), re.MULTILINE)
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_that_is_shown_can_be_compiled(page):
    for text in blocks(page, "python"):
        ast.parse(text)


@pytest.mark.parametrize("kind", sorted(REGISTRIES))
def test_the_readme_says_what_there_is(kind):
    """A new method, stage, optimizer or format is named in what works today; scores and cleaners in the guide."""
    guides = {"scores": GUIDE / "5-using.md", "cleaners": GUIDE / "8-forms.md"}
    page = guides.get(kind, ROOT / "README.md")
    named = _INLINE.findall(prose(page))

    assert [name for name in REGISTRIES[kind].names() if name not in named] == []


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())

    assert [name_of(p) for p in pictures if p.stat().st_size > 300_000] == []
    assert [name_of(p) for p in pictures if not any(p.name in page.read_text("utf-8") for page in PAGES)] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160

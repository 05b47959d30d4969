"""Named templates for base models that have none: one Jinja file each in ``named/``.

The file begins with a comment: a line that says what it is, ``source:`` with where its form is from, and ``stop:`` with
the tokens that end a turn, one a line; ``eos`` stands for the tokenizer's own end token.  ``renders as:`` names a model
whose own template writes the same for plain conversations; ``(with a system message)`` or ``(without a system
message)`` behind it, that it does so for those only.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.registry import suggest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "named"
_COMMENT = re.compile(r"^\{#-?(.*?)-?#\}\n?", re.DOTALL)
_TOOL_BRANCH = re.compile(r"== 'tool' -%\}.*?\{%-", re.DOTALL)
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'")
# what tokenizers have as one token: <|im_end|>, <｜User｜>, <start_of_turn>, [INST], [|user|], ]~b]; not <<SYS>>
_MARK = re.compile(r"<[|｜][^<>|｜\n]+[|｜]?>|(?<!<)</?[\w:]+>(?!>)|\[/?[A-Za-z_]{3,}\]|\[\|\w+\|\]")


@dataclass(frozen=True)
class NamedTemplate:
    """A Jinja chat template and the tokens at which its turns end."""

    name: str
    jinja: str
    summary: str
    stop: tuple[str, ...]
    source: str = ""
    """Where its form is from."""
    renders_as: tuple[str, ...] = ()
    """Models whose own template writes the same for plain conversations."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What it writes around plain turns that is made to be one token, in the order in which it stands there."""
        written = "".join(f"{text}\n" for text in _LITERAL.findall(_TOOL_BRANCH.sub("", self.jinja)))
        stops = (token for token in self.stop if token != "eos")
        return tuple(dict.fromkeys([*_MARK.findall(written), *stops]))

    def missing_marks(self, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
        """Return the marks that are no tokens of *tokenizer*: it spells each with several."""
        nothing = (None, tokenizer.unk_token_id)
        return tuple(mark for mark in self.marks if tokenizer.convert_tokens_to_ids(mark) in nothing)


def template_names() -> list[str]:
    """Return the names of the templates that are shipped."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def check_template_name(name: str) -> str:
    """Return *name* if it is ``auto``, a named template or a file; raise ``ValueError`` with what there is."""
    names = ["auto", *template_names()]
    if name in names:
        return name
    if name.endswith(".jinja"):
        if Path(name).is_file():
            return name
        raise ValueError(f"no such file: {name}")
    raise ValueError(
        f"unknown template {name!r}{suggest(name, names)}; `tunesmith list templates` shows them all; or give the "
        "path of a .jinja file"
    )


def read_template(name: str) -> NamedTemplate:
    """Return the named template, or the one in the file *name*."""
    path = Path(name) if name.endswith(".jinja") else FOLDER / f"{name}.jinja"
    text = path.read_text(encoding="utf-8")
    comment = _COMMENT.match(text)
    head = comment.group(1).strip().splitlines() if comment else []
    return NamedTemplate(
        path.stem,
        text[comment.end() :] if comment else text,
        head[0].strip() if head else "",
        _said(head, "stop"),
        "; ".join(_said(head, "source")),
        _said(head, "renders as"),
    )


def _said(head: list[str], what: str) -> tuple[str, ...]:
    """Return what the lines of a comment that begin with *what* say."""
    begin = f"{what}:"
    return tuple(line.strip().removeprefix(begin).strip() for line in head if line.strip().startswith(begin))

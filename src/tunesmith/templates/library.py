"""Named templates for base models that have none: one Jinja file each in ``named/``.

The file begins with a comment: a line that says what it is, and ``stop:`` with the tokens that end a turn, one a line.
``eos`` stands for the tokenizer's own end token.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.registry import suggest

FOLDER = Path(__file__).parent / "named"
_COMMENT = re.compile(r"^\{#-?(.*?)-?#\}\n?", re.DOTALL)


@dataclass(frozen=True)
class NamedTemplate:
    """A Jinja chat template and the tokens at which its turns end."""

    name: str
    jinja: str
    summary: str
    stop: tuple[str, ...]


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
        f"unknown template {name!r}{suggest(name, names)}; have {', '.join(names)}, or the path of a .jinja file"
    )


def read_template(name: str) -> NamedTemplate:
    """Return the named template, or the one in the file *name*."""
    path = Path(name) if name.endswith(".jinja") else FOLDER / f"{name}.jinja"
    text = path.read_text(encoding="utf-8")
    comment = _COMMENT.match(text)
    head = comment.group(1).strip().splitlines() if comment else []
    stop = [line.strip().removeprefix("stop:").strip() for line in head if line.strip().startswith("stop:")]
    return NamedTemplate(
        path.stem, text[comment.end() :] if comment else text, head[0].strip() if head else "", tuple(stop)
    )

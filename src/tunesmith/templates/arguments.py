"""Arguments of a chat template, written into it so that whoever renders with it later does the same."""

from __future__ import annotations

import json
import re
from typing import Any

import jinja2
import jinja2.meta

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest

# what rendering always gives a template, and functions that transformers adds
_GIVEN = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "raise_exception",
    "strftime_now",
    "bos_token",
    "eos_token",
}
_FIXED = "{{%- if {0} is not defined %}}{{% set {0} = {1} %}}{{% endif -%}}"
_IS_FIXED = re.compile(r"\{%- if (\w+) is not defined %\}\{% set \1 = .*?%\}\{% endif -%\}")


def fix_arguments(template: str, arguments: dict[str, Any]) -> str:
    """Return *template* with *arguments* for whoever does not say otherwise.

    Raises :class:`UserError` for arguments that it does not take.
    """
    used = find_arguments(template)
    for name in arguments:
        if name not in used:
            known = sorted(used - _GIVEN)
            hint = suggest(name, known) or f"; it has {', '.join(known)}" if known else "; it has none"
            raise UserError(f"template.arguments.{name}: the template has no such argument{hint}")
    return "".join(_FIXED.format(name, _literal(value)) for name, value in arguments.items()) + template


def free_arguments(template: str) -> set[str]:
    """Return the arguments of *template* that nobody has fixed."""
    fixed = set()
    rest = template
    while found := _IS_FIXED.match(rest):
        fixed.add(found[1])
        rest = rest[found.end() :]
    return find_arguments(rest) - fixed


def settable_arguments(template: str) -> set[str]:
    """Return the arguments of *template* that a request may give: free ones, and none that rendering gives."""
    return free_arguments(template) - _GIVEN


def find_arguments(template: str) -> set[str]:
    """Return the names that a template is given; raise :class:`UserError` where it is no template."""
    # transformers adds these two tags to Jinja; they name nothing
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"template: line {error.lineno} of it cannot be read: {error.message}") from None
    return jinja2.meta.find_undeclared_variables(tree)


def _literal(value: Any) -> str:
    """Write a value of a recipe as Jinja does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)

"""JSON schema: the answer is JSON, and of the shape that a schema describes."""

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from tunesmith.core.errors import Problem, UserError
from tunesmith.core.registry import is_missing
from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import EMPTY, Score, Scorer

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_SHOWN = 3


def _read(wanted: Any) -> Any:
    """Return the schema itself, read from its file where *wanted* names one; raise ``ValueError`` for none."""
    if isinstance(wanted, str):
        path = Path(wanted).expanduser()
        try:
            wanted = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(wanted, dict):
            raise ValueError(f"{path} holds a {type(wanted).__name__}; a schema is an object")
    return wanted


class JsonSchema(Scorer):
    """Give 1 to valid JSON; each place that the schema refuses halves it, and what is no JSON earns nothing.

    By the package jsonschema, in the draft that the schema names.  The JSON may stand in a fenced block.
    """

    wanted: Annotated[dict[str, Any] | str, AfterValidator(_read)]
    """The schema, written here or as the path of a ``.json`` file; ``{}`` asks for any JSON."""

    fenced: bool = True
    """Whether the JSON may stand in a fenced block among other text; false asks for nothing but JSON."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield that jsonschema is missing, or what is wrong with the schema."""
        if is_missing("jsonschema"):
            yield Problem(self.path_in(recipe), "needs jsonschema", hint="pip install jsonschema")
            return
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for

        try:
            validator_for(self.wanted).check_schema(self.wanted)
        except SchemaError as error:
            yield Problem(f"{self.path_in(recipe)}.wanted", f"no schema: {error.json_path}: {error.message}")

    def score(self, conversation: Conversation, answer: str) -> Score:  # noqa: ARG002
        """Return the score and the first places that do not fit."""
        if not answer.strip():
            return EMPTY
        blocks = _FENCED.findall(answer) if self.fenced else []
        try:
            value = json.loads(blocks[-1] if blocks else answer)
        except (ValueError, RecursionError) as error:
            return Score(0.0, f"not JSON: {error}")
        errors = sorted(self._validator.iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
        shown = "; ".join(f"{error.json_path}: {error.message}"[:120] for error in errors[:_SHOWN])
        return Score(2.0 ** -len(errors), shown or "valid")

    @cached_property
    def _validator(self) -> Any:
        if is_missing("jsonschema"):
            raise UserError("the score json_schema needs jsonschema: pip install jsonschema")
        from jsonschema.validators import validator_for

        return validator_for(self.wanted)(self.wanted)

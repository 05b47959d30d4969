"""What the server refuses, in OpenAI's form: a sentence, the field, a code, and the status it goes out with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest
from tunesmith.generation import requests as engine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RefusedError(UserError):
    """A request that is not answered, or not to its end: *status* is HTTP's, *param* the field that is at fault."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code
        self.headers = dict(headers or {})

    def as_data(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return error_data(str(self), self.status, self.param, self.code)


def error_data(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object for any HTTP *status*."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(error: UserError, param: str | None = None) -> RefusedError:
    """Return what the engine, or a part of ours, has against a request as what the server answers."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, engine.QueueFullError):
        wait = {"Retry-After": str(max(1, math.ceil(error.wait_seconds)))}
        return RefusedError(str(error), status=429, code="queue_full", headers=wait)
    if isinstance(error, engine.ContextTooLongError):
        return RefusedError(str(error), param, code="context_length_exceeded")
    if isinstance(error, engine.UnknownAdapterError):
        return RefusedError(str(error), "model", status=404, code="model_not_found")
    if isinstance(error, engine.EngineClosedError):
        return RefusedError("the server is ending", status=503, code="shutting_down", headers={"Retry-After": "5"})
    return RefusedError(str(error), param)


def from_problems(problems: Sequence[Mapping[str, Any]], body: Any, known: Iterable[str] = ()) -> RefusedError:
    """Return pydantic's *problems* with *body* as one refusal: every problem in its words, the first one's field.

    *known* are the fields that there are, for what may have been meant by one that there is not.
    """
    found: dict[str, str] = {}
    for problem in problems:
        place, message = _place_and_message(problem, body)
        found.setdefault(place, _sentence(problem, place, message, known))
    places = list(found)
    return RefusedError("; ".join(found.values()), places[0] or None if places else None, code=_code(problems))


def _place_and_message(problem: Mapping[str, Any], body: Any) -> tuple[str, str]:
    """Return ``messages[0].content`` for a location, and what is wrong there.

    The names of unions' branches in the location are no places; our own rules name the field that they are about.
    """
    message = str(problem["msg"])
    if "place" in (context := problem.get("ctx") or {}):
        return str(context["place"]), message
    written, here = "", body
    *way, last = problem["loc"] or ("",)
    for step in way:
        if isinstance(here, dict) and step in here:
            written, here = f"{written}.{step}", here[step]
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            written, here = f"{written}[{step}]", here[step]
    if isinstance(here, dict) and (last in here or problem["type"] == "missing"):
        written += f".{last}"
    elif isinstance(here, list) and isinstance(last, int):
        written += f"[{last}]"
    if problem["type"] == "value_error":
        name, colon, rest = message.removeprefix("Value error, ").partition(": ")
        if colon and name.isidentifier():
            return f"{written}.{name}".lstrip("."), rest
    return written.lstrip("."), message.removeprefix("Value error, ")


def _sentence(problem: Mapping[str, Any], place: str, message: str, known: Iterable[str]) -> str:
    kind = problem["type"]
    if kind == "json_invalid":
        return f"the body is no JSON: {(problem.get('ctx') or {}).get('error', message)}"
    if kind == "extra_forbidden":
        name = place.rpartition(".")[2]
        return f"{place}: no such field{suggest(name, known)}; what is not known is refused, not ignored"
    if kind == "missing":
        return f"{place or 'the body'}: is missing"
    given = problem.get("input")
    shown = f", found {given!r}" if isinstance(given, str | int | float) and len(repr(given)) < 60 else ""
    text = message[:1].lower() + message[1:]
    return f"{place}: {text}{shown}" if place else f"{text}{shown}"


def _code(problems: Sequence[Mapping[str, Any]]) -> str | None:
    kinds = {problem["type"] for problem in problems[:1]}
    names = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
    return next((names[kind] for kind in kinds if kind in names), "invalid_value" if kinds else None)

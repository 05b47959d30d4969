"""Answers of a model behind an OpenAI-compatible address: vLLM, Ollama, llama.cpp, a service, or our own server."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest
from tunesmith.core.settings import KEY_VARIABLE, api_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from http.client import HTTPResponse

    from tunesmith.data.conversation import Message
    from tunesmith.generation.settings import Generation

_SECONDS = 600.0
_TRIES = 4
# settings that OpenAI's API has by the same name, and those that vLLM and others have added; sent where they say
# something
_SAME = ("top_p", "presence_penalty", "frequency_penalty", "seed")
_ADDED = ("top_k", "min_p", "typical_p", "repetition_penalty")
_NOT_THERE = ("num_beams", "best_of", "log_probabilities")


class AddressRefusesError(UserError):
    """An address has answered that it will not; *status* is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def is_address(model: str) -> bool:
    """Say whether *model* is an address rather than a folder or a name on a hub."""
    return model.startswith(("http://", "https://"))


@dataclass(frozen=True)
class RemoteModel:
    """One model behind an address; the key is ``TUNESMITH_API_KEY``, and is in no message."""

    url: str
    """Ends before ``/chat/completions``, as in ``http://localhost:8000/v1``."""
    name: str

    @classmethod
    def find(cls, address: str) -> RemoteModel:
        """Return the model at *address*, ``URL#NAME``; without a name the only one that is there.

        Raises :class:`UserError` where nobody answers, or has no such model.
        """
        url, _, name = address.partition("#")
        url = url.rstrip("/")
        if not _host(url):
            raise UserError(f"{address} is no address; write one such as http://localhost:8000/v1#NAME")
        found = [str(each.get("id")) for each in ask(f"{url}/models").get("data", [])]
        if not name and len(found) != 1:
            raise UserError(f"which model? {url} has {', '.join(found) or 'none'}; name one as {url}#NAME")
        if name and name not in found:
            raise UserError(f"{url} has no model {name!r}{suggest(name, found)}; it has {', '.join(found) or 'none'}")
        return cls(url, name or found[0])

    def answer(self, messages: Sequence[Message], settings: Generation, tools: Sequence[Any] = ()) -> Mapping[str, Any]:
        """Return the message that answers *messages*, as the API gives it: ``content``, perhaps ``tool_calls``."""
        return dict(self.reply(messages, settings, tools)["choices"][0]["message"])

    def reply(
        self, messages: Sequence[Message], settings: Generation, tools: Sequence[Any] = (), **more: Any
    ) -> Mapping[str, Any]:
        """Return all that the API says to *messages*; *more* are fields of the request, such as ``logprobs``."""
        found = ask(f"{self.url}/chat/completions", {**self._body(messages, settings, tools), **more})
        try:
            found["choices"][0]["message"]
        except (LookupError, TypeError):
            raise UserError(f"{self.url} gave no answer: {json.dumps(found, ensure_ascii=False)[:200]}") from None
        return found

    def stream(self, messages: Sequence[Message], settings: Generation) -> Iterator[str]:
        """Yield the text of the answer to *messages* as it comes."""
        url, body = f"{self.url}/chat/completions", {**self._body(messages, settings, ()), "stream": True}
        with _told_plainly(url), _send(url, body) as lines:
            for line in lines:
                field, _, data = line.decode("utf-8", "replace").partition(":")
                if field == "data" and data.strip() not in ("", "[DONE]"):
                    choices = json.loads(data).get("choices") or [{}]
                    yield choices[0].get("delta", {}).get("content") or ""

    def _body(self, messages: Sequence[Message], settings: Generation, tools: Sequence[Any]) -> dict[str, Any]:
        usual = type(settings)()
        if asked := [name for name in _NOT_THERE if getattr(settings, name) != getattr(usual, name)]:
            raise UserError(f"{asked[0]}: an answer from {self.url} cannot have it; leave it out")
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [message.as_template_input() for message in messages],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
        }
        body |= {n: getattr(settings, n) for n in (*_SAME, *_ADDED) if getattr(settings, n) != getattr(usual, n)}
        if settings.stop:
            body["stop"] = list(settings.stop)
        if tools:
            body["tools"] = list(tools)
        if settings.constraint is not None:
            constraint = settings.constraint.model_dump()
            if constraint["type"] == "json_schema":
                schema = constraint["json_schema"]
                schema = json.loads(schema) if isinstance(schema, str) else schema
                body["response_format"] = {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": schema, "strict": True},
                }
            else:  # our own server's; others refuse it in so many words
                body["constraint"] = constraint
        return body


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def tell(url: str, body: Mapping[str, Any], variable: str = KEY_VARIABLE) -> bytes:
    """Return what *url* answers to *body*, whatever it is; *variable* holds the key.

    Raises :class:`AddressRefusesError`, and :class:`UserError` where nobody answers.
    """
    with _told_plainly(url), _send(url, body, variable) as answer:
        return answer.read()


def ask(url: str, body: Mapping[str, Any] | None = None, variable: str = KEY_VARIABLE) -> dict[str, Any]:
    """Return the JSON that *url* answers; raise as :func:`tell` does."""
    with _told_plainly(url), _send(url, body, variable) as answer:
        found = answer.read()
    try:
        return dict(json.loads(found))
    except (ValueError, TypeError):
        raise UserError(f"{url} answered no JSON: is it the address before /chat/completions?") from None


def _send(url: str, body: Mapping[str, Any] | None, variable: str = KEY_VARIABLE) -> HTTPResponse:
    """Return the response of *url*, to be read; try again where it is busy."""
    request = Request(url, None if body is None else json.dumps(body).encode(), {"content-type": "application/json"})
    if key := api_key(variable):
        request.add_unredirected_header("authorization", f"Bearer {key}")  # not for whoever it may send us on to
    for turn in range(_TRIES):
        try:
            return cast("HTTPResponse", urlopen(request, timeout=_SECONDS))
        except HTTPError as error:
            if error.code not in (429, 503) or turn == _TRIES - 1:
                raise AddressRefusesError(_refusal(url, error, variable), error.code) from None
            wait = error.headers.get("retry-after") or ""
            time.sleep(min(float(wait), 60.0) if wait.isdigit() else 2.0**turn)
    raise AssertionError("the last try returns or raises")


def _refusal(url: str, found: HTTPError, variable: str) -> str:
    """Return what the server says is wrong."""
    try:
        said = json.loads(found.read())
    except ValueError:
        said = {}
    error = said.get("error", said) if isinstance(said, dict) else said
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    hint = f"; set {variable} to the key of this address" if found.code in (401, 403) else ""
    return f"{url} refuses ({found.code}): {message or found.reason}{hint}"


@contextmanager
def _told_plainly(url: str) -> Iterator[None]:
    """Turn what keeps *url* from answering into a :class:`UserError`."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise UserError(f"no answer from {url}: {getattr(error, 'reason', None) or error}") from error

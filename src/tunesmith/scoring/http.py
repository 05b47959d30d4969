"""HTTP: a score from an endpoint of your own, such as a judge or a reward model that is served elsewhere."""

import json
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from pydantic import AfterValidator, Field

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Conversation
from tunesmith.scoring._base import Score, Scorer
from tunesmith.scoring._given import as_score

# of an answer that is no score, and in an error
_SHOWN = 200
_LARGEST = 1 << 20


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url!r} should be an address such as http://127.0.0.1:8000/score")
    return url


class Http(Scorer):
    """POST ``{"messages": [...], "answer": "…", "reference": "…"}`` as JSON, and read ``{"score": 0.5, "why": "…"}``.

    A plain number will do as well.  Every answer is sent to the address that you name, and nowhere else.
    """

    url: Annotated[str, AfterValidator(_check_url)]
    """Where to send each answer: http or https, this machine (127.0.0.1) or any other."""

    timeout: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Seconds to wait for each answer's score."""

    headers: dict[str, str] = {}
    """Sent with each request, such as ``Authorization``; they are written into the run's recipe.yaml as they stand."""

    def score(self, conversation: Conversation, answer: str) -> Score:
        """Return what the endpoint gives; raise :class:`UserError` where there is none, or no score comes back."""
        messages = [{"role": message.role, "content": message.content} for message in conversation.prompt()]
        asked = {"messages": messages, "answer": answer, "reference": conversation.reference()}
        body = json.dumps(asked, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        # the scheme was checked: no file is read this way
        request = Request(self.url, body, headers, method="POST")
        try:
            with _opener(self.url).open(request, timeout=self.timeout) as reply:
                text = reply.read(_LARGEST).decode("utf-8", "replace")
        except HTTPError as error:
            said = error.read(_LARGEST).decode("utf-8", "replace")[:_SHOWN]
            raise UserError(f"{self.url} answered {error.code} {error.reason}: {said}") from error
        except TimeoutError as error:
            raise UserError(f"{self.url} gave no score within {self.timeout:g} seconds (timeout)") from error
        except URLError as error:
            raise UserError(f"{self.url} cannot be reached: {error.reason}") from error
        return as_score(_value_in(text, self.url), self.url)


def _opener(url: str) -> OpenerDirector:
    """Return what opens *url*: through the machine's proxy, unless the address is this machine itself."""
    host = urlsplit(url).hostname or ""
    here = host in ("localhost", "::1") or host.startswith("127.")
    return build_opener(ProxyHandler({})) if here else build_opener()


def _value_in(text: str, url: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{url} gave no JSON but {text[:_SHOWN]!r}") from error
    if isinstance(value, dict) and "score" in value:
        return (value["score"], value["why"]) if value.get("why") else value["score"]
    return value

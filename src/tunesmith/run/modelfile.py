"""Ollama's Modelfile: the chat template in Go's language, for templates that only put text around each message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.templates.chat import ChatTemplate

_SYSTEM, _USER, _ANSWER, _AGAIN, _MORE = "one ocean", "two rivers", "three lakes", "four brooks", "five wells"


@dataclass(frozen=True)
class Around:
    """What a template writes around messages, found by rendering some, and true of others."""

    begin: str
    system: tuple[str, str]
    """Before and after; empty where the template takes no system prompt."""
    user: tuple[str, str]
    answer: tuple[str, str]
    default_system: str = ""
    takes_system: bool = True
    joined: bool = False
    """Whether a system prompt stands in the turn of the user who follows (Gemma), whose own beginning it has."""

    def render(self, messages: Sequence[Message]) -> str:
        """Return *messages*, and the beginning of an answer, as the template does if this is all it does."""
        text, own = self.begin, list(messages)
        if self.default_system and own[0].role != "system":
            own.insert(0, Message("system", self.default_system))
        for index, message in enumerate(own):
            before, after = {"system": self.system, "user": self.user, "assistant": self.answer}[message.role]
            within = self.joined and index and own[index - 1].role == "system"
            text += ("" if within else before) + message.content + after
        return text + self.answer[0]


def find_around(template: ChatTemplate) -> Around:
    """Return what *template* writes around messages; raise :class:`UserError` for one that does more than that."""
    user, answer = Message("user", _USER), Message("assistant", _ANSWER)
    again, more, system = Message("user", _AGAIN), Message("assistant", _MORE), Message("system", _SYSTEM)
    if "strftime" in str(template.tokenizer.chat_template):
        raise UserError("Modelfile: the chat template writes today's date, which a Modelfile cannot")
    try:
        alone = template.render([user], prompt=True)
        closed = template.render([user], prompt=False)
        talk = template.render([user, answer, again], prompt=True)
        before_user, _, after_user = alone.partition(_USER)
        between = talk.partition(_ANSWER)[2].partition(_AGAIN)[0]
        answer_before = alone[len(closed) :] if alone.startswith(closed) else after_user
        user_after = after_user.removesuffix(answer_before)
    except ValueError as error:
        raise UserError(f"Modelfile: {error}") from None
    try:
        told: str | None = template.render([system, user], prompt=True)
    except ValueError:
        told = None
    if told is not None and (_SYSTEM not in told or told.index(_SYSTEM) > told.index(_USER)):
        told = None
    heads, joined = [before_user, between], False
    if told is not None:
        joined = told.partition(_SYSTEM)[0] == before_user
        heads += [] if joined else [told.partition(_SYSTEM)[2].partition(_USER)[0]]
    shortest = min(heads, key=len)
    user_before = next(
        shortest[at:] for at in range(len(shortest) + 1) if all(head.endswith(shortest[at:]) for head in heads)
    )
    begin, default = before_user.removesuffix(user_before), ""
    system_around = ("", "")
    if told is not None:
        head, after = told.partition(_SYSTEM)[0], told.partition(_SYSTEM)[2].partition(_USER)[0]
        after = after if joined else after.removesuffix(user_before)
        if head.startswith(begin):
            system_around = (head.removeprefix(begin), after)
        else:  # a system prompt of its own, which ours takes the place of
            system_around = (head, after)
            default, begin = begin.removeprefix(head).removesuffix(after), ""
    found = Around(
        begin,
        system_around,
        (user_before, user_after),
        (answer_before, between.removesuffix(user_before)),
        default,
        told is not None,
        joined,
    )
    trials = [[user], [user, answer, again], [user, answer, again, more, user]]
    trials += [[system, *each] for each in trials] if told else []
    if not all(_renders_as(template, found, messages) for messages in trials):
        raise UserError(
            "Modelfile: the chat template does more than put text around messages, so it is not translated; "
            "llama.cpp's server reads the template in the file itself (--jinja)"
        )
    return found


def _renders_as(template: ChatTemplate, found: Around, messages: list[Message]) -> bool:
    try:
        return found.render(messages) == template.render(messages, prompt=True)
    except ValueError:
        return False


def write_modelfile(template: ChatTemplate, source: str, *, begins: bool) -> str:
    """Return a Modelfile for the model at *source*; where text *begins* with a token anyway the template leaves it out.

    Raises :class:`UserError` for a template that cannot be translated.
    """
    if not template.has_chat:
        raise UserError("Modelfile: the model has no chat template")
    around = find_around(template)
    begin, token = around.begin, template.tokenizer.bos_token
    if begins and isinstance(token, str):
        begin = begin.removeprefix(token)
    parts = [begin, *around.system, *around.user, *around.answer, around.default_system]
    if any(mark in part for part in parts for mark in ("{{", "}}", '"""')):
        raise UserError("Modelfile: the chat template writes marks that Go's templates, or the Modelfile, read")
    cases = [("system", around.system)] if around.takes_system else []
    cases += [("user", around.user), ("assistant", around.answer)]
    alone = "{{ if not (and $.System (eq $i 1)) }}" + around.user[0] + "{{ end }}"
    openings = {"user": alone if around.joined else around.user[0]}
    body = " else ".join(
        f'{{{{ if eq .Role "{role}" }}}}{openings.get(role, before)}{{{{ .Content }}}}{after}{{{{'
        for role, (before, after) in cases
    ).replace("{{ else {{ if", "{{ else if")
    last = '{{ if and (eq (len (slice $.Messages $i)) 1) (ne .Role "assistant") }}' + around.answer[0] + "{{ end }}"
    told = [] if around.takes_system else ["# this model has no system prompt; one that is given is left out"]
    lines = [
        *told,
        f"FROM {source}",
        f'TEMPLATE """{begin}{{{{ range $i, $_ := .Messages }}}}{body} end }}}}{last}{{{{ end }}}}"""',
    ]
    lines += [f'SYSTEM """{around.default_system}"""'] if around.default_system else []
    lines += [f'PARAMETER stop "{stop}"' for stop in template.stops if '"' not in stop]
    return "\n".join(lines) + "\n"

"""What a model wrote, taken apart: reasoning, content and tool calls, at once or as it is written.

Nothing here raises for what a model writes: a call that cannot be read stays content, and what is written while the
reasoning is open is reasoning, calls included.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunesmith.templates.tool_calls import ToolCall, ToolCallForm

REASONING_MARKS = (
    ("<think>", "</think>"),
    ("<mm:think>", "</mm:think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""What begins and what ends the reasoning, by family."""

# a call can be complete only after one of these: until one comes, there is no use in reading it again
_CLOSERS = frozenset(">]})`")


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the reasoning or of the content."""

    kind: Literal["reasoning", "content"]
    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A tool call, the *index*-th of the answer: all of it, as soon as it is complete."""

    index: int
    call: ToolCall

    def as_openai(self) -> list[dict[str, Any]]:
        """Return the ``delta.tool_calls`` entries of OpenAI's stream: the name, then the arguments as JSON text."""
        function = self.call.as_openai()["function"]
        opened: dict[str, Any] = {"index": self.index, "type": "function"}
        if self.call.id is not None:
            opened["id"] = self.call.id
        return [
            {**opened, "function": {"name": function["name"], "arguments": ""}},
            {"index": self.index, "function": {"arguments": function["arguments"]}},
        ]


Delta = TextDelta | CallDelta


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer: what was said, thought, and called."""

    content: str
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()


def read_reply(
    text: str,
    form: ToolCallForm | None = None,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    prompt: str = "",
    control: Sequence[str] = (),
) -> Reply:
    """Return what *text*, an answer without its end token, says and calls.

    The text must hold its control tokens (``skip_special_tokens=False``): they are the marks of many forms.  *tools*
    tell the types of arguments where a form writes them as plain text; *prompt* tells whether reasoning is open;
    *control* are tokens that are never content.
    """
    reader = ReplyReader(form, tools, prompt, control)
    reader.feed(text)
    reader.finish()
    return reader.reply


def split_reasoning(text: str, prompt: str = "") -> tuple[str | None, str]:
    """Return the reasoning that *text* begins with (or that *prompt* has opened), None without it, and the rest."""
    reply = read_reply(text, prompt=prompt)
    return reply.reasoning, reply.content


def open_reasoning(prompt: str) -> str | None:
    """Return the mark that closes the reasoning which the end of *prompt* has opened; None where it opens none."""
    return next((closing for opening, closing in REASONING_MARKS if prompt.rstrip().endswith(opening.rstrip())), None)


@dataclass
class _Writer:
    """Content on its way out: without white space at its ends, and without what stands around calls."""

    said: bool = False
    held: str = ""
    """White space and wrappers: content if content follows, nothing if a call does."""
    gap: bool = False
    """Right after a call."""

    def text(self, piece: str) -> str:
        """Return what can be said for sure when *piece* is content."""
        body = piece.rstrip()
        if not body.strip():
            self.hold(piece)
            return ""
        before = self.held
        if self.gap or not (self.said or before.strip()):
            body = body.lstrip()
            before = "\n" if self.said else ""
        elif not self.said:
            before = before.lstrip()
        self.said, self.gap, self.held = True, False, piece[len(piece.rstrip()) :]
        return before + body

    def hold(self, piece: str) -> None:
        if not self.gap:
            self.held += piece

    def call(self) -> None:
        self.gap, self.held = True, ""

    def finish(self) -> str:
        """Return what was held and turned out to be content: wrappers without a call."""
        rest, self.held = self.held.strip(), ""
        return self.text(rest) if rest else ""


@dataclass
class ReplyReader:
    """Reads an answer piece by piece; however it is cut, the deltas together are the same.

    Content is passed on as soon as it cannot be the beginning of a call, a call when it is complete.
    """

    form: ToolCallForm | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    prompt: str = ""
    control: Sequence[str] = ()
    """Tokens that are never content, such as a tokenizer's special ones; those that are marks remain marks."""
    _text: str = field(default="", init=False)
    _stage: Literal["start", "reasoning", "answer"] = field(default="start", init=False)
    _closing: str = field(default="", init=False)
    _waiting: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        closing = open_reasoning(self.prompt)
        if closing is not None:
            self._stage, self._closing = "reasoning", closing
        self._thoughts, self._answer = _Writer(), _Writer()
        self._parts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self._calls: list[ToolCall] = []
        self._schemas = _schemas(self.tools)
        form = self.form
        self._wrappers = form.wrappers if form else ()
        marks = form.marks if form else ()
        self._silent = ({*self.control} | {*(form.silent if form else ())}) - {*marks, *self._wrappers}
        # the longest first: <|start|>assistant begins other marks
        self._literals = sorted({*marks, *self._wrappers, *self._silent}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._literals)) or r"(?!)")

    @property
    def reply(self) -> Reply:
        """What was read so far."""
        return Reply("".join(self._parts["content"]), "".join(self._parts["reasoning"]) or None, tuple(self._calls))

    def feed(self, delta: str) -> list[Delta]:
        """Return what *delta*, the text that was written next, has made certain."""
        self._text += delta
        if self._waiting and not _CLOSERS & set(delta):
            return []
        return self._read(final=False)

    def finish(self) -> list[Delta]:
        """Return what was held back; no more text comes."""
        return self._read(final=True)

    def _read(self, *, final: bool) -> list[Delta]:
        out: list[Delta] = []
        if self._stage == "start":
            self._begin(final=final)
        if self._stage == "reasoning":
            out += self._think(final=final)
        if self._stage == "answer":
            self._waiting = False
            while (found := self._step(final=final)) is not None:
                out += found
            if final:
                out += self._say(self._answer.finish())
        return out

    def _begin(self, *, final: bool) -> None:
        """Find out whether the answer begins with reasoning."""
        text = self._text.lstrip()
        for opening, closing in REASONING_MARKS:
            if text.startswith(opening):
                self._stage, self._closing, self._text = "reasoning", closing, text[len(opening) :]
                return
            if text.startswith(closing):  # the prompt did not say so, but it was open, or is empty
                self._stage, self._text = "answer", text[len(closing) :]
                return
        if final or not any(mark.startswith(text) for pair in REASONING_MARKS for mark in pair):
            self._stage = "answer"

    def _think(self, *, final: bool) -> list[Delta]:
        before, closed, after = self._text.partition(self._closing)
        if closed:
            self._stage, self._text = "answer", after
        else:
            keep = 0 if final else _held(before, (self._closing, *self.control))
            self._text = before[len(before) - keep :]
            before = before[: len(before) - keep]
        for token in self.control:
            before = before.replace(token, "")
        return self._say(self._thoughts.text(before), "reasoning")

    def _step(self, *, final: bool) -> list[Delta] | None:
        """Return what the next piece of the answer is, and drop it from the text; None where more text is needed."""
        text = self._text
        if not text:
            return None
        place, mark = self._next_mark(text)
        if not mark:
            keep = 0 if final else _held(text, self._literals)
            self._text = text[len(text) - keep :]
            return self._say(self._answer.text(text[: len(text) - keep])) if keep < len(text) else None
        if place:
            self._text = text[place:]
            return self._say(self._answer.text(text[:place]))
        if not final and any(each != mark and each.startswith(text) for each in self._literals):
            return None
        if mark in self._silent or mark in self._wrappers:
            self._text = text[len(mark) :]
            if mark in self._wrappers:
                self._answer.hold(mark)
            return []
        return self._call(text, mark, final=final)

    def _next_mark(self, text: str) -> tuple[int, str]:
        """Return where the next mark stands, and the mark; an empty one where there is none."""
        begin = len(text) - len(text.lstrip())
        if self.form and not self._answer.said and not self._answer.held.strip():
            for mark in self.form.first_marks:
                if text.startswith(mark, begin):
                    return begin, mark
        found = self._pattern.search(text)
        return (found.start(), found.group()) if found else (0, "")

    def _call(self, text: str, mark: str, *, final: bool) -> list[Delta] | None:
        assert self.form is not None
        block = self.form.read(text, 0, self._schemas, final=final)
        if block is None and not final:
            self._waiting = True
            return None
        if block is None or not block.calls:
            end = block.end if block else len(mark)
            self._text = text[end:]
            return self._say(self._answer.text(text[:end]))
        self._answer.call()
        self._text = text[block.end :]
        first = len(self._calls)
        self._calls += block.calls
        return [CallDelta(first + number, call) for number, call in enumerate(block.calls)]

    def _say(self, text: str, kind: Literal["reasoning", "content"] = "content") -> list[Delta]:
        if not text:
            return []
        self._parts[kind].append(text)
        return [TextDelta(kind, text)]


def _held(text: str, literals: Sequence[str]) -> int:
    """Return how many characters at the end of *text* may be the beginning of one of *literals*."""
    longest = min(max(map(len, literals), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(each.startswith(text[-n:]) for each in literals)), 0)


def _schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the parameters' schemas of each tool, OpenAI's or bare; what is none is passed over."""
    out: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        parameters = function.get("parameters") if isinstance(function, dict) else None
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        if isinstance(properties, dict):
            known = {key: schema for key, schema in properties.items() if isinstance(schema, dict)}
            out[str(function.get("name"))] = known
    return out


def same_calls(one: Sequence[ToolCall], other: Sequence[ToolCall]) -> bool:
    """Say whether both are the same calls in the same order, whatever their ids; ``1`` is not ``true``."""

    def written(calls: Sequence[ToolCall]) -> list[tuple[str, str]]:
        return [(call.name, json.dumps(call.arguments, sort_keys=True)) for call in calls]

    return written(one) == written(other)

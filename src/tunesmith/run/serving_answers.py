"""What the model wrote, as OpenAI's API says it: choices, deltas of a stream, log-probabilities, usage."""

from __future__ import annotations

import secrets
import time
from codecs import getincrementaldecoder
from typing import TYPE_CHECKING, Any, Protocol

from tunesmith.core.errors import UserError
from tunesmith.generation.requests import FinishReason, Piece
from tunesmith.generation.vocabulary import Vocabulary
from tunesmith.run.serving_errors import RefusedError
from tunesmith.templates.replies import CallDelta, TextDelta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.generation.requests import TokenLogProbability
    from tunesmith.templates.replies import Delta, ReplyReader

# as vLLM has it: JSON has no infinity
_LEAST_LOG_PROBABILITY = -9999.0


class Speller:
    """Tokens as texts and bytes, for log-probabilities."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        try:
            self._spellings: Sequence[bytes] = Vocabulary.of(tokenizer).spellings
        except UserError:  # its bytes cannot be told: then texts are what it decodes
            self._spellings = ()

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that *token* writes; control tokens as they are called."""
        spelling = self._spellings[token] if token < len(self._spellings) else b""
        return spelling or str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()

    def text_of(self, token: int) -> str:
        r"""Return *token* as text; part of a character as OpenAI writes it, such as ``bytes:\xe6\x98``."""
        spelling = self.bytes_of(token)
        try:
            return spelling.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)


def _plain(log_probability: float) -> float:
    return max(log_probability, _LEAST_LOG_PROBABILITY)


class Writer(Protocol):
    """Turns the pieces of one reply into one choice of an answer."""

    done: bool
    """Whether the answer is complete although the model would go on."""

    def begin(self) -> list[dict[str, Any]]:
        """Return the choices of a stream's first chunks."""
        ...

    def feed(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the choices of the chunks that *piece* makes."""
        ...

    def choice(self) -> dict[str, Any]:
        """Return the whole choice, for an answer in one."""
        ...


class ChatWriter:
    """A reply as a message: content, reasoning, calls.

    An answer that is made to call begins with *before* and ends with *after*, which the model does not write.
    """

    def __init__(
        self, index: int, reader: ReplyReader, speller: Speller | None, *, one_call: bool, before: str, after: str
    ) -> None:
        self._index, self._reader, self._speller, self._one_call = index, reader, speller, one_call
        self._before, self._after = before, after
        self._calls: list[dict[str, Any]] = []
        self._log_probabilities: list[dict[str, Any]] = []
        self._finish: str | None = None
        self.done = False

    def begin(self) -> list[dict[str, Any]]:
        """Return the chunk that says whose message it is."""
        opened = [self._chunk({"role": "assistant", "content": ""})]
        return opened + self._chunks(self._reader.feed(self._before) if self._before else [])

    def feed(self, piece: Piece) -> list[dict[str, Any]]:
        """Return what *piece* makes certain, as chunks."""
        if self.done:
            return []
        deltas = self._reader.feed(piece.text) if piece.text else []
        if piece.finish_reason is not None:
            if self._after and piece.finish_reason == "stop":
                deltas += self._reader.feed(self._after)
            deltas += self._reader.finish()
        told = self._tell(piece.log_probabilities)
        chunks = self._chunks(deltas)
        if told:
            if not chunks:
                chunks = [self._chunk({"content": ""})]
            chunks[0]["logprobs"] = {"content": told, "refusal": None}
        if self.done or piece.finish_reason is not None:
            self._finish = self._reason(piece.finish_reason)
            chunks.append(self._chunk({}, self._finish))
        return chunks

    def choice(self) -> dict[str, Any]:
        """Return the message."""
        reply = self._reader.reply
        message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
        if reply.reasoning is not None:
            message["reasoning_content"] = reply.reasoning
        if self._calls:
            message |= {"content": reply.content or None, "tool_calls": self._calls}
        told = {"content": self._log_probabilities, "refusal": None} if self._speller else None
        return {"index": self._index, "message": message, "logprobs": told, "finish_reason": self._finish}

    def _reason(self, reason: FinishReason | None) -> str:
        if reason == "length" and not self.done:
            return "length"
        return "tool_calls" if self._calls else "stop"

    def _chunks(self, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
        chunks = []
        for delta in deltas:
            if isinstance(delta, TextDelta):
                chunks.append(self._chunk({_FIELDS[delta.kind]: delta.text}))
                continue
            if self.done:
                break
            chunks += [self._chunk({"tool_calls": [each]}) for each in self._call(delta)]
            self.done = self._one_call
        return chunks

    def _call(self, delta: CallDelta) -> list[dict[str, Any]]:
        """Return the entries of a call, which gets an id of its own: what templates write as one may be any text."""
        entries = delta.as_openai()
        name = f"call_{secrets.token_hex(12)}"
        entries[0]["id"] = name
        self._calls.append({**delta.call.as_openai(), "id": name})
        return entries

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": finish}

    def _tell(self, found: Sequence[TokenLogProbability]) -> list[dict[str, Any]]:
        if self._speller is None:
            return []
        told = [
            {
                **self._told(each.token, each.log_probability),
                "top_logprobs": [self._told(other.token, other.log_probability) for other in each.alternatives],
            }
            for each in found
        ]
        self._log_probabilities += told
        return told

    def _told(self, token: int, log_probability: float) -> dict[str, Any]:
        assert self._speller is not None
        spelling = self._speller.bytes_of(token)
        return {"token": self._speller.text_of(token), "logprob": _plain(log_probability), "bytes": list(spelling)}


_FIELDS = {"content": "content", "reasoning": "reasoning_content"}


class TextWriter:
    """A reply as text that goes on with a prompt."""

    def __init__(self, index: int, speller: Speller | None, echo: str, prompt: Sequence[int] | None = None) -> None:
        """Begin with *echo*; with the tokens of the *prompt* given, tell them and those of the answer."""
        self._index, self._speller, self._echo, self._prompt = index, speller, echo, prompt
        self._text = ""
        self._ids: list[int] = []
        self._told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        self._characters, self._offset = getincrementaldecoder("utf-8")("replace"), 0
        self._finish: str | None = None
        self.done = False

    def begin(self) -> list[dict[str, Any]]:
        """Return the prompt, where the answer begins with it."""
        return self._chunk(self._echo) if self._echo else []

    def feed(self, piece: Piece) -> list[dict[str, Any]]:
        """Return *piece* as a chunk."""
        if piece.finish_reason is not None:
            self._finish = "length" if piece.finish_reason == "length" else "stop"
        end = () if piece.end is None or self._prompt is None else (piece.end,)
        self._ids += [*piece.tokens, *(each.token for each in end)]
        told = self._tell((*piece.log_probabilities, *end)) if self._speller else None
        if not piece.text and piece.finish_reason is None and not (told and told["tokens"]):
            return []
        return self._chunk(piece.text, told, self._finish)

    def choice(self) -> dict[str, Any]:
        """Return the text."""
        told = self._told if self._speller else None
        choice = {"index": self._index, "text": self._text, "logprobs": told, "finish_reason": self._finish}
        ids = {} if self._prompt is None else {"token_ids": self._ids, "prompt_token_ids": list(self._prompt)}
        return {**choice, **ids}

    def _chunk(self, text: str, told: Any = None, finish: str | None = None) -> list[dict[str, Any]]:
        self._text += text
        return [{"index": self._index, "text": text, "logprobs": told, "finish_reason": finish}]

    def _tell(self, found: Sequence[TokenLogProbability]) -> dict[str, list[Any]]:
        assert self._speller is not None
        new: dict[str, list[Any]] = {name: [] for name in self._told}
        for each in found:
            text = self._speller.text_of(each.token)
            alternatives = {self._speller.text_of(a.token): _plain(a.log_probability) for a in each.alternatives}
            new["tokens"].append(text)
            new["token_logprobs"].append(_plain(each.log_probability))
            new["top_logprobs"].append({text: _plain(each.log_probability), **alternatives})
            new["text_offset"].append(self._offset)
            self._offset += len(self._characters.decode(self._speller.bytes_of(each.token)))
        for name, values in new.items():
            self._told[name] += values
        return new


class Answer:
    """All choices of an answer: its chunks as they come, and its whole body."""

    last_event = "[DONE]"
    """What a stream ends with, after its chunks."""

    def __init__(self, model: str, writers: Sequence[Writer], *, chat: bool, tells_usage: bool) -> None:
        self._writers = writers
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"}
        self._whole, self._part = (
            ("chat.completion", "chat.completion.chunk") if chat else ("text_completion", "text_completion")
        )
        self._tail = {"created": int(time.time()), "model": model}
        self._tells_usage = tells_usage

    def begin(self) -> list[dict[str, Any]]:
        """Return the first chunks of a stream."""
        return [self._chunk(choice) for writer in self._writers for choice in writer.begin()]

    def feed(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks that *piece* of the choice *index* makes; raise :class:`RefusedError` for one cut off."""
        check_whole(piece, self._writers[index])
        return [self._chunk(choice) for choice in self._writers[index].feed(piece)]

    def error(self, refused: RefusedError) -> dict[str, Any]:
        """Return the event that says why the answer was cut off."""
        return refused.as_data()

    def is_done(self, index: int) -> bool:
        """Say whether the choice *index* needs no more pieces."""
        return self._writers[index].done

    def end(self, prompt_tokens: int, completion_tokens: int) -> list[dict[str, Any]]:
        """Return a stream's last chunk, where it tells usage."""
        usage = _usage(prompt_tokens, completion_tokens)
        chunk = {**self._head, "object": self._part, **self._tail, "choices": [], "usage": usage}
        return [chunk] if self._tells_usage else []

    def body(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [writer.choice() for writer in self._writers]
        usage = _usage(prompt_tokens, completion_tokens)
        return {**self._head, "object": self._whole, **self._tail, "choices": choices, "usage": usage}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self._tells_usage else {}
        return {**self._head, "object": self._part, **self._tail, "choices": [choice], **usage}


def check_whole(piece: Piece, writer: Writer) -> None:
    """Raise :class:`RefusedError` where *piece* says that an answer was cut off before *writer* had all it needs."""
    if piece.finish_reason in _CUT and not writer.done:
        message, status = _CUT[piece.finish_reason]
        raise RefusedError(message, status=status, code=piece.finish_reason, headers={"x-should-retry": "false"})


_CUT = {
    "timeout": ("the answer took longer than the server allows; ask for fewer tokens (max_tokens)", 504),
    "cancelled": ("the answer was cut off: the server is ending", 503),
    "error": ("the answer could not be finished; the server's log says why", 500),
}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}

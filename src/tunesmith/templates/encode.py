"""Texts to token ids: prompts, what goes on after them, and control tokens that somebody only wrote about.

A control token inside a message is text: whoever writes ``<|im_end|>`` does not end a turn.  Such places are marked
before the template is rendered (:meth:`Encoder.mark`) and encoded without the tokenizer's added tokens afterwards, as
transformers does for ``apply_chat_template(..., sanitize_control_tokens=True)``.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.templates.replies import REASONING_MARKS
from tunesmith.templates.tool_calls import TOOL_CALL_FORMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.conversation import Conversation, Message

# noncharacters of Unicode: they stand in no text, and no template looks for them
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
# as a template writes them that spells letters beyond ASCII as JSON does
_ESCAPED_OPEN, _ESCAPED_CLOSE = json.dumps(_OPEN)[1:-1], json.dumps(_CLOSE)[1:-1]

# control characters, white space in a row, and letters of several bytes: what tokenizers change, if they do
_LOSSLESS_PROBE = "a  b\n\n c\tD. 春风 é 🙂 </x>\n"


class Encoder:
    """A tokenizer, and the control tokens of which the template has the only say."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> None:
        """Find the control tokens: those that the tokenizer calls special, and those that end a turn."""
        self.tokenizer = tokenizer
        self.stops = [str(token) for token in tokenizer.convert_ids_to_tokens(list(stop_ids))]
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        control = sorted({*special, *self.stops} - {""}, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, control)) or "(?!)")
        opened, closed = (
            f"(?:{raw}|{re.escape(escaped)})" for raw, escaped in ((_OPEN, _ESCAPED_OPEN), (_CLOSE, _ESCAPED_CLOSE))
        )
        self._marked = re.compile(f"{opened}({self._control.pattern}){closed}")
        self._stop_ids = tuple(stop_ids)
        newline, alone, together = self.encode(["\n", "a", "\na"])
        self._newline = newline
        # SentencePiece puts a space before whatever it is given; after a line break it puts none
        self._lead = "" if together == newline + alone else "\n"
        probe = _LOSSLESS_PROBE + "".join(self.stops[:1]) + _LOSSLESS_PROBE  # some add a space after control tokens
        self.is_lossless = self.decode(self.encode([probe])) == [probe]
        """Whether ids can be decoded to the text they were made of."""

    # --- control tokens inside messages

    def mark(self, conversations: Sequence[Conversation]) -> Sequence[Conversation]:
        """Return *conversations* with every control token inside them marked as text."""
        written = "\0".join(m.content for c in conversations for m in c.messages)
        rest = [(m.reasoning, m.tool_calls, c.tools) for c in conversations for m in c.messages if _says_more(c, m)]
        if not self._control.search(written) and not self._control.search(repr(rest) if rest else ""):
            return conversations
        return [
            replace(each, messages=tuple(self.mark_messages(each.messages)), tools=tuple(self._mark(each.tools)))
            for each in conversations
        ]

    def mark_messages(self, messages: Iterable[Message]) -> list[Message]:
        """Return *messages* with every control token inside them marked.

        An answer as the model wrote it, with marks of reasoning or of calls, keeps those that do not end a turn.
        """
        return [
            replace(
                each,
                content=self._mark(each.content, each.role == "assistant"),
                reasoning=self._mark(each.reasoning),
                tool_calls=tuple(self._mark(each.tool_calls)),
                parts=tuple(self._mark(part, each.role == "assistant") for part in each.parts),
            )
            for each in messages
        ]

    def _mark(self, value: Any, answers: bool = False) -> Any:
        if isinstance(value, str):
            own = answers and any(token in _own_marks() for token in self._control.findall(value))
            return self._control.sub(
                lambda found: found[0] if own and found[0] not in self.stops else _wrap(found[0]), value
            )
        if isinstance(value, dict):
            return {key: self._mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(item) for item in value]
        return value

    def unmark(self, text: str) -> str:
        """Return *text* as its writer wrote it."""
        return self._marked.sub(r"\1", text) if _is_marked(text) else text

    def hide(self, text: str) -> str:
        """Return *text*, as long as it was, with blanks for the control tokens that somebody only wrote about."""
        return self._marked.sub(lambda found: " " * len(found[0]), text) if _is_marked(text) else text

    def check_spelling(self, text: str) -> None:
        """Raise ``ValueError`` where *text* names a control token that this tokenizer cannot read as text."""
        if _is_marked(text):
            for token in set(self._marked.findall(text)):
                self._encode_as_text(token)

    # --- ids

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts; the template wrote every special token, so none is added."""
        if not texts:
            return []
        if any(map(_is_marked, texts)):
            return [self._encode_pieces(text, after=False)[0] for text in texts]
        return list(self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"])

    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts that go on after another one."""
        if any(map(_is_marked, texts)):
            return [self._encode_pieces(text, after=True)[0] for text in texts]
        skipped = len(self._newline) if self._lead else 0
        return [ids[skipped:] for ids in self.encode([self._lead + text for text in texts])]

    def starts(self, text: str, *, after: bool) -> list[int]:
        """Return where in *text* each of its tokens begins, in characters; *after* as :meth:`encode_after` reads it.

        Raises :class:`UserError` where the tokenizer cannot tell.
        """
        if not self.tokenizer.is_fast:
            raise UserError(
                "parts of a turn cannot have weights of their own: the tokenizer, a Python program, does not say which "
                "token stands for which part of a text; use stage: sft as it is"
            )
        return self._encode_pieces(text, after=after)[1]

    def _encode_pieces(self, text: str, *, after: bool) -> tuple[list[int], list[int]]:
        """Return the ids of *text* and where each begins; *after* where it goes on after another."""
        ids: list[int] = []
        starts: list[int] = []
        at = 0
        for found in (*self._marked.finditer(text), None):
            piece = text[at : found.start() if found else None]
            plain, begins = self._encode_piece(piece, self._lead if after or at else "")
            ids += plain
            starts += [at + begin for begin in begins]
            if found:
                spelt = self._encode_as_text(found[1])
                ids += spelt
                starts += [found.start()] * len(spelt)
                at = found.end()
        return ids, starts

    def _encode_piece(self, piece: str, lead: str) -> tuple[list[int], list[int]]:
        if not piece:
            return [], []
        fast = self.tokenizer.is_fast
        found = self.tokenizer(lead + piece, add_special_tokens=False, return_offsets_mapping=fast)
        skipped = len(self._newline) if lead else 0
        ids = list(found["input_ids"])[skipped:]
        begins = (
            [max(0, begin - len(lead)) for begin, _ in found["offset_mapping"][skipped:]] if fast else [0] * len(ids)
        )
        return ids, begins

    def _encode_as_text(self, token: str) -> list[int]:
        """Return the ids that spell *token*; raise ``ValueError`` where the tokenizer has no spelling for it."""
        ids = self._spell("\n" + token)
        newline = self._newline
        ids = ids[len(newline) :] if ids[: len(newline)] == newline else self._spell(token)
        if not ids or self.tokenizer.convert_tokens_to_ids(token) in ids:
            raise ValueError(f"a text holds {token!r}, which this tokenizer can only read as the control token")
        return ids

    def _spell(self, text: str) -> list[int]:
        if not self.tokenizer.is_fast:
            return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        # what the tokenizer does, without the first step: looking for added tokens
        steps = self.tokenizer.backend_tokenizer
        if steps.normalizer is not None:
            text = steps.normalizer.normalize_str(text)
        words = [text]
        if steps.pre_tokenizer is not None:
            words = [word for word, _ in steps.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in steps.model.tokenize(word)]

    def decode(self, sequences: list[list[int]]) -> list[str]:
        """Return the texts of token ids, control tokens and all."""
        if self.tokenizer.is_fast:  # the wrapper looks at each id before it decodes them
            return list(self.tokenizer.backend_tokenizer.decode_batch(sequences, skip_special_tokens=False))
        return list(self.tokenizer.batch_decode(sequences, skip_special_tokens=False))


def _says_more(conversation: Conversation, message: Message) -> bool:
    return bool(message.reasoning or message.tool_calls or conversation.tools)


def _is_marked(text: str) -> bool:
    return _OPEN in text or _ESCAPED_OPEN in text


def _wrap(token: str) -> str:
    return f"{_OPEN}{token}{_CLOSE}"


@cache
def _own_marks() -> frozenset[str]:
    """Return what a model writes around its reasoning and its calls."""
    forms = [TOOL_CALL_FORMS.get(name) for name in TOOL_CALL_FORMS.names()]
    marks = [mark for form in forms for mark in (*form.marks, *form.wrappers, *form.silent)]
    return frozenset(mark.strip() for pair in (*REASONING_MARKS, marks) for mark in pair)

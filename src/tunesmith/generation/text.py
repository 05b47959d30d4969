"""Text from tokens as they come: no half characters, no part of a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_INCOMPLETE = "\ufffd"
# a character has at most four bytes: where more are unreadable after so many tokens, no character is in the making
_LONGEST_CHARACTER, _MOST_WAITING = 4, 16


class TextStream:
    """Decodes one answer token by token; what it gives joins to what the tokenizer makes of all tokens."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), *, keep_control: bool = False) -> None:
        """End the text before the first of *stops*; *keep_control* leaves control tokens in it."""
        self.stop: str | None = None
        """The stop string that was found; nothing more comes then."""
        self._tokenizer, self._stops, self._keep_control = tokenizer, stops, keep_control
        # how a token is written may depend on the one before it, so the last complete ones are decoded again
        self._before: list[int] = []
        self._waiting: list[int] = []
        self._given = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Return the text that *token* completes; it may be empty."""
        if self.stop is not None:
            return ""
        self._waiting.append(token)
        text = self._decode([*self._before, *self._waiting])
        whole = text.rstrip(_INCOMPLETE)
        if len(self._waiting) > _MOST_WAITING and len(text) - len(whole) > _LONGEST_CHARACTER:
            whole = text
        new, self._given = whole[self._given :], max(self._given, len(whole))
        if new and len(whole) == len(text):
            self._before, self._waiting = self._waiting, []
            self._given = len(self._decode(self._before))
        return self._until_stop(new)

    def finish(self) -> str:
        """Return what was still held back, as no more tokens come."""
        if self.stop is not None:
            return ""
        text = self._until_stop(self._decode([*self._before, *self._waiting])[self._given :])
        if self.stop is None:
            text, self._held = text + self._held, ""
        return text

    def _decode(self, tokens: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                tokens, skip_special_tokens=not self._keep_control, clean_up_tokenization_spaces=False
            )
        )

    def _until_stop(self, new: str) -> str:
        """Return what of the text held back and *new* can be given: all that is no part, or beginning, of a stop."""
        if not self._stops:
            return new
        text = self._held + new
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, self.stop = min(found, key=lambda each: (each[0], -len(each[1])))
            return text[:place]
        longest = max(map(len, self._stops)) - 1
        for start in range(max(0, len(text) - longest), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                self._held = text[start:]
                return text[:start]
        self._held = ""
        return text


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Return *text* before the first of *stops* in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]

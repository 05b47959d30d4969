"""Chat: a dialogue with a model, rendered exactly as training rendered it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Message
from tunesmith.generation.settings import Generation
from tunesmith.run.evaluate import load_contestant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.run.evaluate import Contestant


@dataclass
class Talk:
    """A model and what was said so far."""

    contestant: Contestant
    system: str | None
    generation: Generation
    said: list[Message] = field(default_factory=list)

    @classmethod
    def load(cls, model: str, system: str | None, generation: Generation, device: str) -> Self:
        """Load *model*; raise :class:`UserError` where it cannot be."""
        contestant = load_contestant(model, device)
        contestant.model.eval()
        return cls(contestant, system, generation)

    def forget(self) -> None:
        """Begin a new dialogue."""
        self.said.clear()

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer to *text* piece by piece, and remember both; raise :class:`UserError` for an empty one."""
        if not text.strip():
            raise UserError("the prompt is empty")
        from tunesmith.generation.sample import stream_answer

        template = self.contestant.template
        question = Message("user", text)
        if template.has_chat:
            opening = [Message("system", self.system)] if self.system else []
            prompt = template.prompt([*opening, *self.said, question])
        else:  # a base model without a template goes on with the text
            prompt = template.encode([text])[0]
        answer = []
        pieces = stream_answer(
            self.contestant.model,
            template.tokenizer,
            prompt,
            self.generation,
            stop_ids=template.stop_ids,
        )
        for piece in pieces:
            answer.append(piece)
            yield piece
        self.said += [question, Message("assistant", "".join(answer))]

"""Judge a model behind an OpenAI-compatible address: its answers are scored, its loss cannot be known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.data.conversation import call_as_text
from tunesmith.run.evaluate import Judged

if TYPE_CHECKING:
    from tunesmith.data.conversation import Conversation
    from tunesmith.generation.remote import RemoteModel
    from tunesmith.run.evaluate import Questions
    from tunesmith.stages import Stage


@dataclass(frozen=True)
class RemoteContestant:
    """A model that is asked by HTTP; its server renders the template."""

    remote: RemoteModel

    def judge(self, questions: Questions, stage: Stage, progress: Listener = ignore) -> Judged:  # noqa: ARG002
        """Return answers to the first of the questions, ``batch_size`` asked at once, and no loss.

        Raises :class:`UserError` for plain texts, which nobody asks.
        """
        asked = list(questions.conversations[: questions.answered])
        if any(conversation.text is not None for conversation in asked):
            raise UserError(f"{self.remote.url} can be asked questions only, and the data is plain text")
        answers: list[str] = []
        with ThreadPoolExecutor(questions.generation.batch_size) as pool:
            for answer in pool.map(lambda conversation: self._answer(conversation, questions), asked):
                answers.append(answer)
                progress({"kind": "progress", "task": "answers", "done": len(answers), "total": len(asked)})
        return Judged(None, answers)

    def _answer(self, conversation: Conversation, questions: Questions) -> str:
        """Return an answer as other models' are compared: its content, and a line of JSON for each call."""
        settings = questions.generation
        if settings.temperature and settings.seed is None:
            settings = settings.model_copy(update={"seed": questions.seed})
        message = self.remote.answer(conversation.prompt(), settings, conversation.tools)
        calls = [call_as_text(call) for call in message.get("tool_calls") or ()]
        return "\n".join([*filter(None, [str(message.get("content") or "").strip()]), *calls])

"""Process reward model: a judgement at the end of each step of an answer (arXiv:2305.20050)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import DataError
from tunesmith.models.heads import Head
from tunesmith.stages._base import Example, Loss
from tunesmith.stages._heads import AbstractHead, in_order, joined
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.pack import Pack
    from tunesmith.templates.chat import ChatTemplate


class ProcessReward(AbstractHead):
    """Learn whether each step is right, by cross-entropy over all steps of an optimizer step.

    Each step is cut into tokens by itself, followed by the separator, so that its end is a token of its own; the head
    reads there.  The result is a model that transformers loads for token classification, with two classes.
    """

    step_separator: str = "\n"
    """What stands after each step; its last token is where the step is judged."""

    last_step_only: bool = False
    """Judge only the last step of each answer, which then says whether the whole is right."""

    @property
    def head(self) -> Head:
        """Two classes at each token."""
        return Head("token", 2, ("wrong", "right"))

    def examples(
        self,
        conversations: Sequence[Conversation],
        template: ChatTemplate,
        limit: int,  # noqa: ARG002 - the engine cuts what is too long
    ) -> list[list[Example]]:
        """Return an example for each row: prompt and steps, and the label of each step."""
        wrong = [c for c in conversations if not c.step_labels]
        if wrong:
            raise DataError(
                f"{wrong[0].origin}: process_reward learns from steps that were judged one by one, but this row has "
                f"none ({len(wrong)} of {len(conversations)} rows); give prompt, completions (a list) and labels"
            )
        prompts = template.prompts(conversations)
        return [[self._example(c, prompt, template)] for c, prompt in zip(conversations, prompts, strict=True)]

    def _example(self, conversation: Conversation, prompt: Sequence[int], template: ChatTemplate) -> Example:
        tokens, ends = list(prompt), []
        for step in template.encode([part + self.step_separator for part in conversation.steps]):
            tokens += step
            ends.append(len(tokens))
        labels = conversation.step_labels
        if self.last_step_only:
            ends, labels = ends[-1:], labels[-1:]
        weight = np.zeros(len(tokens) + 1, np.float32)
        weight[ends] = 1
        sequence = TokenSequence.of([*tokens, tokens[-1]], weight.tolist())
        return Example((sequence,), conversation.origin, tuple(int(label) for label in labels))

    def size(self, examples: Sequence[Example]) -> float:
        """Return the number of steps."""
        return float(sum(sequence.trained for example in examples for sequence in example.sequences))

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the summed cross-entropy of the steps in *pack*; what comes in is ``[m, 2]``."""
        from torch.nn.functional import cross_entropy

        outputs = in_order(log_probabilities, pack)
        labels = pack.target.new_tensor(_labels(pack.examples))
        right = (outputs.detach().argmax(1) == labels).float().sum()
        return Loss(cross_entropy(outputs, labels, reduction="sum"), {"accuracy": right})

    def measure(self, outputs: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """Return the share of steps judged rightly, and how often the first wrong step of an answer is found."""
        labels = np.array(_labels(examples))
        said = joined(outputs).argmax(1)
        ends = np.cumsum([len(each) for each in outputs])[:-1]
        answers = zip(np.split(said, ends), np.split(labels, ends), strict=True)
        found = [_first_wrong(one) == _first_wrong(other) for one, other in answers]
        return {"accuracy": float((said == labels).mean()), "first_error": float(np.mean(found))}


def _labels(examples: Sequence[Example]) -> list[int]:
    """Return the labels of the steps that are there: an answer may have lost its last ones."""
    return [label for example in examples for label in example.values[: example.sequences[0].trained]]


def _first_wrong(labels: Any) -> int:
    wrong = np.flatnonzero(labels == 0)
    return int(wrong[0]) if len(wrong) else -1

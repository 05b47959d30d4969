"""The contract of a training stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tunesmith.core.registry import Spec
from tunesmith.engine.example import Example
from tunesmith.engine.penalties import NO_PENALTIES, Penalties

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from tunesmith.core.errors import Problem
    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.likelihoods import Likelihoods
    from tunesmith.engine.model import PackModel
    from tunesmith.engine.pack import Pack
    from tunesmith.generation.policy import Policy
    from tunesmith.models.heads import Head
    from tunesmith.scoring import Scorer
    from tunesmith.stages._asked import Rollout
    from tunesmith.templates.chat import ChatTemplate

__all__ = ["Example", "Experienced", "Loss", "Stage"]


class Loss(NamedTuple):
    """What a pass adds to the step: the number to minimise, still to be divided by the step's size."""

    total: Tensor
    """Sum over the pass, a scalar."""

    parts: Mapping[str, Tensor | float]
    """Sums worth logging beside it."""

    reported: Tensor | None = None
    """What is logged as the loss, where that is not *total*."""


class Experienced(NamedTuple):
    """What a step learns from that the model wrote itself."""

    examples: list[Example]
    measured: dict[str, float]
    """Numbers to log with the step."""
    rollouts: list[Rollout]
    """The answers, group after group."""


class Stage(Spec):
    """Turns conversations into examples, and the log-probabilities of a pack into a loss."""

    online: ClassVar[bool] = False
    """Whether its examples are prompts, of which each step makes what it learns from: :meth:`experience`."""

    @property
    def steps_per_batch(self) -> int:
        """How many steps in a row see the same examples of the data."""
        return 1

    @property
    def reward_scores(self) -> Sequence[Scorer]:
        """The scores that it learns by, and is judged by; one that has none is judged by its loss."""
        return ()

    def check_processes(self, processes: int) -> Iterable[Problem]:  # noqa: ARG002 - for those that override it
        """Yield why it cannot train in so many processes."""
        return ()

    rate_share: ClassVar[float] = 1.0
    """The usual peak learning rate, as a share of that of imitation."""

    has_perplexity: ClassVar[bool] = False
    """Whether the exponential of the loss is a perplexity."""

    def examples(
        self, conversations: Sequence[Conversation], template: ChatTemplate, limit: int
    ) -> list[list[Example]]:
        """Return the examples of each conversation, not yet cut to *limit* tokens (given for stages that split).

        What a conversation becomes depends on nothing but it: the data are made in parts, by several processes.
        Raises :class:`tunesmith.core.errors.DataError` that names every conversation the stage cannot use.
        """
        raise NotImplementedError

    def size(self, examples: Sequence[Example]) -> float:
        """Return what the loss of an optimizer step over *examples* is divided by."""
        raise NotImplementedError

    def reference_model(self) -> str | None:
        """Return the model that :meth:`prepare` asks, ``start``, ``base`` or a path; None where it asks none.

        ``start`` is the model that training begins with, ``base`` that without an adapter which goes on training.
        """
        return None

    def teacher_model(self) -> str | None:
        """Return the path of a model that stays in memory beside the one that trains; None where there is none."""
        return None

    def prepare(
        self, data: Sequence[Example], chosen: Sequence[int], likelihoods: Likelihoods
    ) -> list[tuple[Any, ...]]:
        """Return the ``values`` of the examples *chosen* from *data* with what the reference model says of them.

        It is asked once, before the first step; the answers are kept in the run's folder as JSON.
        """
        raise NotImplementedError

    def complete(
        self,
        examples: list[Example],
        data: Sequence[Example],  # noqa: ARG002
        likelihoods: Likelihoods,  # noqa: ARG002
    ) -> list[Example]:
        """Return *examples*, all of an optimizer step or of a validation, with what follows from them together.

        Their tokens stay as they are; *data* is what they were chosen from, *likelihoods* asks the model as it is.
        """
        return examples

    @property
    def head(self) -> Head | None:
        """The head that the model has in place of an output head; None where the loss is on log-probabilities.

        It reads the hidden states that would predict the tokens with a weight.
        """
        return None

    def measure(self, outputs: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """Return scores in [0, 1] of what the head said, ``[predictions, outputs]`` for each sequence of *examples*."""
        raise NotImplementedError

    def coefficient(self, pack: Pack) -> Tensor | None:  # noqa: ARG002
        """Return ``[m]`` if the loss is the sum of log-probabilities times known factors: it is then computed cheaper.

        A stage that returns them must have no ``parts``, and its ``loss`` must be that very sum.
        """
        return None

    def candidates(self, pack: Pack) -> Tensor | None:  # noqa: ARG002
        """Return ``[m, k]``: further tokens whose log-probabilities the loss asks for; it is given ``[m, 1 + k]``."""
        return None

    def penalties(self) -> Penalties:
        """Return what training adds to a loss given by its coefficients; evaluation does not."""
        return NO_PENALTIES

    def loss(self, log_probabilities: Tensor, pack: Pack) -> Loss:
        """Return the summed loss of *pack*; ``log_probabilities`` is ``[m]``, one for each of its predictions.

        With a :attr:`head` it is ``[m, outputs]``, what that makes of the hidden states.
        With coefficients this is what evaluation judges by: it has no penalties.
        """
        raise NotImplementedError

    def stand_ins(self, example: Example, most: int) -> list[Example]:  # noqa: ARG002 - for those that override it
        """Return the most that a step may learn from in place of *example*, for estimates; *most* tokens a pass."""
        return [example]

    def begin(self, model: PackModel) -> None:
        """Add to *model* what the stage trains beside it; after the checks, before the optimizer is made."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what :meth:`begin` added to *folder*, and take it off *model*."""

    def experience(self, turn: Sequence[int], prompts: Sequence[Example], policy: Policy) -> Experienced:
        """Return what the step learns from in place of *prompts*, asked of *policy*; of :attr:`online` stages only.

        A function of *turn*, which seeds the sampling, the prompts and the weights alone.
        """
        raise NotImplementedError

    def again(self, examples: Sequence[Example]) -> list[Example]:
        """Return what :meth:`experience` made for a further step, whose weights did not sample it."""
        raise NotImplementedError

    def roll_out(self, turn: Sequence[int], prompts: Sequence[Example], policy: Policy, count: int) -> list[Rollout]:
        """Return *count* answers of *policy* to each prompt, with what they earn; of :attr:`online` stages only."""
        raise NotImplementedError

"""What training may add to a likelihood, so that the model does not grow too sure of itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Penalties:
    """Factors of two terms beside the negative log-likelihood of each prediction; weights of tokens apply to both.

    They are part of what training minimises, not of the loss that is reported: that stays the plain negative
    log-likelihood, comparable between runs, and the terms are logged beside it.  Evaluation leaves them out.
    """

    label_smoothing: float = 0.0
    """s: the loss is ``(1 - s) * -log p(target) + s * mean over the vocabulary of -log p``, as torch defines it."""

    z_loss: float = 0.0
    """z: the loss gains ``z * logsumexp(logits) ** 2`` (PaLM, arXiv:2204.02311, section 5)."""


NO_PENALTIES = Penalties()

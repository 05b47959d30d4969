"""What makes training harder so that less is learnt by heart: noise on embeddings, blocks left out at random.

NEFTune (arXiv:2310.05914) and LayerDrop (arXiv:1909.11556).  A token that several sequences share is embedded once, so
its noise is one draw, with the length of the longest of them; another layout draws other noise from the same seed.
Both act in training alone: checks, validation and generation run in evaluation mode, where nothing is drawn.  Random
numbers are those of torch's own generator, which checkpoints keep, so that a resumed run draws what it would have.

Legend: N tokens of a pack, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tunesmith.core.errors import UserError
from tunesmith.engine.phantom import blocks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Disturbance:
    """Disturbs the forward passes of one model in training, through hooks on its modules; nothing is renamed."""

    def __init__(self, base: PreTrainedModel, *, embedding_noise: float, layer_dropout: float) -> None:
        """Put hooks into *base*; raise :class:`UserError` where it has no blocks to leave out."""
        self.embedding_noise, self.layer_dropout = embedding_noise, layer_dropout
        self._lengths: Tensor | None = None
        self._left_out: list[bool] = []
        self._trained: list[int] = []
        if embedding_noise:
            base.get_input_embeddings().register_forward_hook(self._add_noise)
        if layer_dropout:
            blocks = blocks_of(base)
            if blocks is None:
                raise UserError(
                    f"regularization.layer_dropout: {type(base).__name__} has no list of blocks; set it to 0"
                )
            self._left_out = [False] * len(blocks)
            self._trained = [i for i, block in enumerate(blocks) if any(p.requires_grad for p in block.parameters())]
            for index, block in enumerate(blocks):
                block.register_forward_hook(self._hook_that_leaves_out(index), with_kwargs=True)

    def begin_pass(self, depth: Tensor, reach: Tensor) -> None:
        """Look at the pack of the pass that follows, and draw the blocks that it leaves out: not all that train."""
        if self.embedding_noise:
            self._lengths = longest_through(depth, reach)
        if self.layer_dropout:  # drawn here, so that a block that is computed again meets the same choice
            self._left_out = (torch.rand(len(self._left_out)) < self.layer_dropout).tolist()
            if self._trained and all(self._left_out[index] for index in self._trained):
                # else there might be nothing to take a gradient of
                self._left_out[self._trained[int(torch.randint(len(self._trained), ()))]] = False

    def _add_noise(self, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        """Add uniform noise of ``alpha / sqrt(L D)``, L the length of a token's sequence (NEFTune)."""
        if not module.training or self._lengths is None:
            return None
        scale = self.embedding_noise / (self._lengths * output.shape[-1]).sqrt()
        filling = output[..., 0].numel() - len(scale)  # tokens that were added to fill a pack up: nobody sees them
        scale = nn.functional.pad(scale, (0, filling)).view(*output.shape[:-1], 1)
        return output + torch.empty_like(output).uniform_(-1, 1) * scale.to(output.dtype)

    def _hook_that_leaves_out(self, index: int) -> Any:
        """Return a hook after which a block gives what it was given (LayerDrop)."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
            if not module.training or not self._left_out[index]:
                return None
            hidden = inputs[0] if inputs else named["hidden_states"]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook


def longest_through(depth_N: Tensor, reach_N: Tensor) -> Tensor:
    """Return ``[N]``: for each token of a forest, how many tokens the longest sequence has that it is part of.

    That is one more than the largest depth among the tokens that see it, which lie between it and its *reach*.
    """
    levels, span = [depth_N], 1
    while 2 * span <= len(depth_N):  # levels[k][i]: the largest depth in 2**k tokens from i on
        last = levels[-1]
        levels.append(torch.cat((torch.maximum(last[:-span], last[span:]), last[-span:])))
        span *= 2
    place = torch.arange(len(depth_N), device=depth_N.device)
    count = (reach_N - place).clamp_min(1)  # filling in padded rows is seen by nobody
    level = torch.frexp(count.double()).exponent.long() - 1
    table = torch.stack(levels)
    return torch.maximum(table[level, place], table[level, place + count - 2**level]) + 1

"""What a forward pass keeps for the backward pass: everything, products only, block inputs, or copies on the CPU."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

_ATTENTION = {
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_flash_attention_forward",
        "_efficient_attention_forward",
        "_cudnn_attention_forward",
    )
}
# a product of inner length K costs K operations an element to make again, and is as large whatever K is; those of
# LoRA's B have a K of the rank, and are made again
_WORTH_KEEPING = 4
# smaller tensors stay on the device: a transfer costs more than the memory it frees
SMALLEST_OFFLOADED = 2**20
# layers that share an input (query, key, value) save it one after the other, with no more than so many between
_REMEMBERED = 6


def checkpoint_blocks(base: PreTrainedModel, *, selective: bool = False) -> None:
    """Let every block of *base* keep its input only and compute the rest again in the backward pass.

    *selective* keeps the results of matrix products and fused attention too (Korthikanti et al., arXiv:2205.05198):
    what is computed again is norms, rotations, activations, sums, and attention that is not one operation (short
    segments, FlexAttention).  A module must then not change the result of a product in place; see
    :func:`tunesmith.engine.lora.fuse_lora`.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    # transformers 5.23 renamed it
    enable: Callable[[dict[str, Any]], None] = (
        getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    )
    enable(options)


def _policy(_: Any, operation: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
    kept = operation in _ATTENTION
    if operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
        one, other = arguments[-2:]
        kept = one.shape[1] * _WORTH_KEEPING >= other.shape[1]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class ActivationOffload(torch.autograd.graph.saved_tensors_hooks):
    """Keeps what a forward pass saves in pinned CPU memory until the backward pass asks for it.

    Unlike torch's ``save_on_cpu`` it leaves weights where they are (a fused layer saves them with its input), and
    copies an input that several layers save only once.  Copies run on the stream that computes, so that no tensor is
    freed or read too early.
    """

    def __init__(self, model: nn.Module, smallest: int = SMALLEST_OFFLOADED) -> None:
        """Offload tensors of at least *smallest* bytes, other than weights of *model*."""
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._smallest = smallest
        # the tensors themselves, so that no other can take their place in memory
        self._recent: deque[tuple[Tensor, int, Tensor]] = deque(maxlen=_REMEMBERED)
        self.offloaded_bytes = 0
        super().__init__(self._pack, self._unpack)

    def __exit__(self, *error: object) -> None:
        self._recent.clear()
        super().__exit__(*error)

    def _pack(self, tensor: Tensor) -> tuple[torch.device, Tensor]:
        size, storage = tensor.numel() * tensor.element_size(), tensor.untyped_storage()
        expanded = size > storage.nbytes()
        if expanded or tensor.is_sparse or size < self._smallest or storage.data_ptr() in self._weights:
            return tensor.device, tensor
        for other, version, copy in self._recent:
            if version == other._version and _same(tensor, other):
                return tensor.device, copy
        pinned = tensor.device.type == "cuda"
        copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned, requires_grad=False)
        copy.copy_(tensor.detach(), non_blocking=pinned)
        self._recent.append((tensor, tensor._version, copy))
        self.offloaded_bytes += size
        return tensor.device, copy

    def _unpack(self, packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)


def _same(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are the same numbers in the same memory."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )

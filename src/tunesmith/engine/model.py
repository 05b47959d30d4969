"""A model that takes packs and gives log-probabilities.

Legend: N tokens of a pack, M predictions, D hidden size, R rows, W tokens a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tunesmith.core.errors import UserError
from tunesmith.engine.attention import PackAttention, row_mask
from tunesmith.engine.dense_decoder import DenseDecoder, fits
from tunesmith.engine.divergence import Readout, log_probabilities_of
from tunesmith.engine.losses import LogLikelihood, log_probabilities, weighted_log_likelihood
from tunesmith.engine.penalties import NO_PENALTIES, Penalties
from tunesmith.engine.virtual_tokens import find_virtual_tokens
from tunesmith.models.heads import head_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from tunesmith.engine.divergence import Teacher
    from tunesmith.engine.pack import Pack
    from tunesmith.engine.regularization import Disturbance
    from tunesmith.engine.virtual_tokens import VirtualTokens


class PackModel(nn.Module):
    """Wraps *model* (a transformers model, perhaps inside peft) so that one call is one pack.

    It is the module that accelerate wraps, so that every layer of distribution sees one ``forward``.
    """

    def __init__(self, model: nn.Module, base: PreTrainedModel, attention: Sequence[str] | None = None) -> None:
        """Take *base*, the transformers model inside *model*; its layers hold the adapters.

        *attention* names the backends that may compute attention besides the dense one; None allows all.
        """
        super().__init__()
        self.model = model
        self._base = (base,)  # in a tuple, so that torch does not register its parameters a second time
        config = base.config.get_text_config()
        self.cap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.virtual = find_virtual_tokens(model)
        # only a mask over all pairs can be given more keys than queries, as those in a cache are
        self.attention = PackAttention(base, () if self.virtual and self.virtual.in_cache else attention)
        self.decoder = DenseDecoder(base) if self.virtual is None and self.attention.fast and fits(base) else None
        """Our own forward pass, where there is one for this family and nothing spoke against it."""
        self.disturbance: Disturbance | None = None
        self.keeps_products = False
        """Whether selective checkpointing keeps the results of products, so that nothing may change them in place."""
        self.reads = head_name(base)
        """Name of the head in the base that gives numbers in place of log-probabilities; None in a language model."""
        self.separate_head = base.base_model is not base and base.get_output_embeddings() is not None
        self.temperature = 1.0
        """What the model's own logits are divided by: those who learn from samples learn what was sampled from."""
        self.teacher: Teacher | None = None
        """A model that training is measured against, token by token; no module of this one."""
        self.value_head: tuple[nn.Module, ...] = ()
        """A head that gives values beside log-probabilities; in a tuple, for it is a part of ``model``."""

    def disturb(self, disturbance: Disturbance) -> None:
        """Let *disturbance*, which hooks into :attr:`base`, act on every pass in training."""
        self.disturbance = disturbance
        if disturbance.layer_dropout:
            self.decoder = None  # it calls no block, so that no hook of theirs would run

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model inside."""
        return self._base[0]

    def forward(  # noqa: PLR0913 - a pack's tensors, and how to sum
        self,
        tokens: Tensor,
        depth: Tensor,
        reach: Tensor,
        source: Tensor,
        target: Tensor,
        width: int,
        coefficient: Tensor | None = None,
        penalties: Penalties | None = None,
        candidates: Tensor | None = None,
    ) -> Tensor | LogLikelihood:
        """Return ``[M]`` float32: the log-probability of each *target* at its *source*.

        With *coefficient* ``[M]``, return the scalar sum of their products instead, which costs less; with *penalties*
        too, return that sum with them, and its terms.  With a value head, return ``[M, 2]``: log-probability and value.
        With a teacher, return ``[M, 2]``: divergence from it, and log-probability; with *candidates* ``[M, K]``, return
        log-probabilities of target and candidates, ``[M, 1 + K]``.  A model for classification returns ``[M, outputs]``
        at each *source*, whatever the target.
        """
        if self.disturbance is not None and self.training:
            self.disturbance.begin_pass(depth, reach)
        if self.reads is not None:
            return self.read(self._run(self.base.base_model, tokens, depth, reach, width)[0].flatten(0, 1)[source])
        readout = self.readout(tokens, depth, reach, source, width)
        if coefficient is None and candidates is not None:
            return log_probabilities_of(readout, torch.cat((target[:, None], candidates), 1))
        if coefficient is None and self.teacher is not None:
            given = {"tokens": tokens, "depth": depth, "reach": reach, "source": source, "width": width}
            return self.teacher.compare(readout, target, given)
        hidden_MD, head, cap, scale = readout
        if coefficient is None:
            log_p_M = log_probabilities(hidden_MD, head, target, cap=cap, scale=scale)
            if not self.value_head:
                return log_p_M
            return torch.stack((log_p_M, self.value_head[0](hidden_MD)), 1)
        found = weighted_log_likelihood(
            hidden_MD, head, target, coefficient, penalties=penalties or NO_PENALTIES, cap=cap, scale=scale
        )
        return found.total if penalties is None else found

    def readout(self, tokens: Tensor, depth: Tensor, reach: Tensor, source: Tensor, width: int) -> Readout:
        """Return the hidden states at *source*, and how logits follow from them."""
        # capped logits cannot be scaled after their cap by the head's own code
        if self.separate_head and not (self.cap and self.temperature != 1):
            hidden_ND = self._run(self.base.base_model, tokens, depth, reach, width)[0].flatten(0, 1)
            head, cap = cast("nn.Module", self.base.get_output_embeddings()), self.cap
            scale = self.scale / self.temperature
        else:  # what the model does to its logits is its own business: they are taken as they come
            hidden_ND = self._run(self.base, tokens, depth, reach, width)[0].flatten(0, 1)
            head, cap, scale = nn.Identity(), 0.0, 1.0 / self.temperature
        return Readout(hidden_ND[source], head, cap, scale)

    def read(self, hidden_MD: Tensor) -> Tensor:
        """Return ``[M, outputs]`` float32: what the head of a model for classification makes of hidden states."""
        assert self.reads is not None
        head = self.base.get_submodule(self.reads)
        weights = list(head.parameters())
        # of those that peft keeps, too, the ones that train
        weight = next((w for w in weights if w.requires_grad), weights[0])
        with torch.autocast(hidden_MD.device.type, enabled=False):
            return cast("Tensor", head(hidden_MD.to(weight.dtype))).float()

    def _run(self, module: nn.Module, tokens: Tensor, depth: Tensor, reach: Tensor, width: int) -> Any:
        if self.virtual is not None:
            return self._run_behind(self.virtual, module, tokens, depth, reach, width)
        if width:
            return module(input_ids=tokens.view(-1, width), attention_mask=row_mask(reach, width), use_cache=False)
        attention = self.attention.choose(depth, reach)
        tokens, depth, reach = _filled(tokens, depth, reach, attention.step)
        masks = attention.masks(depth, reach)
        # without gradients transformers' own layers run: they are what the decoder is checked against
        if self.decoder is not None and module is self.base.base_model and torch.is_grad_enabled():
            hidden = self.decoder.hidden_states(tokens, depth, masks, keep_products=self.keeps_products)
            if hidden is not None:
                return (hidden,)
        return module(input_ids=tokens[None], position_ids=depth[None], attention_mask=masks, use_cache=False)

    def _run_behind(
        self, virtual: VirtualTokens, module: nn.Module, tokens: Tensor, depth: Tensor, reach: Tensor, width: int
    ) -> tuple[Tensor]:
        """Run *tokens* behind the *virtual* ones; return what comes out for *tokens* alone."""
        if width:
            rows = tokens.view(-1, width)
            mask = virtual.see_in_rows(row_mask(reach, width))
            if virtual.in_cache:
                cache = virtual.cache(len(rows))
                return (module(input_ids=rows, attention_mask=mask, past_key_values=cache, use_cache=False)[0],)
            out = module(inputs_embeds=virtual.embed(rows), attention_mask=mask, use_cache=False)[0]
            return (out[:, virtual.count :],)
        if virtual.in_cache:
            masks = virtual.see_in_cache(self.attention.reference.masks(depth, reach))
            places, cache = depth[None] + virtual.count, virtual.cache(1)
            given: dict[str, Any] = {"attention_mask": masks, "past_key_values": cache, "use_cache": False}
            return (module(input_ids=tokens[None], position_ids=places, **given)[0],)
        root_depth, root_reach = virtual.plant(depth, reach)
        attention = self.attention.choose(root_depth, root_reach)
        # the root is filled in by its embeddings; until then any token stands for it
        tokens = torch.cat((tokens.new_zeros(virtual.count), tokens))
        tokens, root_depth, root_reach = _filled(tokens, root_depth, root_reach, attention.step)
        masks = attention.masks(root_depth, root_reach)
        embedded = virtual.embed(tokens[None, virtual.count :])
        out = module(inputs_embeds=embedded, position_ids=root_depth[None], attention_mask=masks, use_cache=False)[0]
        return (out[:, virtual.count :],)


def _filled(tokens: Tensor, depth: Tensor, reach: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a pack with tokens added that see only each other, so that its length is a multiple of *step*."""
    extra = -len(tokens) % step
    if not extra:
        return tokens, depth, reach
    filling = torch.arange(extra, device=tokens.device)
    return (
        torch.cat((tokens, tokens[-1:].expand(extra))),
        torch.cat((depth, filling)),
        torch.cat((reach, torch.full_like(filling, len(tokens) + extra))),
    )


def pack_arguments(pack: Pack) -> dict[str, Any]:
    """Return what :meth:`PackModel.forward` takes of a pack of tensors."""
    names = ("tokens", "depth", "reach", "source", "target", "width")
    return {name: getattr(pack, name) for name in names}


def default_device(wanted: str) -> torch.device:
    """Return the device asked for; ``auto`` takes an accelerator where there is one.

    Raises :class:`UserError` where this machine has no such device.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = there or torch.device("cpu")
    if wanted not in ("auto", "cpu", found.type):
        raise UserError(f"device: {wanted} was asked for, but this machine has {found.type}; use auto")
    return torch.device("cpu") if wanted == "cpu" else found

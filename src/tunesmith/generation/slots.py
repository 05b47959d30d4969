"""A model whose rows come and go: each has a slot in one key-value cache, filled from its left, with its own length.

transformers' caches hold rows of one length, so a row that joins or leaves means copying all of them; here it means
writing into the next slot, or moving the last one.  A pass writes ``width`` tokens behind what each of its rows holds,
and one rule makes its mask: the token at place ``p`` of a row sees that row's places up to ``p``.  So a prompt, a part
of one, and the next token of thirty replies are the same kind of pass.

Legend: K rows of a pass, W tokens a row, L places looked at, H key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tunesmith.engine.attention import UnsupportedAttentionError, by_layer_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.engine.attention._base import Span

# whatever a foreign architecture raises at a cache or a mask that it does not know
REFUSALS = (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError, NotImplementedError)
UNLIMITED = 1 << 20
"""The context, in tokens, of models that do not say."""
Held = list[tuple[Tensor, Tensor] | None]
"""The keys and values of a slot, ``[H, places, D]``, by layer; None for one that keeps none of its own."""
_FIRST_PLACES = 128
# how far logits through the cache may be from the plain ones, relative to their spread: rounding, and no wrong mask
_ROUNDING = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 0.15}


class _Pass:
    """Where the pass that runs writes, shared by all layers."""

    def __init__(self) -> None:
        self.rows_K1 = self.places_KW = torch.empty(0, dtype=torch.long)
        self.first = self.rows = self.length = 0
        self.room = (0, 0)
        """Slots and places that every layer must have."""


class _SlotLayer(DynamicLayer):
    """The keys and values of one layer, ``[slots, H, places, D]``."""

    def __init__(self, now: _Pass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pass = now

    def begin(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take room for such keys and values, where there is none yet."""
        if self.keys is None or self.values is None:
            self.keys, self.values = (_grown(None, each, self._pass.room) for each in (key_states, value_states))
            self.is_initialized = True

    def grow(self) -> None:
        """Take the room that there should be, where there is less: a slot may be copied to before a pass writes it."""
        if self.keys is not None and self.values is not None and self.keys.shape[0::2] != self._pass.room:
            self.keys, self.values = (_grown(each, each, self._pass.room) for each in (self.keys, self.values))

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ARG002 - the base's
        **kwargs: Any,  # noqa: ARG002 - the base's
    ) -> tuple[Tensor, Tensor]:
        """Write the pass's keys and values ``[K, H, W, D]``; return all that its rows hold, ``[K, H, L, D]``."""
        now = self._pass
        self.begin(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if (self.keys.shape[0], self.keys.shape[2]) != now.room:
            self.keys = _grown(self.keys, key_states, now.room)
            self.values = _grown(self.values, value_states, now.room)
        seen = slice(now.first, now.first + now.rows)
        self.keys[now.rows_K1, :, now.places_KW] = key_states.transpose(1, 2)
        self.values[now.rows_K1, :, now.places_KW] = value_states.transpose(1, 2)
        return self.keys[seen, :, : now.length], self.values[seen, :, : now.length]

    def get_seq_length(self) -> int:
        """Return the places looked at before this pass's own; models that need more than that do not fit."""
        return self._pass.length - self._pass.places_KW.shape[-1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - the base's
        """Return how many places are looked at, from the first."""
        return self._pass.length, 0


def _grown(held: Tensor | None, like: Tensor, room: tuple[int, int]) -> Tensor:
    # zeros: what is not written yet is masked, but a masked NaN would still spread
    grown = like.new_zeros(room[0], like.shape[1], room[1], like.shape[3])
    if held is not None:
        slots, places = min(room[0], held.shape[0]), min(room[1], held.shape[2])
        grown[:slots, :, :places] = held[:slots, :, :places]
    return grown


class SlotModel:
    """Runs passes of a causal language model over slots.  Rows of a pass are slots that follow each other."""

    def __init__(self, model: Any) -> None:
        """Take a transformers model, perhaps inside peft; :meth:`misfit` says whether its cache can be used so."""
        self.model = model
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = self.base.config.get_text_config()
        self._now = _Pass()
        self._layers: list[_SlotLayer] = []
        self._cache: Cache | None = None
        self._additive = getattr(self.config, "_attn_implementation", "sdpa") != "sdpa"
        self._keeps = "logits_to_keep" in inspect.signature(self.base.forward).parameters

    @property
    def room(self) -> int:
        """Tokens that the cache has memory for."""
        return self._now.room[0] * self._now.room[1]

    def run(self, tokens: Sequence[Sequence[int]], first: int, starts: Sequence[int]) -> Tensor:
        """Write *tokens* behind the *starts* places that the slots from *first* on hold.

        Returns ``[K, V]`` float32: what follows the last token of each row.  Rows may be of different lengths.
        """
        width = max(map(len, tokens))
        device = self.model.device
        filled = [[*row, *[row[-1]] * (width - len(row))] for row in tokens]
        tokens_KW = torch.tensor(filled, device=device)
        starts_K1 = torch.tensor(starts, device=device)[:, None]
        now = self._now
        now.places_KW = starts_K1 + torch.arange(width, device=device)
        now.rows_K1 = torch.arange(first, first + len(tokens), device=device)[:, None]
        now.first, now.rows, now.length = first, len(tokens), max(starts) + width
        self._make_room(first + len(tokens), now.length)
        masks = by_layer_type(self.config, self._mask)
        last = [len(row) - 1 for row in tokens]
        kept = sorted(set(last))
        options: dict[str, Any] = {}
        if self._keeps:
            # by index: of a slice, whose rows do not touch, a CPU copies the head for each row
            options["logits_to_keep"] = 1 if width == 1 else torch.tensor(kept, device=device)
            last = [kept.index(each) for each in last]
        logits = self.model(
            input_ids=tokens_KW,
            attention_mask=masks,
            position_ids=now.places_KW,
            past_key_values=self._made_cache(),
            use_cache=True,
            **options,
        ).logits
        logits_KV = logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(last)), last]
        return torch.as_tensor(logits_KV).float()

    def copy(self, source: int, target: int, places: int) -> None:
        """Give slot *target* the first *places* of slot *source*."""
        self._make_room(target + 1, places)
        for layer in self._layers:
            layer.grow()
            for held in (layer.keys, layer.values):
                if held is not None:
                    held[target, :, :places] = held[source, :, :places]

    def take_out(self, slot: int, places: int) -> Held:
        """Return copies of what *slot* holds in its first *places*, for :meth:`put_in`."""
        return [
            None
            if layer.keys is None or layer.values is None
            else (layer.keys[slot, :, :places].clone(), layer.values[slot, :, :places].clone())
            for layer in self._layers
        ]

    def put_in(self, slot: int, held: Held, places: int) -> None:
        """Give *slot* the first *places* of what was taken out."""
        self._make_room(slot + 1, places)
        self._made_cache()
        for layer, taken in zip(self._layers, held, strict=True):
            if taken is not None:
                layer.begin(taken[0][None], taken[1][None])
                layer.grow()
                assert layer.keys is not None
                assert layer.values is not None
                layer.keys[slot, :, :places] = taken[0][:, :places]
                layer.values[slot, :, :places] = taken[1][:, :places]

    def forget(self) -> None:
        """Give the cache's memory back."""
        self._cache, self._layers, self._now.room = None, [], (0, 0)

    def misfit(self) -> str | None:
        """Return why replies cannot share this model's cache; None where they can, tried with a few tokens."""
        try:
            layers = {type(layer) for layer in DynamicCache(config=self.config).layers}
            if other := layers - {DynamicLayer, DynamicSlidingWindowLayer}:
                return f"its cache has layers of type {', '.join(sorted(each.__name__ for each in other))}"
            by_layer_type(self.config, lambda span: span)
            with torch.no_grad():
                return self._differs()
        except UnsupportedAttentionError as error:
            return f"it has {error}"
        except REFUSALS as error:
            return f"it refuses a cache with rows of different lengths ({type(error).__name__})"
        finally:
            self.forget()

    def _differs(self) -> str | None:
        """Compare rows that join, move and go on with what the plain model says to each alone."""
        size = min(int(self.config.vocab_size), 1000)
        texts = [[(7 * i + 3 * row) % size for i in range(count)] for row, count in enumerate((9, 4, 6))]
        self.run([texts[0][:5]], 0, [0])
        self.run([texts[1][:3], texts[2][:2]], 1, [0, 0])
        found = [*self.run([texts[0][5:], texts[1][3:], texts[2][2:]], 0, [5, 3, 2])]
        self.copy(2, 1, 6)
        again = self.run([texts[0][-1:], [1]], 0, [9, 6])[1]
        for text, logits_V in zip([*texts, [*texts[2], 1]], [*found, again], strict=True):
            tokens = torch.tensor([text], device=self.model.device)
            seen = torch.ones_like(tokens)
            plain_V = self.model(input_ids=tokens, attention_mask=seen, use_cache=False).logits[0, -1].float()
            far = float((logits_V - plain_V).abs().max() / plain_V.std().clamp_min(1e-6))
            if not far <= _ROUNDING.get(self.model.dtype, 1e-3):
                return f"rows of different lengths change its answers (logits off by {far:.1e} of their spread)"
        return None

    def _made_cache(self) -> Cache:
        if self._cache is None:
            count = len(DynamicCache(config=self.config).layers)
            self._layers = [_SlotLayer(self._now) for _ in range(count)]
            self._cache = Cache(layers=[*self._layers])
        return self._cache

    def _make_room(self, slots: int, places: int) -> None:
        had_slots, had_places = self._now.room
        # doubled, so that growing is rare; never beyond what was asked for by more than that
        wanted_slots = had_slots if slots <= had_slots else max(slots, 2 * had_slots)
        wanted_places = had_places if places <= had_places else max(places, 2 * had_places, _FIRST_PLACES)
        self._now.room = (wanted_slots, wanted_places)

    def _mask(self, span: Span) -> Tensor:
        """Return ``[K, 1, W, L]``: what each token sees, as this model's attention wants it."""
        now = self._now
        place_L = torch.arange(now.length, device=now.places_KW.device)
        places_KW1 = now.places_KW[:, :, None]
        sees = place_L <= places_KW1
        if span.window or span.chunk:
            sees &= place_L >= span.oldest(now.places_KW)[:, :, None]
        if not self._additive:
            return sees[:, None]
        mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=sees.device)
        return mask.masked_fill(~sees, torch.finfo(mask.dtype).min)[:, None]


def context_of(config: Any) -> int:
    """Return how many tokens a model of *config* can look back on; a million where it does not say."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        found = getattr(config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return UNLIMITED

"""Longer contexts for rotary positions: what a recipe may ask for, and how a configuration says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tunesmith.core.errors import UserError
from tunesmith.core.registry import Block

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# what each kind of transformers' modeling_rope_utils takes beside its factor, with what is usual where it must be given
_TAKES: dict[str, dict[str, float | None]] = {
    "linear": {},
    "dynamic": {},
    "yarn": dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")),
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
# those that compare wavelengths with the length of pretraining
_KNOWS_LENGTH = ("yarn", "llama3")
_STAYS = ("rope_theta", "partial_rotary_factor")
# where a configuration says it
_ROPE = ("rope_parameters", "max_position_embeddings")


class RopeScaling(Block):
    """Positions squeezed so that a model reads longer texts than it was pretrained on; transformers' own names."""

    type: Literal["linear", "dynamic", "yarn", "llama3"]
    """``yarn`` (arXiv:2309.00071) is usual; ``llama3`` as in Llama 3.1; ``dynamic`` for serving, not training."""

    factor: Annotated[float, Field(gt=1)]
    """How many times longer the context becomes."""

    original_max_position_embeddings: Annotated[int, Field(ge=2)] | None = None
    """Context of pretraining, in tokens; left out, what the model's configuration says."""

    low_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """``llama3``: wavelengths above the original context over this are squeezed in full; left out, 1."""

    high_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """``llama3``: wavelengths below the original context over this stay as they are; left out, 4."""

    attention_factor: Annotated[float, Field(gt=0)] | None = None
    """``yarn``: factor of the attention's logits; left out, it follows from ``factor``."""

    beta_fast: Annotated[float, Field(gt=0)] | None = None
    """``yarn``: rotations in the original context above which nothing is squeezed; left out, 32."""

    beta_slow: Annotated[float, Field(gt=0)] | None = None
    """``yarn``: rotations in the original context below which all is squeezed; left out, 1."""

    mscale: Annotated[float, Field(gt=0)] | None = None
    """``yarn``, for DeepSeek's models: with ``mscale_all_dim`` it gives the ``attention_factor``."""

    mscale_all_dim: Annotated[float, Field(gt=0)] | None = None
    """``yarn``, for DeepSeek's models: see ``mscale``."""

    truncate: bool | None = None
    """``yarn``: round the bounds between squeezed and other frequencies to whole ones; left out, true."""

    @model_validator(mode="after")
    def _only_its_own(self) -> Self:
        taken = {"type", "factor", "original_max_position_embeddings", *_TAKES[self.type]}
        foreign = sorted(self.model_fields_set - taken)
        if foreign:
            own = ", ".join(_TAKES[self.type]) or "nothing beside its factor"
            raise ValueError(f"{self.type} has no {foreign[0]}; it takes {own}")
        low, high = (self._value(name) for name in ("low_freq_factor", "high_freq_factor"))
        if low is not None and high is not None and high <= low:
            raise ValueError(f"high_freq_factor ({high:g}) must be more than low_freq_factor ({low:g})")
        return self

    def _value(self, name: str) -> float | None:
        found: float | None = getattr(self, name)
        return _TAKES[self.type].get(name) if found is None else found

    def parameters(self, original: int) -> dict[str, Any]:
        """Return what transformers calls ``rope_parameters``, for a model pretrained on *original* tokens."""
        length = {"original_max_position_embeddings": original} if self.type in _KNOWS_LENGTH else {}
        own = {name: value for name in _TAKES[self.type] if (value := self._value(name)) is not None}
        return {"rope_type": self.type, "factor": self.factor, **length, **own}


def scale_rope(config: PreTrainedConfig, wanted: RopeScaling) -> None:
    """Write *wanted* into *config*, with the context that follows; raise :class:`UserError` where that cannot be."""
    text: Any = config.get_text_config()
    found = getattr(text, "rope_parameters", None)
    if not found:
        raise UserError(f"model.rope_scaling: {text.model_type} has no rotary positions to scale; leave it out")
    by_layer = all(isinstance(value, dict) for value in found.values())
    if by_layer and "full_attention" not in found:
        raise UserError(
            f"model.rope_scaling: {text.model_type} has no layers of full attention, which alone are scaled"
        )
    # a sliding window never looks further than it did in pretraining
    before = found["full_attention"] if by_layer else found
    original = wanted.original_max_position_embeddings or before.get("original_max_position_embeddings")
    if original is None and before.get("rope_type", "default") != "default":
        raise UserError(
            f"model.rope_scaling: {text.model_type} is scaled already ({before['rope_type']}, factor "
            f"{before.get('factor')}); set original_max_position_embeddings to the context of its pretraining"
        )
    original = int(original or text.max_position_embeddings)
    after = {**{name: before[name] for name in _STAYS if name in before}, **wanted.parameters(original)}
    text.rope_parameters = {**found, "full_attention": after} if by_layer else after
    # `dynamic` is told by it where squeezing begins
    text.max_position_embeddings = original if wanted.type == "dynamic" else round(original * wanted.factor)


def is_dynamic(config: PreTrainedConfig) -> bool:
    """Say whether frequencies depend on the longest sequence that the model was given so far."""
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [value.get("rope_type") for value in found.values() if isinstance(value, dict)]
    return "dynamic" in [found.get("rope_type"), *kinds]


def same_rope(first: PreTrainedConfig, second: PreTrainedConfig) -> bool:
    """Say whether two configurations have the same rotary positions and the same context."""
    one, other = first.get_text_config(), second.get_text_config()
    return all(getattr(one, name, None) == getattr(other, name, None) for name in _ROPE)


def copy_rope(source: PreTrainedConfig, target: PreTrainedConfig) -> None:
    """Give *target* the rotary positions and the context of *source*."""
    for name in _ROPE:
        value = getattr(source.get_text_config(), name, None)
        if value is not None:
            setattr(target.get_text_config(), name, value)

"""What a GGUF file says of a model: its sizes and weights under llama.cpp's names, and back.

Sources: the ``gguf`` package (names of keys and tensors), and llama.cpp's ``conversion/{llama,qwen,gemma}.py`` for the
two things that names do not say: which rows change places, and which norms are written with one added.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

# our word -> (what llama.cpp calls it after the architecture, whether it is a whole number)
_SIZES = {
    "max_position_embeddings": ("context_length", int),
    "hidden_size": ("embedding_length", int),
    "num_hidden_layers": ("block_count", int),
    "intermediate_size": ("feed_forward_length", int),
    "num_attention_heads": ("attention.head_count", int),
    "num_key_value_heads": ("attention.head_count_kv", int),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon", float),
    "vocab_size": ("vocab_size", int),
}
_WINDOW = {"sliding_window": ("attention.sliding_window", int)}
_CAPS = {
    "attn_logit_softcapping": ("attn_logit_softcapping", float),
    "final_logit_softcapping": ("final_logit_softcapping", float),
}
# gives every head its own length, which llama.cpp else takes to be hidden_size / heads
_HEAD = ("attention.key_length", "attention.value_length", "rope.dimension_count")


@dataclass(frozen=True)
class Shape:
    """How models of one type are written."""

    architecture: str
    """As llama.cpp calls it."""
    activation: str = "silu"
    sizes: Mapping[str, tuple[str, type]] = field(default_factory=lambda: _SIZES)
    permuted: bool = False
    """Whether the rows of queries and keys take turns, as llama.cpp rotates them in pairs of neighbours."""
    norms_add_one: bool = False
    full_attention_every: int | None = None
    """In which layers attention reaches past the window; None where there is no window."""


SHAPES = {
    "llama": Shape("llama", permuted=True),
    "mistral": Shape("llama", permuted=True),
    "qwen2": Shape("qwen2"),
    "qwen3": Shape("qwen3"),
    "gemma2": Shape("gemma2", "gelu_pytorch_tanh", {**_SIZES, **_WINDOW, **_CAPS}, norms_add_one=True,
                    full_attention_every=2),
    "gemma3_text": Shape("gemma3", "gelu_pytorch_tanh", {**_SIZES, **_WINDOW}, norms_add_one=True,
                         full_attention_every=6),
}  # fmt: skip


def find_shape(config: Any) -> Shape:
    """Return how a model of *config* is written; raise :class:`UserError` for one that llama.cpp would not compute."""
    shape = SHAPES.get(config.model_type)
    if shape is None:
        raise UserError(
            f"--to: models of the type {config.model_type} are not written as GGUF here; {', '.join(SHAPES)} are. "
            "Export a folder, and convert that with llama.cpp"
        )
    for why in _unlike(config, shape):
        raise UserError(f"--to: this {config.model_type} cannot be written as GGUF: llama.cpp {why}")
    return shape


def _unlike(config: Any, shape: Shape) -> Iterator[str]:
    """Yield what *config* has that llama.cpp computes otherwise."""
    own = config.to_dict()
    act = own.get("hidden_activation") or own.get("hidden_act")
    if act not in (shape.activation, "gelu_tanh" if "gelu" in shape.activation else "swish"):
        yield f"computes {shape.activation} in its layers, and the model {act}"
    rope = _rope(config)
    allowed = ("default", "linear", "llama3") if shape.permuted else ("default", "linear")
    if (kind := rope.get("rope_type", "default")) not in allowed:
        yield f"files are written here with rotary positions of the kinds {', '.join(allowed)}, not {kind}"
    if rope.get("partial_rotary_factor", 1) != 1:
        yield "rotates whole heads, and the model parts of them"
    if shape.full_attention_every is not None:
        yield from _unlike_gemma(config, shape, shape.full_attention_every)
        return
    if own.get("sliding_window") and own.get("use_sliding_window", True):
        yield "reads all positions for this type, and the model has a sliding_window; take it out to accept that"
    if shape.architecture != "llama" and own.get("attention_bias"):
        yield "has no attention_bias for it"


def _unlike_gemma(config: Any, shape: Shape, every: int) -> Iterator[str]:
    """Yield what a model whose layers look at windows and at all in turn has that llama.cpp computes otherwise."""
    own = config.to_dict()
    wanted = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(config.num_hidden_layers)]
    if list(config.layer_types) != wanted:
        yield f"has full attention in every {every}th layer, and the model elsewhere"
    if config.query_pre_attn_scalar != _query_scale(config, shape):
        yield f"scales queries by {_query_scale(config, shape)}, and the model by {config.query_pre_attn_scalar}"
    if shape.architecture != "gemma3":
        return
    if own.get("final_logit_softcapping") or own.get("attn_logit_softcapping"):
        yield "has no soft caps for it"
    local = config.rope_parameters["sliding_attention"]
    if (local.get("rope_theta"), local.get("rope_type", "default")) != (10000.0, "default"):
        yield "turns positions of windows by 10000 and scales none, and the model does not"


def _query_scale(config: Any, shape: Shape) -> int:
    """Return what llama.cpp scales queries by; in models of 27 billion weights alone, told by their layers, another."""
    big = {"gemma2": 46, "gemma3": 62}[shape.architecture] == config.num_hidden_layers
    return int(config.hidden_size // config.num_attention_heads if big else config.head_dim)


def _rope(config: Any) -> dict[str, Any]:
    """Return the settings of rotary positions; those of full attention where windows have their own."""
    found = dict(config.rope_parameters or {})
    return dict(found.get("full_attention", found))


def head_size(config: Any) -> int:
    """Return the numbers a head has."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def sizes_in(config: Any) -> dict[str, float]:
    """Return the numbers of *config* that a file states."""
    named = {name: getattr(config, name, None) for name in find_shape(config).sizes}
    found = named | {"head_dim": head_size(config), "rope_theta": _rope(config)["rope_theta"]}
    return {name: value for name, value in found.items() if value is not None}


def write_sizes(writer: Any, config: Any, shape: Shape) -> None:
    """Write the model's sizes to a ``GGUFWriter``."""
    for name, (key, kind) in shape.sizes.items():
        value = getattr(config, name)
        if value is not None:
            add = writer.add_uint32 if kind is int else writer.add_float32
            add(f"{shape.architecture}.{key}", kind(value))
    for key in _HEAD:
        writer.add_uint32(f"{shape.architecture}.{key}", head_size(config))
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type") == "linear":
        writer.add_string(f"{shape.architecture}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(float(rope["factor"]))


def read_config(fields: Mapping[str, Any]) -> Any:
    """Return transformers' configuration of a file's *fields*, the other way round than :func:`write_sizes`.

    *fields* holds the names of tensors, too.  Raises :class:`UserError` for an architecture that is not written here.
    """
    from transformers import AutoConfig

    architecture = fields.get("general.architecture")
    found_types = [name for name, shape in SHAPES.items() if shape.architecture == architecture]
    if not found_types:
        raise UserError(f"GGUF files of the architecture {architecture} are not read here")
    model_type = found_types[0]  # Mistral's is Llama's without a window
    shape = SHAPES[model_type]
    found: dict[str, Any] = {name: fields.get(f"{shape.architecture}.{key}") for name, (key, _) in shape.sizes.items()}
    head = fields[f"{shape.architecture}.attention.key_length"]
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": fields[f"{shape.architecture}.rope.freq_base"]}
    if fields.get(f"{shape.architecture}.rope.scaling.type") == "linear":
        rope |= {"rope_type": "linear", "factor": fields[f"{shape.architecture}.rope.scaling.factor"]}
    found |= {"head_dim": head, "rope_parameters": rope, "tie_word_embeddings": "output.weight" not in fields}
    if model_type == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": 10000.0}
        found["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    if model_type == "llama":
        found |= {
            "attention_bias": "blk.0.attn_q.bias" in fields,
            "mlp_bias": "blk.0.ffn_up.bias" in fields,
        }
    config = AutoConfig.for_model(model_type, **found)
    if shape.full_attention_every is not None:
        config.query_pre_attn_scalar = _query_scale(config, shape)
    return config


def tensors(model: Any, shape: Shape) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each weight's name in the file and its value in float32.

    Raises :class:`UserError` for a weight that the architecture has no name for.
    """
    import gguf

    config = model.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[shape.architecture], config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        written = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if written is None:
            raise UserError(f"--to: llama.cpp has no place for the weight {name} of a {config.model_type}")
        value = weight.detach().float().cpu().numpy()
        if shape.permuted and ".self_attn.q_proj." in name:
            value = _take_turns(value, config.num_attention_heads)
        if shape.permuted and ".self_attn.k_proj." in name:
            value = _take_turns(value, config.num_key_value_heads)
        yield written, value + 1 if shape.norms_add_one and name.endswith("norm.weight") else value
    factors = rope_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors


def _take_turns(value: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return rows in which the halves of each head take turns."""
    half = value.shape[0] // heads // 2
    return value.reshape(heads, 2, half, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def plain_frequencies(config: Any) -> Any:
    """Return the turns that rotary positions take without scaling ``[head / 2]``."""
    import torch

    size = head_size(config)
    return 1.0 / (float(_rope(config)["rope_theta"]) ** (torch.arange(0, size, 2, dtype=torch.float32) / size))


def rope_factors(model: Any) -> NDArray[np.float32] | None:
    """Return by how much llama.cpp must divide each turn to turn as *model* does; None where nothing is scaled."""
    if _rope(model.config).get("rope_type") != "llama3":
        return None
    found: NDArray[np.float32] = (plain_frequencies(model.config) / model.model.rotary_emb.inv_freq.cpu()).numpy()
    return found

"""A tiny random model of any architecture of transformers: its own configuration class, with every size made small.

What is made small is told by the names of a configuration's fields, so that a new architecture needs nothing here
unless its sizes depend on one another in a way of its own; those stand in ``SIZES``, each with its why.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

VOCABULARY = 320
POSITIONS = 256
# random weights of the usual size hardly depend on what they see: bigger ones make every mistake show
_GAIN = 4

# small size, and the names that configurations have for what it is; a field that is None or smaller anyway stays so
_NAMES: tuple[tuple[int, str], ...] = (
    (
        VOCABULARY,
        "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size "
        "pronunciation_vocab_size shape_vocab_size",
    ),
    (POSITIONS, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length"),
    (
        32,
        "hidden_size d_model n_embd emb_dim lru_width embedding_size attention_hidden_size word_embed_proj_dim "
        "input_embedding_size output_embedding_size embedding_dim backbone_hidden_size router_hidden_size "
        "projector_hidden_size dim_model_base qk_head_dim hidden_size_global adapter_in_dim adapter_out_dim "
        "adapter_input_size",
    ),
    (
        48,
        "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner dff dim_ff feed_forward_size n_inner "
        "ffn_hidden_size dense_intermediate_size prefix_dense_intermediate_size intermediate_size_mlp",
    ),
    (
        24,
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size "
        "moe_shared_expert_intermediate_size shared_experts_intermediate_size",
    ),
    (64, "mamba_d_ssm"),
    (16, "mamba_head_dim kv_lora_rank q_lora_rank o_lora_rank laurel_rank gated_norm_rank adapter_rank index_topk"),
    (
        8,
        "head_dim kv_channels swa_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim v_head_dim "
        "qk_nope_head_dim qk_rope_head_dim index_head_dim d_head dim_head query_pre_attn_scalar attention_head_size "
        "sliding_window sliding_window_size attention_window_size window_size attention_chunk_size local_attention "
        "keep_window_size hidden_size_per_layer_input state_size ssm_state_size mamba_d_state chunk_size "
        "mamba_chunk_size",
    ),
    (
        4,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads attention_heads swa_num_attention_heads "
        "linear_num_heads linear_num_value_heads index_n_heads num_experts n_routed_experts num_local_experts "
        "moe_num_experts rotary_dim zero_expert_num mamba_n_heads n_mamba_heads mamba_num_heads",
    ),
    (
        2,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers num_blocks depth num_experts_per_tok top_k_experts moe_topk moe_k num_key_value_heads "
        "num_kv_heads swa_num_key_value_heads linear_num_key_heads n_group n_groups",
    ),
    (
        1,
        "first_k_dense_replace num_dense_layers moe_layer_start_index n_shared_experts num_shared_experts "
        "moe_num_shared_experts topk_group",
    ),
)
_SMALL = {name: size for size, names in _NAMES for name in names.split()}


# model type -> fields whose sizes depend on one another in a way of their own
SIZES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},  # else no layer is attention
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {  # its code reads a rope_theta that its own configuration class does not have
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},  # None by default, as are those below
    # a text of few tokens fills no block of the usual 128
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "doge": {"keep_window_size": POSITIONS},  # in longer texts it chooses tokens, among them later ones
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {  # windowed layers have sizes of their own
        "num_hidden_layers": 2,
        "layer_types": ["indexed_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse"],
        "head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "gemma3n_text": {  # the last layers take the keys of earlier ones of their type
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": 48,
        "activation_sparsity_pattern": [0.95, 0.0, 0.95, 0.0],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {"moe_layers": [1], "num_hidden_layers": 2, "layer_types": ["chunked_attention", "full_attention"]},
    "mamba2": {"head_dim": 16},  # heads of so much make up twice the hidden size
    "ministral": {"head_dim": 8},
    "moshi": {"audio_vocab_size": 64},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {  # None by default
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},  # the third is attention
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"hidden_size": 128},  # sizes of heads are rounded up to 64
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},  # two share weights
}

_OTHERS_STATES = "it goes on from the states of another model, and is no language model by itself"
_HALF = "AutoModelForCausalLM makes its text half, and does not know the configuration that this half saves"
_NOT_TEXT = "it predicts codes of sound, not text"
# model type -> why no tiny model of it can be trained here
LEFT_OUT: dict[str, str] = {
    "blt": "its configuration has no number of layers, which transformers' own cache asks for: it cannot generate",
    "emu3": _HALF,
    "gemma3n": "its tower for images needs the package timm",
    "gemma4_assistant": _OTHERS_STATES,
    "gemma4_unified_assistant": _OTHERS_STATES,
    "mllama": _HALF,
    "musicgen": _NOT_TEXT,
    "musicgen_melody": _NOT_TEXT,
    "reformer": "in training it takes texts of one length only, the product of its axial shape",
    "xlnet": "it predicts tokens in a permuted order, each with a mask of its own",
}


def architectures() -> list[str]:
    """Return every model type that transformers has a causal language model for, but for those left out."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in LEFT_OUT]


def left_out() -> dict[str, str]:
    """Return which model types of the installed transformers are left out, and why."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {kind: why for kind, why in LEFT_OUT.items() if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer of bytes and of a few letters, with ChatML as its template."""
    from tunesmith.models.new_tokenizer import make_tokenizer
    from tunesmith.models.schema import NewTokenizer

    return make_tokenizer(NewTokenizer(vocabulary_size=300), ["the quick brown fox jumps over the lazy dog"])


def tiny_config(kind: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Return the configuration of the model type *kind* with tiny sizes and the tokenizer's special tokens."""
    from transformers import CONFIG_MAPPING

    # the tokenizer has no beginning, but some configurations will not do without
    special = {
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return _shrink(CONFIG_MAPPING[kind], special)


def _shrink(config_class: type[PreTrainedConfig], special: dict[str, Any]) -> PreTrainedConfig:
    from transformers import PreTrainedConfig

    usual = config_class()
    values: dict[str, Any] = {"is_decoder": True} if "is_decoder" in _names(config_class) else {}
    unused = iter(range(VOCABULARY - 60, 0, -1))  # bytes that no text in Latin letters has
    for name in _names(config_class):
        default = vars(usual).get(name)
        if name in special:
            values[name] = special[name]
        elif name.endswith(("_token_id", "_token_index")) and isinstance(default, int):
            values[name] = next(unused)
        elif name in _SMALL and isinstance(default, int) and default > _SMALL[name] and _asked(config_class, name):
            values[name] = _SMALL[name]
    for name in usual.sub_configs:
        if isinstance(inner := vars(usual).get(name), PreTrainedConfig):
            values[name] = _shrink(type(inner), special).to_dict()
    if "kv_lora_rank" in values:  # every head has keys of its own, made from one latent vector
        values["num_key_value_heads"] = values["num_attention_heads"]
    values |= _layer_lists(usual)
    values |= SIZES.get(config_class.model_type, {})
    return config_class(**values)


def _names(config_class: type[PreTrainedConfig]) -> list[str]:
    """Return what the configuration takes; transformers makes every one of them a dataclass."""
    assert is_dataclass(config_class)
    return [field.name for field in fields(config_class) if field.init]


def _asked(config_class: type[PreTrainedConfig], name: str) -> bool:
    """Say whether the field has a number of its own, and not one that is computed where it is None."""
    return next(field.default for field in fields(config_class) if field.name == name) is not None


def _layer_lists(usual: PreTrainedConfig) -> dict[str, Any]:
    """Return the lists with an entry for each layer, cut down to the first layers that differ in any of them."""
    count = vars(usual).get("num_hidden_layers")
    lists = {
        name: value
        for name in _names(type(usual))
        if isinstance(value := vars(usual).get(name), list)
        and len(value) == count
        and all(isinstance(each, str | float | bool) or each in (0, 1) for each in value)
    }
    seen: dict[tuple[Any, ...], int] = {}
    for index, kinds in enumerate(zip(*lists.values(), strict=True)):
        seen.setdefault(tuple(map(str, kinds)), index)
    if not lists:
        return {}
    chosen = sorted(seen.values())
    chosen += [index for index in range(count) if index not in chosen][: max(0, 2 - len(chosen))]
    cut = {name: [value[index] for index in sorted(chosen)] for name, value in lists.items()}
    return {**cut, "num_hidden_layers": len(chosen)}


def tiny_model(kind: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a causal language model of the type *kind*, of a few thousand random weights, the same ones every time."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(kind, tokenizer), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(_GAIN)
    return model

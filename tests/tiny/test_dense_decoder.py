"""Our own forward pass for the dense family computes what transformers' modules do, and stores less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.engine.activations import checkpoint_blocks
from tunesmith.engine.check import _drop_wrong_decoder
from tunesmith.engine.example import Example
from tunesmith.engine.lora import fuse_lora
from tunesmith.engine.model import PackModel, pack_arguments
from tunesmith.engine.pack import build_packs
from tunesmith.templates.tokens import TokenSequence

SIZES = {
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-scaled-rotation": ("llama", {"rope_parameters": SCALED}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-windowed": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3-wide-heads": ("qwen3", {"head_dim": 16}),
}


def make_base(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose norms and biases are not their initial ones, so that every part of a layer shows."""
    kind, sizes = MEMBERS[name]
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **sizes}))
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return base.to(dtype)


def make_model(name: str, dtype: torch.dtype = torch.float32, *, lora: bool = True, **options: Any) -> PackModel:
    base = model = make_base(name, dtype)
    if lora:
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **options))
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = parameter.data.float()
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.1)
    packed = PackModel(model, base)
    packed.train()
    return packed


def make_pack(*, shared: int = 12, longest: int = 20) -> Any:
    """Sequences of a few lengths behind one beginning."""
    draw = torch.Generator().manual_seed(1)
    start = torch.randint(3, 97, (shared,), generator=draw).tolist()
    examples = []
    for length in range(4, longest, 3):
        tokens = start + torch.randint(3, 97, (length,), generator=draw).tolist()
        examples.append(Example((TokenSequence.trained_from(tokens, shared + 1),)))
    (pack,) = build_packs(examples, "prefix", budget=2**31)
    return pack.to(torch.device("cpu"))


def gradients(model: PackModel, *, autocast: bool = False) -> dict[str, torch.Tensor]:
    """The gradient of a weighted sum of log-probabilities by every weight that trains."""
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model(**pack_arguments(make_pack()))
    weights = {name: p for name, p in model.model.named_parameters() if p.requires_grad}
    total = (found * torch.linspace(0.5, 1.5, len(found))).sum()
    return dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True))


def by_transformers(model: PackModel, *, autocast: bool = False) -> dict[str, torch.Tensor]:
    """The same through transformers' modules."""
    decoder, model.decoder = model.decoder, None
    try:
        return gradients(model, autocast=autocast)
    finally:
        model.decoder = decoder


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of a weight's gradient, relative to its norm."""
    assert found.keys() == expected.keys()
    return max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in expected)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_equal_transformers(name, lora):
    model = make_model(name, lora=lora)

    assert model.decoder is not None
    assert distance(gradients(model), by_transformers(model)) < 1e-5


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("name", ["qwen3", "qwen2"])
def test_under_autocast_gradients_are_as_near_to_float32_as_transformers(name, lora):
    exact = by_transformers(make_model(name, lora=lora))
    model = make_model(name, torch.bfloat16 if lora else torch.float32, lora=lora)

    ours, theirs = (distance(f(model, autocast=True), exact) for f in (gradients, by_transformers))
    assert ours < 1.5 * theirs + 0.01


def test_dropout_is_drawn_for_each_adapter_and_its_gradient_is_that_of_the_draw():
    model = make_model("qwen3", lora_dropout=0.3)
    once, again = gradients(model), gradients(model)
    weight = next(p for n, p in model.model.named_parameters() if "q_proj.lora_A" in n)
    name = next(n for n, p in model.model.named_parameters() if p is weight)

    def value() -> torch.Tensor:
        torch.manual_seed(2)
        found = model(**pack_arguments(make_pack()))
        return (found * torch.linspace(0.5, 1.5, len(found))).sum().double()

    direction = torch.randn_like(weight)
    with torch.enable_grad():
        weight.data.add_(direction, alpha=1e-3)
        above = value().detach()
        weight.data.sub_(direction, alpha=2e-3)
        below = value().detach()

    assert distance(once, again) == 0
    assert distance(once, gradients(make_model("qwen3"))) > 0.01
    torch.testing.assert_close((above - below) / 2e-3, (once[name] * direction).sum().double(), rtol=0.02, atol=0.02)


def test_what_is_not_plain_goes_through_transformers():
    """DoRA, disabled and merged adapters, validation, and layers that something else runs."""

    def runs(model: PackModel) -> bool:
        calls = []
        layer = model.base.base_model.layers[0]
        handle = layer.register_forward_hook(lambda *_: calls.append(1))
        try:
            model(**pack_arguments(make_pack()))
        finally:
            handle.remove()
        return not calls

    model = make_model("llama")

    assert runs(model)
    with torch.no_grad():
        assert not runs(model)
    assert not runs(make_model("llama", use_dora=True))
    merged = make_model("llama")
    merged.model.merge_adapter()
    assert not runs(merged)
    layer = model.base.base_model.layers[1]
    layer.forward = lambda *args, **kwargs: type(layer).forward(layer, *args, **kwargs)
    assert not runs(model)


def test_other_families_have_no_decoder():
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("granite", **SIZES))

    assert PackModel(base, base).decoder is None


def test_it_is_switched_off_where_it_disagrees():
    class Wrong:
        def __init__(self, decoder: Any) -> None:
            self.decoder = decoder

        def hidden_states(self, *given: Any, **options: Any) -> torch.Tensor:
            return self.decoder.hidden_states(*given, **options) * 1.5

    model, accelerator = make_model("qwen3"), Accelerator(cpu=True)
    examples = make_pack().examples

    assert _drop_wrong_decoder(model, examples, "prefix", accelerator) == []
    assert model.decoder is not None
    model.decoder = Wrong(model.decoder)
    (notice,) = _drop_wrong_decoder(model, examples, "prefix", accelerator)
    assert "disagrees with transformers'" in notice
    assert model.decoder is None


def test_checkpointing_changes_no_gradient():
    model = make_model("qwen3")
    expected = gradients(model)
    checkpoint_blocks(model.base)

    assert distance(gradients(model), expected) < 1e-6


def stored_bytes(model: PackModel) -> int:
    """What a forward pass keeps beside the weights, each memory once."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = model(**pack_arguments(make_pack(longest=80)))
    del held
    return sum(kept.values())


def test_it_stores_far_less_than_fused_modules():
    model = make_model("qwen3")
    fuse_lora(model.model)
    ours = stored_bytes(model)
    model.decoder = None

    assert ours < 0.7 * stored_bytes(model)

"""Fused LoRA layers compute what peft's own do."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tunesmith.engine.lora import fuse_lora, unfuse_lora


def make_model(*, bias: bool = False, **options):
    """Two linear layers with LoRA whose B is not zero, so that every part of the layer shows."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(12, 20, bias=bias), nn.ReLU(), nn.Linear(20, 8, bias=bias))
    model = get_peft_model(layers, LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"], **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def outcome(model, x):
    """The output, and the gradients of the input and of every adapter."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = model(x)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [out, *torch.autograd.grad((out * torch.arange(8.0)).sum(), [x, *trained])]


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_pefts(bias):
    model, x = make_model(bias=bias), torch.randn(2, 5, 12)
    expected = outcome(model, x)

    assert fuse_lora(model) == 2
    for one, other in zip(outcome(model, x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_bfloat16_under_autocast_stays_close():
    model, x = make_model(), torch.randn(2, 5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        fuse_lora(model)
        found = model(x)

    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_dropout_is_dropout():
    """The mean over many draws is the layer without dropout, and a gradient belongs to the mask of its own draw."""
    x = torch.randn(3, 12)
    model = make_model(lora_dropout=0.5)
    fuse_lora(model)
    layer = model.base_model.model[0]

    def draw(given: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return layer(given).sum()

    assert not torch.equal(layer(x), layer(x))
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, layer.eval()(x), rtol=0.1, atol=0.25)
    layer.train()
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(draw(given), given)
    step = torch.randn_like(x) * 1e-2
    torch.testing.assert_close(draw(x + step) - draw(x - step), 2 * (gradient * step).sum(), rtol=1e-3, atol=1e-3)


def test_other_kinds_take_pefts_own_way():
    """DoRA, disabled and merged adapters, and inference are left to peft."""
    x = torch.randn(3, 12)

    assert fuse_lora(make_model(use_dora=True)) == 0

    model = make_model()
    base = model.base_model.model
    fuse_lora(model)
    with torch.no_grad():
        tuned = model(x)
    with model.disable_adapter():
        untuned = model(x)
    plain = nn.functional.linear(
        torch.relu(nn.functional.linear(x, base[0].base_layer.weight)), base[2].base_layer.weight
    )
    torch.testing.assert_close(untuned, plain)
    torch.testing.assert_close(model(x), tuned)
    model.merge_adapter()
    torch.testing.assert_close(model(x), tuned)


def test_unfusing_gives_pefts_forward_back():
    model, x = make_model(), torch.randn(3, 12)
    expected = outcome(model, x)
    fuse_lora(model)
    unfuse_lora(model)

    assert all("forward" not in vars(m) for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(outcome(model, x), expected, strict=True))

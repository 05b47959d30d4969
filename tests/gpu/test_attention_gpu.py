"""On a GPU: the compiled kernels agree with the mask over all pairs, forward and backward."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tiny"))
from test_attention import MODELS, attended, far, gradients, model

from tunesmith.engine.attention import PackAttention
from tunesmith.engine.example import Example
from tunesmith.engine.pack import build_packs
from tunesmith.templates.tokens import TokenSequence

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
# GPT-2's code asks a mask for its number of dimensions; the check before the first step finds out
NO_FLEX = {"gpt2"}
# capped scores, sinks, and heads whose keys and values differ in size
NO_VARLEN = {"gemma2, window, cap", "gpt-oss, window, sinks", "deepseek-v3"}


@pytest.fixture(scope="module")
def long_examples() -> list[Example]:
    """Several blocks of 128 tokens: shared prompts longer than one, sequences that begin within one."""
    generator = torch.Generator().manual_seed(2)

    def text(length: int) -> list[int]:
        return torch.randint(2, 60, (length,), generator=generator).tolist()

    prompt, more = text(150), text(40)
    texts = [prompt + text(60), prompt + more + text(9), prompt + more + text(130), text(3), text(300), text(128)]
    return [Example((TokenSequence.trained_from(each, 1),)) for each in texts]


def compare(name: str, backend: str, layout: str, examples: list[Example], dtype: torch.dtype) -> tuple[float, float]:
    """How far hidden states and gradients of *backend* are from the dense ones."""
    base = model(name)[0].to("cuda", dtype)
    (pack,) = build_packs(examples, layout, 10_000)
    pack = pack.to("cuda")
    attention = PackAttention(base, (backend,))
    assert attention.names == (backend, "dense"), attention.why()
    assert attention.choose(pack.depth, pack.reach).name == backend
    found = attended(base, attention, pack)
    found_gradients = gradients(base, found)
    with attention.only_reference():
        expected = attended(base, attention, pack)
    return far(found, expected), far(found_gradients, gradients(base, expected))


@pytest.mark.parametrize("layout", ["prefix", "packed"])
@pytest.mark.parametrize("name", sorted(set(MODELS) - NO_FLEX))
def test_flex_agrees_with_the_mask_over_all_pairs(name, layout, long_examples):
    hidden, gradient = compare(name, "flex", layout, long_examples, torch.float32)

    # triton adds in another order than the products over all pairs
    assert hidden <= 1e-4
    assert gradient <= 1e-3


@pytest.mark.parametrize("name", sorted(set(MODELS) - NO_VARLEN))
def test_varlen_agrees_with_the_mask_over_all_pairs(name, long_examples):
    """In bfloat16, the only kind it computes: mistakes are off by the values themselves."""
    hidden, gradient = compare(name, "varlen", "packed", long_examples, torch.bfloat16)

    assert hidden <= 0.1
    assert gradient <= 0.3


@pytest.mark.parametrize("name", ["qwen3", "mistral, window", "llama4, chunks"])
def test_varlen_is_as_near_to_exact_as_dense_is(name, long_examples):
    """Both in bfloat16, against dense in float32: no further off than twice the rounding."""
    base = model(name)[0].to("cuda", torch.float32)
    (pack,) = build_packs(long_examples, "packed", 10_000)
    pack = pack.to("cuda")
    with torch.no_grad():
        exact = attended(base, PackAttention(base, ()), pack)
        base.to(torch.bfloat16)
        dense = attended(base, PackAttention(base, ()), pack)
        varlen = attended(base, PackAttention(base, ("varlen",)), pack)

    assert far(varlen, exact) <= 2 * far(dense, exact)


def test_one_kernel_serves_every_pack(long_examples):
    """Packs of other lengths and layers of other spans compile a few times, not once each."""
    from torch._dynamo.utils import counters

    base = model("gemma3, window")[0].to("cuda", torch.float32)
    attention = PackAttention(base, ("flex",))
    for count in range(1, len(long_examples) + 1):
        (pack,) = build_packs(long_examples[:count], "packed", 10_000)
        pack = pack.to("cuda")
        gradients(base, attended(base, attention, pack))
        if count == 3:
            counters.clear()

    assert not counters["frames"]["total"]

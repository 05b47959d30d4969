"""Architectures proven, not claimed: a tiny model of every causal language model goes through a whole run.

A few stand for the rest here; ``make test-architectures`` takes them all, and bench/architectures.py writes the page.
"""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Origin
from tunesmith.engine.check import choose_layout
from tunesmith.engine.example import Example
from tunesmith.engine.model import PackModel
from tunesmith.methods._layers import linear_layers
from tunesmith.methods._whole import transformer_blocks
from tunesmith.templates.tokens import TokenSequence

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from architectures import Proof, page, prove  # noqa: E402
from tiny_models import LEFT_OUT, architectures, left_out, tiny_model, tiny_tokenizer  # noqa: E402

# one for each thing that is done in a way of its own, and how it ends: latent keys, sinks, state-space layers beside
# attention, no attention that can be masked, towers for images, filling that is looked at
SAMPLE = {
    "deepseek_v3": ("prefix", "segments"),
    "gpt_oss": ("prefix", "dense"),
    "falcon_h1": ("padded", "own"),
    "bloom": ("padded", "own"),
    "gemma3": ("prefix", "segments"),
    "cpmant": ("single", "own"),
}
SENTENCES = (range(5, 25), range(30, 70), range(80, 100))


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in SAMPLE else pytest.mark.architectures) for k in architectures()]
)
def test_an_architecture_trains_packs_saves_and_merges(kind, tmp_path):
    proof = prove(kind, tmp_path)

    assert not proof.faults
    assert proof.adapted
    assert SAMPLE.get(kind, (proof.layout, proof.attention)) == (proof.layout, proof.attention)


def test_what_is_left_out_has_a_reason():
    assert all(LEFT_OUT.values())
    assert not set(architectures()) & set(left_out())
    assert len(architectures()) > 100


@pytest.mark.architectures
@pytest.mark.parametrize("kind", sorted(set(left_out()) - {"xlnet"}))
def test_what_is_left_out_cannot_be_proven(kind, tmp_path):
    """So that nobody goes on believing it when it can."""
    assert prove(kind, tmp_path).faults


def test_the_page_has_every_architecture():
    text = (ROOT / "docs" / "reference" / "architectures.md").read_text("utf-8")
    if f"transformers {version('transformers')}," not in text:
        pytest.skip("written with another version of transformers")

    for kind in (*architectures(), *left_out()):
        assert f"\n| {kind} | " in text, kind


def test_the_page_counts_and_explains():
    proofs = [
        Proof("one", "OneForCausalLM", "prefix", "segments", 4, (3.0, 2.5)),
        Proof("two", "TwoForCausalLM", "padded", "own", 2, (3.0, 2.5), ("off by 1.2e-01: padded instead",)),
        Proof("three", faults=("training: it fell over",)),
    ]
    text = page(proofs, "a command")

    assert re.search(r"2 of \d+ proven; 1 packed \(1 by segments\), 1 padded, 0 one sequence a pass", text)
    assert "| one | OneForCausalLM | prefix | segments | 4 | 3.00 → 2.50 |  |" in text
    assert "| two | TwoForCausalLM | padded | own | 2 | 3.00 → 2.50 | 1 |" in text
    assert "1. off by …: padded instead" in text
    assert "| three | training: it fell over |" in text


def names_of(kind: str) -> set[str]:
    return set(linear_layers(tiny_model(kind, tiny_tokenizer())))


@pytest.mark.parametrize("kind", ["gemma3", "git", "phi4_multimodal"])
def test_towers_for_images_and_sound_are_left_alone(kind):
    """No text goes through them, so that they would get no gradient."""
    found = names_of(kind)

    assert found
    assert not [name for name in found if re.search("vision|image|audio|projector|visual", name)]


@pytest.mark.parametrize(
    ("kind", "left", "kept"),
    [
        ("bart", "encoder_attn", "self_attn.q_proj"),  # attention to an encoder that is not there
        ("glm_moe_dsa", "indexer", "self_attn.o_proj"),  # chooses tokens, without a gradient
        ("deepseek_v4", "o_a_proj", "o_b_proj"),  # a matrix for each group of heads
        ("mamba2", "out_proj", "in_proj"),  # fused kernels take its matrix past the adapter
        ("zamba", "shared_transf", "in_proj"),  # one matrix in several layers: several adapters cannot be merged
        ("cpmant", "lm_head", "project_q"),  # the embedding, which the model does not call its output head
    ],
)
def test_what_adapters_would_be_lost_on_is_left_alone(kind, left, kept):
    found = names_of(kind)

    assert not [name for name in found if left in name.split(".")]
    assert [name for name in found if kept in name]


@pytest.mark.parametrize(("kind", "blocks"), [("gemma3", "model.language_model.layers"), ("git", "git.encoder.layer")])
def test_blocks_are_those_that_read_text(kind, blocks):
    model = tiny_model(kind, tiny_tokenizer())

    assert transformer_blocks(model) is model.get_submodule(blocks)


def layout_of(kind: str, *examples: Example) -> tuple[str, list[str]]:
    model = tiny_model(kind, tiny_tokenizer())
    few = examples or tuple(Example((TokenSequence.trained_from(list(text), 4),)) for text in SENTENCES)
    return choose_layout(PackModel(model, model), list(few), "prefix", Accelerator(cpu=True))


@pytest.mark.parametrize(
    ("kind", "layout", "why"),
    [
        ("big_bird", "padded", "refuses packs longer than a text it is made for"),
        ("xlm", "padded", "it refuses the mask"),  # with an assertion
        ("cpmant", "single", "this model looks at the filling: one sequence a pass instead"),
    ],
)
def test_a_layout_that_does_not_fit_is_named(kind, layout, why):
    found, notices = layout_of(kind)

    assert layout == found
    assert any(why in text for text in notices)


def test_sequences_that_need_each_other_are_refused_where_rows_cannot_be_filled():
    several = Example(
        tuple(TokenSequence.trained_from(list(text), 4) for text in SENTENCES[:2]), Origin("train.json", 7)
    )
    with pytest.raises(UserError, match=r"looks at the filling of rows, and train\.json:7 has several sequences"):
        layout_of("cpmant", several)


def test_filling_gives_no_gradient_that_is_no_number():
    """Gemma 3n divides by the spread of what the filling becomes; a padding token's row is zero."""
    from tunesmith.engine.model import pack_arguments
    from tunesmith.engine.pack import build_packs

    model = tiny_model("gemma3n_text", tiny_tokenizer())
    packed = PackModel(model, model)
    examples = [Example((TokenSequence.trained_from(list(text), 4),)) for text in SENTENCES]
    for layout in ("padded", "packed"):
        (pack,) = build_packs(examples, layout, 2**20)
        total = packed(**pack_arguments(pack.to(torch.device("cpu")))).sum()
        gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)

        assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None), layout

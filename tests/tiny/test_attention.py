"""Every attention backend gives what a mask over all pairs gives, for every kind of architecture it can serve."""

from __future__ import annotations

import functools

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.core.errors import RecipeError
from tunesmith.engine.attention import PackAttention, flex, segments, varlen
from tunesmith.engine.attention._base import Span, is_shared, sees
from tunesmith.engine.check import choose_layout
from tunesmith.engine.example import Example
from tunesmith.engine.model import PackModel
from tunesmith.engine.pack import build_packs
from tunesmith.recipe.read import recipe_from_values
from tunesmith.run.machine import Machine
from tunesmith.run.plan import make_plan
from tunesmith.templates.tokens import TokenSequence

_SIZES = {
    "vocab_size": 60,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 16}
_ODD = {**_GROUPED, "num_attention_heads": 6, "hidden_size": 96}
_WINDOW = {**_GROUPED, "sliding_window": 6}
_MIXED = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
_DEEPSEEK = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
_LLAMA4 = {
    **_GROUPED,
    "intermediate_size_mlp": 48,
    "num_local_experts": 2,
    "attention_chunk_size": 8,
    "layer_types": ["chunked_attention", "full_attention"],
}

MODELS: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _GROUPED),
    "qwen2": ("qwen2", _ODD),
    "qwen3": ("qwen3", _GROUPED),
    "mistral, window": ("mistral", _WINDOW),
    "gemma2, window, cap": ("gemma2", {**_MIXED, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}),
    "gemma3, window": ("gemma3_text", {**_MIXED, "query_pre_attn_scalar": 16}),
    "gpt-oss, window, sinks": ("gpt_oss", {**_MIXED, "num_local_experts": 4, **_EXPERTS, "rope_parameters": _ROPE}),
    "phi3": ("phi3", {**_SIZES, "num_key_value_heads": 2}),
    "olmo2": ("olmo2", _GROUPED),
    "glm4": ("glm4", _GROUPED),
    "granite": ("granite", {**_GROUPED, "attention_multiplier": 0.2}),
    "cohere2, window": ("cohere2", _MIXED),
    "starcoder2": ("starcoder2", {**_SIZES, "num_key_value_heads": 2}),
    "gpt2": ("gpt2", {**_SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gpt-neox": ("gpt_neox", _SIZES),
    "qwen3-moe": ("qwen3_moe", {**_GROUPED, "num_experts": 4, **_EXPERTS}),
    "deepseek-v3": ("deepseek_v3", {**_SIZES, **_EXPERTS, **_LATENT, **_DEEPSEEK}),
    "deepseek-v3, long values": ("deepseek_v3", {**_SIZES, **_EXPERTS, **_LATENT, **_DEEPSEEK, "v_head_dim": 48}),
    "llama4, chunks": ("llama4_text", _LLAMA4),
}
# what runs here, and what it cannot serve
NO_SEGMENTS = {"gemma2, window, cap", "gpt-oss, window, sinks"}
DENSE_AFTER_ALL = {"deepseek-v3, long values": "values longer than keys"}
# transformers computes the sums that sinks need on a GPU only; GPT-2's code asks a mask for its number of dimensions
NO_FLEX_HERE = {"gpt-oss, window, sinks", "gpt2"}
ROUNDING = 1e-5


@functools.cache
def model(name: str) -> tuple[torch.nn.Module, str]:
    """A random model whose weights are big enough that every mistake shows, and the attention it came with."""
    kind, sizes = MODELS[name]
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return made, made.config._attn_implementation


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Sequences that share a long prompt and part of one another, and some that share nothing."""
    generator = torch.Generator().manual_seed(1)

    def text(length: int) -> list[int]:
        return torch.randint(2, 60, (length,), generator=generator).tolist()

    prompt, more = text(30), text(11)
    texts = [prompt + text(4), prompt + more + text(20), prompt + more + text(3), text(5), text(70), text(2), prompt]
    return [Example((TokenSequence.trained_from(each, 1),)) for each in texts]


def attended(base, attention: PackAttention, pack) -> torch.Tensor:
    """The hidden states of a pack's own tokens."""
    packed = PackModel(base, base, ("dense",))
    packed.attention = attention
    return packed._run(base.base_model, pack.tokens, pack.depth, pack.reach, 0)[0][0, : len(pack.tokens)]


def gradients(base, hidden: torch.Tensor) -> torch.Tensor:
    """The gradients of all weights from a fixed random sum of hidden states, in one vector."""
    base.zero_grad()
    torch.manual_seed(9)
    (hidden * torch.randn_like(hidden)).sum().backward()
    return torch.cat([p.grad.flatten() for p in base.parameters() if p.grad is not None])


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("layout", ["prefix", "packed"])
@pytest.mark.parametrize("name", sorted(set(MODELS) - NO_SEGMENTS - set(DENSE_AFTER_ALL)))
def test_segments_agree_with_the_mask_over_all_pairs(name, layout, examples):
    base, _ = model(name)
    (pack,) = build_packs(examples, layout, 10_000)
    pack = pack.to("cpu")
    attention = PackAttention(base, ("segments",))
    assert attention.names == ("segments", "dense")
    found = attended(base, attention, pack)
    found_gradients = gradients(base, found)
    with attention.only_reference():
        expected = attended(base, attention, pack)

    assert far(found, expected) <= ROUNDING
    assert far(found_gradients, gradients(base, expected)) <= ROUNDING


@pytest.mark.parametrize("layout", ["prefix", "packed"])
@pytest.mark.parametrize("name", sorted(set(MODELS) - NO_FLEX_HERE))
def test_flex_agrees_with_the_mask_over_all_pairs(name, layout, examples, monkeypatch):
    """Its mathematics, forward: it has no backward pass on a CPU, and compiling it takes seconds a model."""
    base, _ = model(name)
    monkeypatch.setattr(flex.FlexAttention, "refusal", lambda self: None)
    (pack,) = build_packs(examples, layout, 10_000)
    pack = pack.to("cpu")
    attention = PackAttention(base, ("flex",))
    assert attention.names == ("flex", "dense")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        found = attended(base, attention, pack)
    with torch.no_grad(), attention.only_reference():
        expected = attended(base, attention, pack)

    assert far(found, expected) <= ROUNDING


@pytest.mark.parametrize("name", sorted(NO_SEGMENTS))
def test_layers_that_segments_cannot_compute_keep_the_mask_over_all_pairs(name):
    base, own = model(name)
    attention = PackAttention(base, ("segments",))

    assert attention.names == ("dense",)
    assert "cap their scores or have sinks" in attention.why()
    assert base.config._attn_implementation in (own, "tunesmith_packs_plain")


@pytest.mark.parametrize("name", sorted(DENSE_AFTER_ALL))
def test_a_backend_that_a_layer_refuses_says_why(name, examples):
    base, own = model(name)
    (pack,) = build_packs(examples, "prefix", 10_000)
    pack, attention = pack.to("cpu"), PackAttention(base, ("segments",))

    with pytest.raises(NotImplementedError, match=DENSE_AFTER_ALL[name]):
        attended(base, attention, pack)
    attention.drop("segments", "it refuses the mask")
    assert base.config._attn_implementation == own
    assert "not segments: it refuses the mask" in attention.why()


def test_attention_that_is_dropped_in_training_goes_through_all_pairs(examples, monkeypatch):
    """No fast kernel drops attention weights: with a rate next to nothing the result is the dense one."""
    base, _ = model("qwen3")
    monkeypatch.setattr(flex.FlexAttention, "refusal", lambda self: None)
    (pack,) = build_packs(examples, "prefix", 10_000)
    pack = pack.to("cpu")
    reference = PackAttention(base, ())
    expected = attended(base, reference, pack)
    for layer in base.model.layers:
        monkeypatch.setattr(layer.self_attn, "attention_dropout", 1e-9)
    base.train()
    for name in ("segments", "flex"):
        found = attended(base, PackAttention(base, (name,)), pack)

        assert far(found, expected) <= ROUNDING, name
    base.eval()


@st.composite
def forests(draw, multiple: int = 128, shared: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and reach of a random forest, filled up as the engine fills packs."""
    depth: list[int] = []
    reach: list[int] = []

    def branch(start: int, levels: int) -> None:
        first, length = len(depth), draw(st.integers(1, 200))
        depth.extend(range(start, start + length))
        reach.extend([0] * length)
        if shared and levels:
            for _ in range(draw(st.integers(0, 3))):
                branch(start + length, levels - 1)
        reach[first : first + length] = [len(depth)] * length

    for _ in range(draw(st.integers(1, 4))):
        branch(0, 2)
    extra = -len(depth) % multiple
    depth.extend(range(extra))
    reach.extend([len(depth)] * extra)
    return torch.tensor(depth), torch.tensor(reach)


SPANS = st.one_of(
    st.just(Span()),
    st.integers(1, 300).map(lambda window: Span(window=window)),
    st.integers(1, 300).map(lambda chunk: Span(chunk=chunk)),
)


@settings(max_examples=60, deadline=None)
@given(forests(), SPANS)
def test_a_block_mask_holds_the_pairs_of_its_forest_and_no_others(forest, span):
    """As the kernel reads it: full blocks are seen whole, partial ones by the rule, all others not at all."""
    depth, reach = forest
    expected = sees(depth, reach, span.oldest(depth))
    mask = flex.block_mask(depth, reach, span.oldest(depth))
    rule = flex.block_sees(mask, len(depth), depth.device)
    blocks = len(depth) // flex.BLOCK

    def dense(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Blocks as pairs, ``[N, N]``; the first *counts* of *indices* count, and none twice."""
        chosen = torch.zeros(blocks, blocks, dtype=torch.bool)
        for row in range(blocks):
            chosen[row, indices[0, 0, row, : counts[0, 0, row]].long()] = True
        assert int(chosen.sum()) == int(counts.sum())
        return chosen.repeat_interleave(flex.BLOCK, 0).repeat_interleave(flex.BLOCK, 1)

    full = dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    partial = dense(mask.kv_num_blocks, mask.kv_indices)
    assert not bool((full & partial).any())
    assert torch.equal(expected, full | (partial & rule))
    # the backward pass goes by queries
    assert torch.equal(full, dense(mask.full_q_num_blocks, mask.full_q_indices).T)
    assert torch.equal(partial, dense(mask.q_num_blocks, mask.q_indices).T)


@settings(max_examples=30, deadline=None)
@given(forests())
def test_without_windows_only_blocks_with_something_to_see_are_visited(forest):
    depth, reach = forest
    mask = flex.block_mask(depth, reach, torch.zeros_like(depth))
    blocks = len(depth) // flex.BLOCK
    pairs = sees(depth, reach, torch.zeros_like(depth)).view(blocks, flex.BLOCK, blocks, flex.BLOCK)

    assert int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) == int(pairs.any(3).any(1).sum())


@settings(max_examples=60, deadline=None)
@given(forests(multiple=1, shared=False), SPANS)
def test_the_sequences_of_varlen_attention_are_those_of_the_forest(forest, span):
    """Causal attention in each stretch, back as far as its window, sees the pairs of the forest."""
    depth, reach = forest
    bounds, longest, window = varlen.cut(depth, span.oldest(depth), span.window)
    at = torch.arange(len(depth))
    stretch = torch.bucketize(at, bounds.long(), right=True)
    found = (stretch[:, None] == stretch[None, :]) & (at[None, :] <= at[:, None])
    if window:
        found &= at[:, None] - at[None, :] < window

    assert not is_shared(depth, reach)
    assert bounds.dtype == torch.int32
    assert longest == int(torch.bincount(stretch).max())
    assert torch.equal(sees(depth, reach, span.oldest(depth)), found)


@settings(max_examples=60, deadline=None)
@given(forests(multiple=1))
def test_a_pack_shares_something_iff_a_token_has_two_next_ones(forest):
    depth, reach = forest
    before = sees(depth, reach, torch.zeros_like(depth)) & ~torch.eye(len(depth), dtype=torch.bool)
    parents = (before * torch.arange(len(depth))).amax(1)[before.any(1)]

    assert is_shared(depth, reach) == (len(parents) != len(parents.unique()))


def test_what_is_not_shared_goes_to_varlen_and_the_rest_to_flex(examples, monkeypatch):
    base, _ = model("llama")
    for kind in (flex.FlexAttention, varlen.VarlenAttention):
        monkeypatch.setattr(kind, "refusal", lambda self: None)
    attention = PackAttention(base, ("varlen", "flex", "dense"))
    chosen = {}
    for layout in ("prefix", "packed"):
        (pack,) = build_packs(examples, layout, 10_000)
        pack = pack.to("cpu")
        chosen[layout] = attention.choose(pack.depth, pack.reach).name

    assert chosen == {"prefix": "flex", "packed": "varlen"}
    assert attention.why().startswith("varlen where nothing is shared, else flex, else a mask over all pairs")


def checked(base, examples, *allowed: str) -> tuple[str, list[str], PackAttention]:
    """What the check before the first step makes of a model that may use these backends."""
    AcceleratorState._reset_state()
    packed = PackModel(base, base, allowed)
    layout, notices = choose_layout(packed, examples, "prefix", Accelerator(cpu=True, mixed_precision="no"))
    return layout, notices, packed.attention


def wrong_forward(module, query, key, value, mask, **kwargs):
    return query.transpose(1, 2) * 0.5, None


def wrong_backward(module, query, key, value, mask, scaling=None, attend=segments.attend, **kwargs):
    """Right, but for a gradient that is twice what it should be."""
    out, _ = attend(module, query, key, value, mask, scaling, **kwargs)
    return out * 2 - out.detach(), None


@pytest.mark.parametrize(("kernel", "what"), [(wrong_forward, "log-probabilities"), (wrong_backward, "gradients")])
def test_a_kernel_that_is_wrong_is_switched_off_with_a_notice(kernel, what, examples, monkeypatch):
    base, own = model("qwen3")
    monkeypatch.setattr(segments, "attend", kernel)
    layout, notices, attention = checked(base, examples, "segments")

    assert (layout, attention.names) == ("prefix", ("dense",))
    assert own == base.config._attn_implementation
    assert len(notices) == 1
    assert f"attention by segments does not fit this model ({what} off by" in notices[0]


def test_a_kernel_without_a_backward_pass_here_is_switched_off_before_the_first_step(examples, monkeypatch):
    base, _ = model("qwen3")
    monkeypatch.setattr(flex.FlexAttention, "refusal", lambda self: None)
    with torch.compiler.set_stance("force_eager"):
        layout, notices, attention = checked(base, examples, "flex")

    assert (layout, attention.names) == ("prefix", ("dense",))
    assert notices == ["attention by flex does not fit this model (it refuses the mask): another instead"]


def test_all_backends_off_is_the_reference(examples):
    base, _ = model("llama")
    layout, notices, attention = checked(base, examples, "dense")

    assert (layout, notices, attention.names) == ("prefix", [], ("dense",))


@pytest.fixture
def plan(data):
    """Settle a recipe with these settings of the engine for a machine with this device."""

    def settle(device: str, **engine):
        values = {"model": "owner/name", "data": {"train": data[0]}, "output": "run", "engine": engine}
        machine = Machine(device=device, name=f"a {device}", bfloat16=device == "cuda")
        return make_plan(recipe_from_values(values, "test"), machine, 10, validated=False)

    return settle


@pytest.mark.parametrize(
    ("device", "engine", "expected"),
    [
        ("cpu", {}, ("segments", "dense")),
        ("cuda", {}, ("varlen", "flex", "dense")),
        ("cuda", {"precision": "float32"}, ("flex", "dense")),
        ("mps", {}, ("dense",)),
        ("cuda", {"attention": "flex"}, ("flex", "dense")),
        ("cpu", {"attention": "dense"}, ("dense",)),
        ("cuda", {"layout": "padded"}, ("own",)),
    ],
)
def test_the_plan_names_the_backends_that_may_be_used(device, engine, expected, plan):
    assert plan(device, **engine).attention == expected


def test_varlen_attention_packs_without_sharing(plan):
    assert plan("cuda", attention="varlen").layout == "packed"


@pytest.mark.parametrize(
    ("device", "engine", "text"),
    [
        ("cpu", {"attention": "flex"}, "flex is for cuda, this machine has cpu"),
        ("cuda", {"attention": "segments"}, "segments is for cpu, this machine has cuda"),
        ("cuda", {"attention": "varlen", "layout": "prefix"}, "varlen cannot share prompts"),
        ("cuda", {"attention": "varlen", "precision": "float32"}, "half precision only"),
        ("cuda", {"attention": "flex", "layout": "padded"}, "flex is for packs"),
    ],
)
def test_attention_that_cannot_work_here_is_refused_before_anything_loads(device, engine, text, plan):
    with pytest.raises(RecipeError, match=text):
        plan(device, **engine)

"""Every optimizer trains, resumes to the bit and says what it costs; each equals its library or its paper's formula."""

from __future__ import annotations

import copy
import inspect
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, Adafactor

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.engine.checkpoint import load_tree, save_tree
from tunesmith.engine.schedule import make_schedule
from tunesmith.engine.stepping import WeightSteps
from tunesmith.optimizers import OPTIMIZERS
from tunesmith.recipe.decay import DECAY_ARGUMENTS, Decay, check_decay
from tunesmith.run.machine import Machine
from tunesmith.run.plan import make_plan
from tunesmith.run.train import resume, train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

bitsandbytes = pytest.importorskip("bitsandbytes")
library = pytest.importorskip("pytorch_optimizer")

NAMES = OPTIMIZERS.names()
HERE = [name for name in NAMES if not list(OPTIMIZERS.get(name)().check_machine("cpu"))]
# settings that make the odd part of an optimizer happen within a few steps of a tiny model
SMALL: dict[str, dict[str, Any]] = {
    "galore": {"rank": 4, "refresh_every": 2},
    "apollo": {"rank": 4, "refresh_every": 2},
    "apollo_mini": {"refresh_every": 2, "scale": 16},
    "badam": {"switch_every": 2},
    "prodigy": {"first_rate": 1e-4},
}
CASES = [(name, SMALL.get(name, {})) for name in HERE] + [
    ("galore", {**SMALL["galore"], "bits": 8}),
    ("apollo", {**SMALL["apollo"], "bits": 8}),
    ("sgd", {"momentum": 0}),
    ("adafactor", {"beta1": 0.9}),
]
every_case = pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{n}-{len(s)}" for n, s in CASES])


def make_model(layers: int = 2, hidden: int = 32) -> torch.nn.Module:
    """A random Qwen3, the same each time."""
    sizes = {"hidden_size": hidden, "intermediate_size": 48, "num_hidden_layers": layers, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    torch.manual_seed(5)
    config = AutoConfig.for_model("qwen3", vocab_size=160, max_position_embeddings=64, **sizes, **heads)
    return AutoModelForCausalLM.from_config(config)


def build(name: str, settings: dict[str, Any], model: torch.nn.Module, rate: float = 2e-3) -> torch.optim.Optimizer:
    spec = OPTIMIZERS.get(name)(**settings)
    return spec.build(model, spec.usual_rate(rate))


def learn(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Train on the same two sequences; return the loss before every step."""
    tokens = torch.randint(160, (2, 24), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def feed(model: torch.nn.Module, step: int) -> None:
    """Give every weight the random gradient of *step*."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 0.1


def moved(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> dict[str, torch.Tensor]:
    """The weights after steps on random gradients."""
    for step in range(steps):
        feed(model, step)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_near(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    before = dict(make_model().named_parameters())
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=tolerance, atol=tolerance)
        assert not torch.equal(before[name], weight), f"{name} did not move"


def decayed(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Matrices with the usual weight decay, vectors without."""
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is kind] for kind in (True, False))
    return [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]


@every_case
def test_every_optimizer_learns_a_small_set_by_heart(name, settings):
    model = make_model()

    losses = learn(model, build(name, settings, model), 30)

    assert losses[-1] < losses[0] - 0.3


@every_case
def test_a_step_takes_no_more_memory_than_a_plan_counts(name, settings):
    """Beside weights, gradients and state, and not half of what it counts either, where that is worth counting."""
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(1024, 64)})
    model["layers"] = torch.nn.ModuleList(torch.nn.Linear(64, 256, bias=False) for _ in range(4))
    optimizer = build(name, settings, model)
    moved(model, optimizer, 2)
    feed(model, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        optimizer.step()
    alive = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    counted = OPTIMIZERS.get(name)(**settings).step_bytes([tuple(p.shape) for p in model.parameters()], "cpu")
    a_weight = 4 * model["embed"].weight.numel()

    assert peak < 1.05 * counted + a_weight * 0.6  # badam makes the state of the next block, which is counted as state
    assert peak > 0.45 * counted - a_weight / 4


@every_case
def test_every_optimizer_goes_on_from_disk_as_if_it_had_never_stopped(name, settings, tmp_path):
    """Three steps, a checkpoint without pickle, three more: the same bits as six steps that saved on their way."""
    whole = make_model()
    optimizer = build(name, settings, whole)
    before = learn(whole, optimizer, 3)
    switch(optimizer, "eval")
    save_tree(tmp_path / "optimizer", optimizer.state_dict())
    weights = copy.deepcopy(whole.state_dict())
    switch(optimizer, "train")
    after = learn(whole, optimizer, 3)

    resumed = make_model()
    fresh = build(name, settings, resumed)
    switch(fresh, "eval")
    resumed.load_state_dict(weights)
    fresh.load_state_dict(load_tree(tmp_path / "optimizer"))
    switch(fresh, "train")
    again = learn(resumed, fresh, 3)

    assert after == again
    assert before[0] != after[0]
    for key, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[key]), key


def switch(optimizer: Any, mode: str) -> None:
    """What accelerate's optimizer does when the loop asks it to."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


@every_case
def test_weights_can_be_stepped_one_by_one_unless_the_optimizer_says_why_not(name, settings):
    """The engine steps a weight as soon as its gradient is complete: the same bits as stepping all at once."""
    together, alone = make_model(), make_model()
    expected = moved(together, build(name, settings, together), 5)
    steps = WeightSteps(build(name, settings, alone), dict(alone.named_parameters()), 0, in_backward=False)
    for step in range(5):
        feed(alone, step)
        steps.step(step)

    same = all(torch.equal(weight, expected[key]) for key, weight in alone.named_parameters())
    assert same == (not OPTIMIZERS.get(name).needs_all_weights)


@every_case
def test_the_bytes_of_state_are_as_many_as_it_says(name, settings):
    model = make_model(layers=4, hidden=64)
    optimizer = build(name, settings, model)
    moved(model, optimizer, 1)
    shapes = [tuple(p.shape) for p in model.parameters()]
    if name == "badam":  # the block whose turn it is may be smaller than the largest
        while optimizer.active_block() != -1:
            moved(model, optimizer, 1)
        moved(model, optimizer, 1)

    unique = {t.data_ptr(): t.nbytes for t in tensors(optimizer.state_dict()) if t.numel() > 1}

    assert pytest.approx(OPTIMIZERS.get(name)(**settings).state_bytes(shapes), rel=0.04, abs=400) == sum(
        unique.values()
    )


def tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):  # bitsandbytes has one table of the 256 values for all weights
        tree = [value for key, value in tree.items() if key not in ("qmap1", "qmap2")]
    return [tensor for item in tree for tensor in tensors(item)] if isinstance(tree, list | tuple) else []


LIBRARIES: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "adamw": lambda model, rate: torch.optim.AdamW(decayed(model), lr=rate, fused=True),
    "adamw_8bit": lambda model, rate: bitsandbytes.optim.AdamW8bit(decayed(model), lr=rate),
    "lion": lambda model, rate: library.Lion(decayed(model), lr=rate),
    "lion_8bit": lambda model, rate: bitsandbytes.optim.Lion8bit(decayed(model), lr=rate),
    "sgd": lambda model, rate: torch.optim.SGD(decayed(model), lr=rate, momentum=0.9, fused=True),
    "adafactor": lambda model, rate: Adafactor(decayed(model), lr=rate, scale_parameter=False, relative_step=False),
    "came": lambda model, rate: library.CAME(decayed(model), lr=rate),
    "adan": lambda model, rate: library.Adan(decayed(model), lr=rate, weight_decouple=True),
    "prodigy": lambda model, rate: library.Prodigy(
        decayed(model), lr=rate, bias_correction=True, safeguard_warmup=True, weight_decay=0.01
    ),
    "schedule_free": lambda model, rate: library.ScheduleFreeAdamW(decayed(model), lr=rate),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_optimizer_of_a_library_is_the_library_used_directly(name):
    ours, theirs = make_model(), make_model()
    rate = OPTIMIZERS.get(name)().usual_rate(2e-3)

    assert_near(moved(theirs, LIBRARIES[name](theirs, rate)), moved(ours, build(name, {}, ours)))


def test_what_is_neither_a_librarys_nor_tested_against_its_formula_below_does_not_exist():
    own = {"galore", "apollo", "apollo_mini", "badam", "adam_mini", "muon"}
    refused_here = {"paged_adamw", "paged_adamw_8bit"}

    assert {*LIBRARIES} | own | refused_here == set(NAMES)


def test_lion_of_two_libraries_is_the_same():
    ours, theirs = make_model(), make_model()
    other = bitsandbytes.optim.Lion(decayed(theirs), lr=4e-4)

    assert_near(moved(theirs, other), moved(ours, build("lion", {}, ours)), 1e-6)


def hidden(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "head" not in name]


def test_muon_is_torchs_muon_for_the_blocks_matrices_and_adamw_for_the_rest():
    ours, theirs = make_model(), make_model()
    inner = hidden(theirs)
    other = [p for p in theirs.parameters() if all(p is not q for q in inner)]
    groups = [{"params": [p for p in other if (p.ndim > 1) is kind]} for kind in (True, False)]
    groups[1]["weight_decay"] = 0.0
    muon = torch.optim.Muon(inner, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.01, fused=True)
    for step in range(3):
        feed(theirs, step)
        muon.step()
        adamw.step()

    assert_near({n: p.detach() for n, p in theirs.named_parameters()}, moved(ours, build("muon", {}, ours)))


def test_galore_is_the_librarys_galore():
    ours, theirs = make_model(), make_model()
    inner = hidden(theirs)
    projected = {"rank": 4, "update_proj_gap": 100, "scale": 0.25, "projection_type": "std", "weight_decay": 0.1}
    plain = [p for p in theirs.parameters() if all(p is not q for q in inner)]
    other = library.GaLore([{"params": inner, **projected}, {"params": plain}], lr=2e-3, eps=1e-12)
    settings = {"rank": 4, "refresh_every": 100, "epsilon": 1e-12, "weight_decay": 0.1}
    settings["no_weight_decay"] = ["embed", "head"]

    assert_near(moved(theirs, other), moved(ours, build("galore", settings, ours)), 2e-6)


@pytest.mark.parametrize(("name", "rank", "scale"), [("apollo", 4, 1.0), ("apollo_mini", 1, 128.0)])
def test_apollo_scales_each_channel_by_what_adam_says_in_a_random_subspace(name, rank, scale):
    """Algorithm 1 of the paper with the limit on growth, for a tall and a wide matrix."""
    model = make_model()
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"]
    weights = {key: model.get_parameter(key).detach().clone() for key in names}
    optimizer = build(name, {"rank": rank, "refresh_every": 100, "weight_decay": 0}, model)
    mean, square, limit = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), dict.fromkeys(names, math.inf)
    for step in range(1, 4):
        feed(model, step)
        optimizer.step()
        for key in names:
            gradient = model.get_parameter(key).grad
            tall = gradient.shape[0] >= gradient.shape[1]
            basis = optimizer.state[model.get_parameter(key)]["basis"]
            low = gradient @ basis if tall else basis.T @ gradient
            mean[key] = 0.9 * mean[key] + 0.1 * low
            square[key] = 0.999 * square[key] + 0.001 * low**2
            adam = mean[key] / square[key].sqrt()
            side = (0, 1) if rank == 1 else (1 if tall else 0)
            scaled = gradient * (adam.norm(dim=side, keepdim=True) / low.norm(dim=side, keepdim=True))
            scaled = scaled * min(1.0, 1.01 * limit[key] / scaled.norm())
            limit[key] = scaled.norm()
            rate = 2e-3 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step) * math.sqrt(scale)
            weights[key] = weights[key] - rate * scaled

    for key in names:
        torch.testing.assert_close(model.get_parameter(key).detach(), weights[key], rtol=1e-4, atol=1e-6)


def test_projections_change_when_they_are_due_and_are_the_same_in_every_run():
    def bases() -> list[torch.Tensor]:
        model = make_model()
        optimizer = build("apollo", {"rank": 4, "refresh_every": 2}, model)
        found = []
        for step in range(4):
            feed(model, step)
            optimizer.step()
            found.append(optimizer.state[hidden(model)[0]]["basis"].clone())
        return found

    first = bases()

    assert [torch.equal(a, b) for a, b in pairwise(first)] == [True, False, True]
    assert all(torch.equal(a, b) for a, b in zip(first, bases(), strict=True))


def test_adam_mini_shares_a_second_moment_by_head_row_or_vector():
    """The formula of the paper's algorithm: Adam with the mean of the squares over each block."""
    model = make_model()
    blocks = {
        "model.layers.0.self_attn.q_proj.weight": 4,
        "model.layers.0.self_attn.k_proj.weight": 2,
        "model.layers.0.self_attn.v_proj.weight": 16,
        "model.layers.1.mlp.down_proj.weight": 32,
        "model.embed_tokens.weight": 160,
        "model.norm.weight": 1,
    }
    weights = {key: model.get_parameter(key).detach().clone() for key in blocks}
    optimizer = build("adam_mini", {}, model)
    mean, square = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0.0)
    for step in range(1, 4):
        feed(model, step)
        optimizer.step()
        for key, count in blocks.items():
            gradient = model.get_parameter(key).grad.view(count, -1)
            mean[key] = 0.9 * mean[key] + 0.1 * gradient
            square[key] = 0.999 * square[key] + 0.001 * (gradient**2).mean(1, keepdim=True)
            divisor = (square[key] / (1 - 0.999**step)).sqrt() + 1e-8
            kept = 1 - 2e-3 * (0.01 if weights[key].ndim > 1 else 0)
            change = (mean[key] / (1 - 0.9**step) / divisor).view_as(weights[key])
            weights[key] = weights[key] * kept - 2e-3 * change

    for key in blocks:
        torch.testing.assert_close(model.get_parameter(key).detach(), weights[key], rtol=1e-5, atol=1e-7)


def test_badam_is_adamw_on_one_block_at_a_time_with_fresh_state():
    ours, theirs = make_model(), make_model()
    optimizer = build("badam", {"switch_every": 2, "order": "ascending", "weight_decay": 0}, ours)
    places = {-1: lambda n: ".layers." not in n, 0: lambda n: ".0." in n, 1: lambda n: ".1." in n}
    for turn, block in enumerate([-1, 0, 1, -1]):
        chosen = [p for name, p in theirs.named_parameters() if places[block](name)]
        fresh = torch.optim.AdamW(chosen, lr=2e-3, weight_decay=0, fused=True)
        for step in (2 * turn, 2 * turn + 1):
            assert optimizer.active_block() == block
            feed(ours, step)
            feed(theirs, step)
            optimizer.step()
            fresh.step()

    assert_near({n: p.detach() for n, p in theirs.named_parameters()}, dict(ours.named_parameters()))
    drawn = [build("badam", {"switch_every": 1}, make_model(5)) for _ in range(2)]
    cycles = []
    for taken in range(12):
        for each in drawn:
            each.param_groups[0]["taken"] = taken
        assert drawn[0].active_block() == drawn[1].active_block()
        cycles.append(drawn[0].active_block())
    assert sorted(cycles[:6]) == sorted(cycles[6:]) == [-1, 0, 1, 2, 3, 4]
    assert cycles[:6] != cycles[6:]


def test_schedule_free_averages_all_points_and_takes_gradients_between():
    """Equations 6 to 8 of the paper in AdamW's form: the weights judged are the mean of the fast ones."""
    model = make_model()
    key = "model.norm.weight"
    optimizer = build("schedule_free", {"weight_decay": 0}, model)
    fast = mean = model.get_parameter(key).detach().clone()
    square = torch.zeros_like(fast)
    for step in range(1, 4):
        feed(model, step)
        gradient = model.get_parameter(key).grad.clone()
        optimizer.step()
        square = 0.999 * square + 0.001 * gradient**2
        fast = fast - 2e-3 * gradient / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        mean = mean + (fast - mean) / step

    torch.testing.assert_close(model.get_parameter(key).detach(), 0.1 * fast + 0.9 * mean, rtol=1e-5, atol=1e-6)
    optimizer.eval()
    torch.testing.assert_close(model.get_parameter(key).detach(), mean, rtol=1e-5, atol=1e-6)


def test_rates_and_decay_follow_the_names_of_weights():
    model = make_model()
    settings = {"learning_rates": {"embed": 0.1, r"layers\.1": 2.0}, "no_weight_decay": ["lm_head"]}
    optimizer = OPTIMIZERS.get("adamw")(weight_decay=0.3, **settings).build(model, 1e-3)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}

    assert found["model.embed_tokens.weight"] == (pytest.approx(1e-4), 0.3)
    assert found["model.layers.0.mlp.up_proj.weight"] == (1e-3, 0.3)
    assert found["model.layers.1.mlp.up_proj.weight"] == (2e-3, 0.3)
    assert found["model.norm.weight"] == (1e-3, 0.0)
    assert found["lm_head.weight"] == (1e-3, 0.0)
    assert len(found) == len(names)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_lora_plus_lets_b_learn_faster_than_a():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj", "embed_tokens"], r=2))
    optimizer = OPTIMIZERS.get("adamw")(lora_plus_ratio=16).build(model, 1e-3)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}

    assert {0.016} == {rate for name, rate in rates.items() if "lora_B" in name or "embedding_B" in name}
    assert {0.001} == {rate for name, rate in rates.items() if "lora_A" in name or "embedding_A" in name}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_weight_decay": ["nothing"]}, "optimizer.no_weight_decay: no trained weight's name .*'nothing'"),
        ({"learning_rates": {"nothing": 2}}, "optimizer.learning_rates: no trained weight's name .*'nothing'"),
        ({"lora_plus_ratio": 16}, "optimizer.lora_plus_ratio: this method has no LoRA B"),
    ],
)
def test_patterns_that_fit_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        OPTIMIZERS.get("adamw")(**settings).build(make_model(), 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_works_with_adapters_or_says_why_not(name, make_recipe):
    constant = {"decay": "constant"}
    lora = problems_of(make_recipe, optimizer={"type": name}, schedule=constant)
    full = problems_of(make_recipe, optimizer={"type": name}, schedule=constant, method="full")

    assert {"optimizer": OPTIMIZERS.get(name).only_whole_weights} == lora if name in WHOLE else lora == {}
    assert full == {}


def problems_of(make_recipe: Callable[..., Any], **blocks: Any) -> dict[str, str]:
    """What is wrong with a recipe, by setting."""
    try:
        make_recipe(**blocks)
    except RecipeError as error:
        return {problem.path: f"{problem.message}" for problem in error.problems}
    return {}


WHOLE = {"galore", "apollo", "apollo_mini", "badam", "muon"}


@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_is_missing_is_named_with_how_to_install_it(name, make_recipe, monkeypatch):
    monkeypatch.setattr("tunesmith.core.registry.find_spec", lambda package: None)
    package = OPTIMIZERS.get(name).package
    problems = problems_of(make_recipe, optimizer={"type": name}, schedule={"decay": "constant"}, method="full")

    assert ({"optimizer": f"{name} needs the package {package}"} if package else {}) == problems


@pytest.mark.parametrize(
    ("blocks", "path", "message"),
    [
        ({"optimizer": "schedule_free"}, "schedule.decay", "cosine lowers the rate"),
        (
            {"optimizer": {"type": "adamw", "lora_plus_ratio": 4}, "method": "full"},
            "optimizer.lora_plus_ratio",
            "no LoRA",
        ),
        ({"optimizer": {"type": "adamw", "no_weight_decay": ["("]}}, "optimizer.no_weight_decay.0", "not a regular"),
        ({"optimizer": {"type": "adamw", "learning_rates": {"(": 2}}}, "optimizer.learning_rates.(", "not a regular"),
        (
            {"optimizer": {"type": "prodigy", "learning_rates": {"a": 2}}},
            "optimizer.learning_rates",
            "one rate for all weights",
        ),
        (
            {"optimizer": "badam", "method": "full", "engine": {"optimizer_in_backward": True}},
            "engine.optimizer_in_backward",
            "takes turns",
        ),
    ],
)
def test_what_cannot_work_together_is_refused_before_weights_load(blocks, path, message, make_recipe):
    assert message in problems_of(make_recipe, **blocks)[path]


@pytest.mark.parametrize(("name", "instead"), [("paged_adamw", "adamw"), ("paged_adamw_8bit", "adamw_8bit")])
def test_paging_needs_a_gpu_and_the_plan_says_so(name, instead, make_recipe):
    with pytest.raises(RecipeError, match=f"{name} pages its state .* this machine has cpu\n.*optimizer: {instead}$"):
        make_plan(make_recipe(optimizer=name), Machine(), 24, validated=False)
    gpu = Machine(device="cuda", bfloat16=True)
    recipe = make_recipe(optimizer=name, engine={"device": "cuda"})
    assert make_plan(recipe, gpu, 24, validated=False).steps == 6


def test_an_optimizer_with_other_rates_than_adamws_has_its_own_default(make_recipe):
    recipe = make_recipe(optimizer="lion", schedule={"learning_rate": None})
    plan = make_plan(recipe, Machine(), 24, validated=False)

    assert pytest.approx(4e-5) == plan.learning_rate
    assert plan.why["learning_rate"].startswith("usual for lora with lion")


def test_what_schedule_free_judges_and_keeps_is_the_average_and_a_stopped_run_goes_on_to_the_bit(
    make_recipe, measured, trained_weights
):
    def recipe(name: str) -> Any:
        schedule = {"decay": "constant", "warmup": 2}
        return make_recipe(
            name, optimizer="schedule_free", schedule=schedule, method="full", checkpoints={"use": "last"}
        )

    whole, halved = recipe("whole"), recipe("halved")
    train(whole)
    train(halved)
    drop_after(halved.output, step=4)
    resume(halved.output)

    assert measured(whole.output) == measured(halved.output)
    first, second = trained_weights(whole.output), trained_weights(halved.output)
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())
    # what the run ends with is what it judged last
    saved = load_tree(whole.output / "checkpoints" / "step-00000006" / "optimizer")
    assert [group["train_mode"] for group in saved["param_groups"]] == [False, False]


def drop_after(run: Path, step: int) -> None:
    """Make a run look as if it had been stopped after *step*."""
    import shutil

    shutil.rmtree(run / "weights")
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)


def test_every_schedule_takes_the_arguments_that_transformers_does():
    """The table that plans are checked with, against the signatures; what the recipe itself decides is left out."""
    ours = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "num_stable_steps"}
    theirs = {
        kind.value: set(inspect.signature(function).parameters) - ours
        for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()
    }
    left_out = {"constant_with_warmup", "reduce_lr_on_plateau", "greedy"}

    assert set(get_args(Decay)) == set(DECAY_ARGUMENTS)
    assert set(theirs) - left_out == set(DECAY_ARGUMENTS)
    for name, arguments in DECAY_ARGUMENTS.items():
        assert theirs[name] == set(arguments), name


@pytest.mark.parametrize("name", DECAY_ARGUMENTS)
def test_every_argument_of_every_schedule_works(name):
    usual = {"num_cycles": 1, "power": 2.0, "lr_end": 1e-5, "timescale": 5, "num_decay_steps": 3, "warmup_lr_rate": 0.1}
    usual |= {"warmup_type": "cosine", "decay_type": "1-sqrt", "min_lr_ratio": 0.1, "min_lr": 1e-4, "min_lr_rate": 0.1}
    for argument in DECAY_ARGUMENTS[name]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        given = {argument: usual[argument]}
        assert list(check_decay(name, given, 1.0)) == []
        make_schedule(optimizer, name, 10, 2, given)


@pytest.mark.parametrize(
    ("decay", "arguments", "path", "hint"),
    [
        ("linear", {"power": 1}, ".power", "it takes none"),
        ("cosine", {"num_cycle": 1}, ".num_cycle", "it takes num_cycles"),
        ("polynomial", {"lr_end": 0.1}, ".lr_end", ""),
        ("cosine_with_restarts", {"num_cycles": 1.5}, ".num_cycles", "a whole number that is not negative"),
        ("warmup_stable_decay", {"decay_type": "square"}, ".decay_type", "one of linear, cosine, 1-sqrt"),
        ("cosine_with_min_lr", {"min_lr": "low"}, ".min_lr", "a number that is not negative"),
        ("cosine_with_min_lr", {"min_lr": 0, "min_lr_rate": 0}, "", "keep one of them"),
    ],
)
def test_arguments_that_a_schedule_does_not_take_are_refused_before_weights_load(decay, arguments, path, hint):
    (problem,) = check_decay(decay, arguments, 1e-3)

    assert (problem.path, problem.hint) == (f"schedule.decay_arguments{path}", hint)

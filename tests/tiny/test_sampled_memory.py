"""What an online stage needs beside its passes is in the plan: the cache of sampling, start weights, other models."""

import numpy as np
import pytest
import torch
from test_estimate import here, live_peak

from tunesmith.engine.lora import fuse_lora
from tunesmith.engine.model import PackModel
from tunesmith.generation.rollouts import sample_groups
from tunesmith.generation.sampling import Sampling
from tunesmith.generation.slots import SlotModel
from tunesmith.models.load import load_model
from tunesmith.run.estimate import estimate
from tunesmith.run.fit import Fitter
from tunesmith.run.outline import Outline
from tunesmith.run.sampled import Written, written_together
from tunesmith.run.settle import settle
from tunesmith.run.speed import quick_speed

MIB = 2**20


def online(name="grpo", *, longest=32, **settings):
    return {"type": name, "rewards": ["length_match"], "sampling": {"max_new_tokens": longest}, **settings}


def count_of(recipe):
    """The exact memory of *recipe*, and what was seen of sampling."""
    settled = settle(recipe, machine=here())
    outline = Outline(recipe, settled.config)
    found = estimate(outline, settled.plan, settled.prepared, here(), exact=True)
    return found.memory, outline.sampling, settled


@pytest.mark.parametrize("architecture", ["qwen3-tied", "gemma3-windowed", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_sampling_takes_what_was_counted(make_recipe, architecture, method):
    """The trace and answers that are really written agree within 15%; nobody stops before the longest length."""
    stage = online(num_generations=16)
    engine = {"precision": "bfloat16"}
    recipe = make_recipe(architecture=architecture, method=method, stage=stage, engine=engine)
    _, sampling, settled = count_of(recipe)
    counted = max(sum(parts.values()) for parts in sampling.values())
    written = written_together(settled.plan, settled.prepared)
    kept = torch.float32 if method == "full" else torch.bfloat16
    model = recipe.method.apply(load_model(recipe.model, settled.config, kept, 0)).eval()
    base = recipe.method.base_model(model)
    PackModel(model, base, settled.plan.attention)
    fuse_lora(model)
    examples = sorted(settled.prepared.train.examples, key=lambda example: example.values[0])
    prompts = [example.sequences[0].tokens[: example.values[0]] for example in examples[-written.prompts :]]

    def write():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sample_groups(base, prompts, written.answers, Sampling(max_new_tokens=32), stop_ids=(), seed=[1])

    assert counted == pytest.approx(live_peak(write), rel=0.15)


def test_as_many_answers_are_counted_as_are_written_at_once(make_recipe):
    """The smaller of the step's and what sampling.batch_size allows; those of the held-out prompts where more."""

    def written(at_once=256, **blocks):
        stage = {**online(num_generations=4), "sampling": {"max_new_tokens": 32, "batch_size": at_once}}
        settled = settle(make_recipe(stage=stage, **blocks), machine=here())
        return settled.prepared, written_together(settled.plan, settled.prepared)

    prepared, all_at_once = written()
    _, few = written(at_once=9)
    _, judged = written(schedule={"batch_size": 1}, evaluation={"examples": 6})
    longest = max(values[0] for values in prepared.train.examples.values)

    assert all_at_once == Written(5, 4, longest, 32, filled=True)
    assert few.rows == 8
    assert judged.rows == 6


@pytest.mark.parametrize(("method", "whole"), [("full", True), ({"type": "lora", "rank": 4}, False)])
def test_start_weights_are_a_copy_of_what_trains(make_recipe, method, whole):
    """Kept where a stage compares with them; of an adapter next to nothing, and none where nothing is compared."""
    stage = online(beta=0.1)
    memory = settle(make_recipe(method=method, stage=stage), machine=here()).plan.memory
    without = settle(make_recipe(method=method, stage=online()), machine=here()).plan.memory

    assert memory.parts["start weights"] == memory.parts["weights that train"]
    assert (memory.parts["start weights"] > memory.parts.get("weights, frozen", 0)) == whole
    assert "start weights" not in without.parts


def test_a_reward_model_is_counted_beside_the_one_that_trains(make_recipe, saved_model):
    """In float32, as it is loaded on a CPU, and without an output head."""
    from transformers import AutoModel

    judge = saved_model("qwen3")
    score = {"score": {"type": "reward_model", "model": str(judge)}}
    parts = settle(make_recipe(stage={**online(), "rewards": [score]}), machine=here()).plan.memory.parts
    weights = sum(weight.numel() for weight in AutoModel.from_pretrained(judge).parameters())

    assert parts["reward model"] == 4 * weights


def test_a_large_reference_is_there_when_it_is_asked(make_recipe, saved_model, tmp_path):
    """Before there is an optimizer: where it is larger than all that training needs, that is the worst moment."""
    from preference_pairs import write_pairs
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    small = saved_model("qwen3")
    config = AutoConfig.from_pretrained(small)
    config.update({"intermediate_size": 20_000})
    large = AutoModelForCausalLM.from_config(config)
    large.save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(small).save_pretrained(tmp_path / "large")
    stage = {"type": "dpo", "reference": str(tmp_path / "large")}
    memory, _, _ = count_of(make_recipe(stage=stage, data=write_pairs(tmp_path)))

    assert memory.moment == "the reference being asked"
    assert memory.parts["reference model"] == 4 * sum(weight.numel() for weight in large.parameters())


def test_a_plan_says_that_sampling_needs_the_most(make_recipe):
    """Many answers at once and passes that keep little: smaller passes would not help, fewer answers do."""
    engine = {"gradient_checkpointing": True, "tokens_per_pass": 256}
    many = make_recipe(stage=online(num_generations=50), engine=engine)
    few = make_recipe(
        stage=online(num_generations=50, sampling={"max_new_tokens": 32, "batch_size": 50}), engine=engine
    )
    (memory, _, settled), (fewer, _, _) = count_of(many), count_of(few)
    offers = Fitter(here(), settled.prepared, settled.config, quick_speed).offers(settled)

    assert memory.moment.startswith("sampling")
    assert not memory.of_a_pass
    assert memory.parts["sampling cache"] > 0
    assert fewer.total < memory.total
    assert any("stage.sampling.batch_size=62" in str(offer) for offer in offers)


def test_a_bound_is_no_less_than_what_is_counted(make_recipe):
    for architecture in ("qwen3", "gpt2"):
        recipe = make_recipe(architecture=architecture, stage=online(num_generations=50, longest=100))
        bound = settle(recipe, machine=here()).plan.memory
        counted = settle(recipe, machine=here(), speed=quick_speed).plan.memory

        assert bound.at_most
        assert not counted.at_most
        assert bound.total >= counted.total


def test_where_a_server_writes_no_cache_is_counted(make_recipe, tmp_path):
    server = {"url": "http://localhost:8000/v1", "adapters": str(tmp_path)}
    stage = {**online(), "sampling": {"max_new_tokens": 32, "server": server}}
    memory, sampling, _ = count_of(make_recipe(stage=stage, method={"type": "lora", "rank": 4}))

    assert sampling is None
    assert "sampling cache" not in memory.parts


@pytest.mark.parametrize("way", ["rollouts", "slots"])
def test_the_head_reads_states_that_lie_side_by_side(saved_model, way):
    """Of a slice of several prompts, whose rows do not touch, a CPU's product copies the whole head for each row."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(saved_model("qwen3")).eval()
    read = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: read.append(given[0]))
    prompts = [np.arange(5, 12, dtype=np.int32) + number for number in range(3)]
    if way == "rollouts":
        sample_groups(model, prompts, 2, Sampling(max_new_tokens=3), stop_ids=(), seed=[1])
    else:
        SlotModel(model).run([prompt.tolist() for prompt in prompts], 0, [0, 0, 0])

    assert [states.shape[1] for states in read] == [1] * len(read)
    assert all(states.is_contiguous() for states in read)

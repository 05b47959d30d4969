"""Stages that learn from the model's own answers: their losses are TRL's, their runs can be killed and gone on with."""

import json
import re
from collections import defaultdict
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.core.files import read_jsonl
from tunesmith.data.conversation import Conversation, Message
from tunesmith.engine.example import Example
from tunesmith.engine.model import PackModel, pack_arguments
from tunesmith.engine.pack import build_packs
from tunesmith.engine.value_head import add_value_head
from tunesmith.generation.rollouts import choose, sample_groups
from tunesmith.generation.sampling import Completion, Sampling
from tunesmith.run.rollout_watch import RolloutWatch
from tunesmith.run.train import resume, train
from tunesmith.stages import STAGES
from tunesmith.stages._advantages import group_advantages, leave_one_out, rewards_to_go, separate_advantages
from tunesmith.stages._asked import Asked, Rollout
from tunesmith.stages._rewarded import Batch
from tunesmith.stages._rewards import reward_names
from tunesmith.templates.tokens import TokenSequence

GROUPS, ANSWERS, LONGEST = 3, 4, 9
PROMPTS = (11, 14, 11)  # tokens of each
REWARDS = [{"score": "length_match"}, {"score": "exact_match", "weight": 0.5}]


def as_stage(name: str, **settings):
    sampling = {"max_new_tokens": LONGEST}
    return STAGES.parse(
        {"type": name, "rewards": REWARDS, "num_generations": ANSWERS, "sampling": sampling, **settings}
    )


@pytest.fixture(scope="module")
def model(saved_model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(saved_model("qwen3"))


@pytest.fixture(scope="module")
def rollouts():
    """Answers of uneven length to three prompts, with random log-probabilities and rewards; some were cut."""
    rng = np.random.default_rng(5)
    found = []
    for length in PROMPTS:
        asked = Asked(rng.integers(5, 60, length).astype(np.int32), Conversation((Message("user", "?"),)), True)
        for _ in range(ANSWERS):
            tokens = rng.integers(5, 60, rng.integers(2, LONGEST + 1)).astype(np.int32)
            log_p = -rng.uniform(1, 6, len(tokens)).astype(np.float32)
            completion = Completion(tokens, log_p, len(tokens) < LONGEST)
            values = {"length_match": float(rng.integers(0, 2)), "exact_match": float(rng.uniform())}
            reward = values["length_match"] + 0.5 * values["exact_match"]
            found.append(Rollout(asked, completion, "", reward, values, {}))
    return found


def own_log_probabilities(model, rollouts, shift: float, seed: int):
    """What the model says, moved a little: as weights that were a step or a run ago say it."""
    rng = np.random.default_rng(seed)
    out = []
    for each in rollouts:
        tokens = torch.tensor(each.sequence().tokens.astype(np.int64))[None]
        with torch.no_grad():
            found = model(tokens).logits[0].log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None]).squeeze(1)
        log_p = found[len(each.asked.tokens) - 1 :].numpy()
        out.append((log_p + rng.normal(0, shift, len(log_p))).astype(np.float32))
    return out


def make_batch(stage, model, rollouts, *, old: bool, start: bool) -> Batch:
    return Batch(
        reward=np.array([r.reward for r in rollouts]).reshape(GROUPS, ANSWERS),
        parts={n: np.array([r.parts[n] for r in rollouts]).reshape(GROUPS, ANSWERS) for n in rollouts[0].parts},
        lengths=[len(r.completion.tokens) for r in rollouts],
        counted=[r.completion.finished or not stage.mask_truncated_completions for r in rollouts],
        sampled=[r.completion.log_probabilities for r in rollouts],
        old=own_log_probabilities(model, rollouts, 0.3, 1) if old else None,
        start=own_log_probabilities(model, rollouts, 0.5, 2) if start else None,
    )


def our_loss(model, stage, examples, layout: str, budget: int = 10_000):
    """The loss of a step and its gradients, summed over the passes."""
    packed = PackModel(model, model)
    model.zero_grad(set_to_none=True)
    total, size = 0.0, stage.size(examples)
    for pack in build_packs(examples, layout, budget):
        tensors = pack.to("cpu")
        loss = stage.loss(packed(**pack_arguments(tensors)), tensors).total / size
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


def padded(parts, value=0.0, left: bool = False):
    width = max(map(len, parts))
    fill = [np.full(width - len(p), value) for p in parts]
    return torch.tensor(
        np.stack([np.concatenate((f, p) if left else (p, f)) for p, f in zip(parts, fill, strict=True)])
    )


def trl_loss(model, stage, rollouts, batch: Batch, advantages, kind: str):
    """What TRL's trainer computes from the same batch, by its own method, and the gradients."""
    from trl import GRPOConfig, GRPOTrainer, RLOOTrainer

    def own(given, ids, mask, keep, **_):
        logits = given(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        log_p = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)[:, -keep:]
        return log_p, torch.zeros_like(log_p), None

    prompts = [r.asked.tokens for r in rollouts]
    answers = [r.completion.tokens for r in rollouts]
    mask = padded([np.full(len(a), counts) for a, counts in zip(answers, batch.counted, strict=True)]).long()
    inputs = {
        "prompt_ids": padded(prompts, left=True).long(),
        "prompt_mask": padded([np.ones(len(p)) for p in prompts], left=True).long(),
        "completion_ids": padded(answers).long(),
        "completion_mask": mask,
        "advantages": torch.tensor([float(a[0]) for a in advantages]),
        "num_items_in_batch": mask.sum(),
    }
    if batch.old is not None:
        inputs["old_per_token_logps"] = padded(batch.old).float()
    if batch.start is not None:
        inputs["ref_per_token_logps"] = padded(batch.start).float()
    old = batch.old if batch.old is not None else own_log_probabilities(model, rollouts, 0, 0)
    inputs["old_logps"] = (padded(old).float() * mask).sum(1)
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=own, model=model, accelerator=accelerator, _metrics=metrics,
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        vllm_importance_sampling_correction=False, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        epsilon_low=stage.epsilon, epsilon_high=stage.high, beta=stage.beta, max_completion_length=LONGEST,
    )  # fmt: skip
    if kind == "grpo":
        trainer.loss_type, trainer.importance_sampling_level = stage.loss_type, stage.importance_sampling_level
        trainer.args = SimpleNamespace(
            delta=stage.delta, use_bias_correction_kl=False, steps_per_generation=1,
            sapo_temperature_pos=stage.sapo_temperature_pos, sapo_temperature_neg=stage.sapo_temperature_neg,
        )  # fmt: skip
        assert GRPOConfig.__dataclass_fields__["loss_type"].default == "dapo"
        trainer.get_off_policy_mask = GRPOTrainer.get_off_policy_mask
    compute = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[kind]._compute_loss
    model.zero_grad(set_to_none=True)
    model.train()
    loss = compute(trainer, model, inputs)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


VARIANTS = {
    "dapo": {},
    "grpo": {"loss_type": "grpo", "beta": 0.1},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "bnpo": {"loss_type": "bnpo", "epsilon_high": 0.28},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-2, "epsilon_high": 4e-2},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "sapo": {"loss_type": "sapo"},
    "two-sided": {"delta": 1.2, "scale_rewards": "batch"},
    "masked": {"mask_truncated_completions": True, "beta": 0.1},
    "rloo": {"type": "rloo"},
    "rloo-plain": {"type": "rloo", "beta": 0.0, "normalize_advantages": True, "epsilon": 0.5},
}


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "used again"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_trl(variant, old, model, rollouts):
    settings = dict(VARIANTS[variant])
    kind = settings.pop("type", "grpo")
    stage = as_stage(kind, **settings)
    batch = make_batch(stage, model, rollouts, old=old, start=bool(stage.beta))
    advantages = stage.advantages(batch)
    examples = stage.make_examples(rollouts, batch, advantages, 10_000)
    expected, gradient = trl_loss(model, stage, rollouts, batch, advantages, kind)
    found, own_gradient = our_loss(model, stage, examples, "prefix")

    assert expected == pytest.approx(found, abs=1e-5)
    assert float(gradient.norm()) > 1e-3
    assert float((own_gradient - gradient).abs().max()) < 1e-5 * max(1.0, float(gradient.abs().max()))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_are_those_of_trl(scale, rollouts):
    """The lines of GRPOTrainer._generate_and_score_completions, word for word."""
    from trl.trainer.utils import nanstd

    rewards = torch.tensor([r.reward for r in rollouts], dtype=torch.float32)
    mean = torch.nanmean(rewards.view(-1, ANSWERS), dim=1).repeat_interleave(ANSWERS, dim=0)
    deviation = {
        "group": nanstd(rewards.view(-1, ANSWERS), dim=1).repeat_interleave(ANSWERS, dim=0),
        "batch": nanstd(rewards).expand_as(rewards),
        "none": 1 - 1e-4,
    }[scale]
    expected = (rewards - mean) / (deviation + 1e-4)
    found = group_advantages(np.array([r.reward for r in rollouts]).reshape(-1, ANSWERS), scale)

    assert np.allclose(expected.numpy(), found.ravel(), atol=1e-5)


def test_separately_scaled_scores_are_those_of_trl(rollouts):
    from trl.trainer.utils import nanstd

    each = torch.tensor([list(r.parts.values()) for r in rollouts], dtype=torch.float32)
    grouped = each.view(-1, ANSWERS, 2)
    scaled = (grouped - grouped.nanmean(1, keepdim=True)) / (nanstd(grouped, dim=1, keepdim=True) + 1e-4)
    rewards = (scaled.view(-1, 2) * torch.tensor([1.0, 0.5])).sum(1)
    expected = (rewards - rewards.mean()) / (nanstd(rewards) + 1e-4)
    parts = [(each[:, k].double().numpy().reshape(-1, ANSWERS), weight) for k, weight in ((0, 1.0), (1, 0.5))]

    assert np.allclose(expected.numpy(), separate_advantages(parts).ravel(), atol=1e-4)


def test_leaving_one_out_compares_with_the_others():
    found = leave_one_out(np.array([[1.0, 0.0, 0.5]]))

    assert np.allclose([[0.75, -0.75, 0.0]], found)


def test_reinforce_plus_plus_is_its_formula(model, rollouts):
    """Return to go less the divergence, scaled over all tokens of the batch; PPO's clip; the mean over tokens."""
    stage = as_stage("reinforce_plus_plus", baseline="group", beta=0.2, epsilon=0.1)
    batch = make_batch(stage, model, rollouts, old=True, start=True)
    own = own_log_probabilities(model, rollouts, 0, 0)
    returns = []
    for index, each in enumerate(rollouts):
        reward = each.reward - batch.reward[index // ANSWERS].mean()
        apart = batch.old[index] - batch.start[index]
        returns.append([reward - 0.2 * float(apart[at:].sum()) for at in range(len(apart))])
    flat = np.concatenate(returns)
    flat = (flat - flat.mean()) / (flat.std(ddof=1) + 1e-4)
    ratio = np.exp(np.concatenate(own) - np.concatenate(batch.old))
    expected = -np.minimum(ratio * flat, ratio.clip(0.9, 1.1) * flat).mean()
    examples = stage.make_examples(rollouts, batch, stage.advantages(batch), 10_000)

    assert expected == pytest.approx(our_loss(model, stage, examples, "prefix")[0], abs=1e-5)
    assert np.allclose([0.4, 0.7, 0.9], rewards_to_go(1.0, np.array([0.3, 0.2, 0.1])))


def test_ppo_is_its_formulas(model, rollouts):
    """Schulman's estimate of advantages; the clipped policy and value losses, each a mean over tokens."""
    rng = np.random.default_rng(7)
    stage = as_stage("ppo", beta=0.1, gamma=0.9, lam=0.8, vf_coef=0.3, cliprange_value=0.1)
    batch = make_batch(stage, model, rollouts, old=True, start=True)
    batch = replace(batch, value=[rng.normal(size=n).astype(np.float32) for n in batch.lengths])
    packed = PackModel(model, model)
    add_value_head(packed)
    with torch.no_grad():
        packed.value_head[0].weight.normal_(generator=torch.Generator().manual_seed(1))
    estimates = []
    for index, each in enumerate(rollouts):
        rewards = -0.1 * (batch.old[index] - batch.start[index])
        rewards[-1] += each.reward
        values = np.append(batch.value[index], 0)
        surprises = rewards + 0.9 * values[1:] - values[:-1]
        count = len(rewards)
        estimates.append([sum((0.9 * 0.8) ** (k - t) * surprises[k] for k in range(t, count)) for t in range(count)])
    flat, before = np.concatenate(estimates), np.concatenate(batch.value)
    advantage, target = (flat - flat.mean()) / (flat.std(ddof=1) + 1e-4), flat + before
    log_p, now = [], []
    for each in rollouts:
        (pack,) = build_packs([Example((each.sequence(),))], "padded", 1)
        found = packed(**pack_arguments(pack.to("cpu"))).detach().numpy()
        log_p.append(found[:, 0])
        now.append(found[:, 1])
    ratio, value = np.exp(np.concatenate(log_p) - np.concatenate(batch.old)), np.concatenate(now)
    near = before + (value - before).clip(-0.1, 0.1)
    policy = -np.minimum(ratio * advantage, ratio.clip(0.8, 1.2) * advantage).mean()
    expected = policy + 0.3 * (np.maximum((value - target) ** 2, (near - target) ** 2) / 2).mean()
    examples = stage.make_examples(rollouts, batch, stage.advantages(batch), 10_000)
    (pack,) = build_packs(examples, "prefix", 10_000)
    loss = stage.loss(packed(**pack_arguments(pack.to("cpu"))), pack.to("cpu"))
    delattr(model, "value_head")

    assert expected == pytest.approx(float(loss.total.detach()) / stage.size(examples), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_online_dpo_is_the_loss_of_trl_on_best_and_worst(loss_type, model, rollouts):
    """The lines of OnlineDPOTrainer.training_step that follow the choice of chosen and rejected."""
    stage = as_stage("online_dpo", loss_type=loss_type, beta=0.3)
    batch = make_batch(stage, model, rollouts, old=False, start=True)
    batch.reward[2] = 1.0  # all alike: no pair
    own = [torch.tensor(each).sum() for each in own_log_probabilities(model, rollouts, 0, 0)]
    start = [torch.tensor(each).sum() for each in batch.start]
    logits = []
    for row in (0, 1):
        chosen, rejected = (row * ANSWERS + int(at) for at in (batch.reward[row].argmax(), batch.reward[row].argmin()))
        logits.append((own[chosen] - own[rejected]) - (start[chosen] - start[rejected]))
    logits = torch.stack(logits)
    losses = -torch.nn.functional.logsigmoid(0.3 * logits) if loss_type == "sigmoid" else (logits - 1 / 0.6) ** 2
    examples = stage.make_examples(rollouts, batch, stage.advantages(batch), 10_000)

    assert [len(example.sequences) for example in examples] == [2, 2]
    for layout in ("prefix", "padded"):
        assert float(losses.mean()) == pytest.approx(our_loss(model, stage, examples, layout)[0], abs=1e-5, rel=1e-5)


def test_layout_changes_nothing_and_a_groups_prompt_is_computed_once(model, rollouts):
    stage = as_stage("grpo", beta=0.1)
    batch = make_batch(stage, model, rollouts, old=True, start=True)
    advantages = stage.advantages(batch)
    whole = stage.make_examples(rollouts, batch, advantages, 10_000)
    parts = stage.make_examples(rollouts, batch, advantages, 20)  # groups that are too long for a pass
    expected, gradient = our_loss(model, stage, whole, "padded")

    assert len(whole) == GROUPS < len(parts)
    for examples, layout, budget in ((whole, "packed", 10_000), (whole, "prefix", 1), (parts, "prefix", 20)):
        found, other = our_loss(model, stage, examples, layout, budget)
        assert expected == pytest.approx(found, abs=1e-6)
        assert float((gradient - other).norm() / gradient.norm()) < 1e-5


def test_groups_of_eight_feed_a_third_of_the_tokens_that_padding_would():
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(8):
        prompt = rng.integers(5, 60, 48)
        answers = [np.concatenate([prompt, rng.integers(5, 60, rng.integers(6, 13))]) for _ in range(8)]
        rows = [r for a in answers if (r := Rollout(
            Asked(prompt.astype(np.int32), Conversation(), True),
            Completion(a[48:].astype(np.int32), np.zeros(len(a) - 48, np.float32), True), "", 0.0, {}, {},
        ))]  # fmt: skip
        examples.append(Example(tuple(r.sequence() for r in rows)))
    fed = {layout: sum(len(p.tokens) for p in build_packs(examples, layout, 4096)) for layout in ("padded", "prefix")}

    assert fed["prefix"] <= 0.35 * fed["padded"]


def test_groups_that_did_all_alike_are_not_computed_and_change_nothing(model, rollouts):
    stage = as_stage("grpo")
    batch = make_batch(stage, model, rollouts, old=False, start=False)
    batch.reward[1] = 0.5
    advantages = stage.advantages(batch)
    examples = stage.make_examples(rollouts, batch, advantages, 10_000)
    found = our_loss(model, stage, examples, "prefix")
    expected = trl_loss(model, stage, rollouts, batch, advantages, "grpo")

    assert len(examples) == GROUPS - 1
    assert expected[0] == pytest.approx(found[0], abs=1e-6)
    assert float((expected[1] - found[1]).abs().max()) < 1e-5


# --- sampling


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3-windowed", "bloom-alibi"])
def test_samples_have_the_models_log_probabilities_however_many_are_written_at_once(name, saved_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(saved_model(name)).eval()
    rng = np.random.default_rng(3)
    prompts = [rng.integers(5, 60, length).astype(np.int32) for length in (7, 12, 9, 12)]

    def sample(**settings):
        sampling = Sampling(max_new_tokens=12, **settings)
        return sample_groups(model, prompts, 3, sampling, stop_ids=range(5, 15), seed=(1, 2))

    found, alone = sample(), sample(batch_size=3)
    assert [c.tokens.tolist() for g in found for c in g] == [c.tokens.tolist() for g in alone for c in g]
    assert len({len(c.tokens) for g in found for c in g}) > 2
    for prompt, group in zip(prompts, found, strict=True):
        for each in group:
            ids = torch.tensor(np.concatenate([prompt, each.tokens]).astype(np.int64))[None]
            with torch.no_grad():
                log_p = model(ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
            assert np.allclose(log_p.gather(1, ids[0, len(prompt) :, None])[:, 0], each.log_probabilities, atol=1e-4)
            assert each.finished == (int(each.tokens[-1]) in range(5, 15))
            assert not any(int(token) in range(5, 15) for token in each.tokens[:-1])


def test_a_model_without_a_cache_of_keys_and_values_is_refused(make_recipe):
    with pytest.raises(UserError, match="rwkv has no cache of keys and values"):
        train(make_recipe(architecture="rwkv-recurrent", method="full", stage=online(), **RUN))


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf]).expand(20_000, 5)
    chances = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000

    def shares(**settings):
        chosen, log_p = choose(logits, chances, Sampling(**settings))
        expected = (logits[0] / settings.get("temperature", 1.0)).log_softmax(-1)
        assert torch.allclose(log_p, expected[chosen])
        return (torch.bincount(chosen, minlength=5) / 20_000).tolist()

    assert shares() == pytest.approx(torch.softmax(logits[0], -1).tolist(), abs=1e-3)
    assert shares(temperature=2.0) == pytest.approx(torch.softmax(logits[0] / 2, -1).tolist(), abs=1e-3)
    kept = torch.softmax(logits[0, :2], -1).tolist()
    for settings in ({"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.2}):
        assert shares(**settings) == pytest.approx([*kept, 0, 0, 0], abs=1e-3)


@pytest.mark.parametrize("name", ["qwen3", "gemma2-windowed", "granite-scaled"])
def test_what_is_learnt_has_the_temperature_of_what_was_sampled(name, saved_model):
    """Caps and scales of the model's own come first."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(saved_model(name)).eval()
    tokens = np.random.default_rng(1).integers(5, 60, 20).astype(np.int32)
    ids = torch.tensor(tokens.astype(np.int64))[None]
    sampling = Sampling(max_new_tokens=6, temperature=0.6)
    ((written,),) = sample_groups(model, [tokens[:9]], 1, sampling, stop_ids=[], seed=(4,))
    packed = PackModel(model, model)
    packed.temperature = 0.6

    def ask(ids):
        (pack,) = build_packs([Example((TokenSequence.trained_from(ids, 9),))], "prefix", 100)
        with torch.no_grad():
            return packed(**pack_arguments(pack.to("cpu"))).numpy()

    expected = (model(ids).logits[0] / 0.6).log_softmax(-1)[8:-1].gather(1, ids[0, 9:, None]).squeeze(1)
    assert np.allclose(expected.detach(), ask(tokens.tolist()), atol=1e-4)
    assert np.allclose(written.log_probabilities, ask([*tokens[:9].tolist(), *written.tokens.tolist()]), atol=1e-4)


# --- whole runs

RUN = {
    "data": {"max_tokens": 160},
    "schedule": {"steps": 4, "batch_size": 3, "learning_rate": 1e-2},
    "evaluation": {"examples": 4, "every": 2, "generation": {"max_new_tokens": 8}},
    "checkpoints": {"every": 1, "keep": 9},
}


def online(name: str = "grpo", **settings):
    rewards = [{"score": {"type": "length_match"}}, {"score": "exact_match", "weight": 0.1}]
    sampling = {"max_new_tokens": 8}
    usual = {"num_generations": 4, "record_every": 2, "overlong_margin": 4}
    return {"type": name, "rewards": rewards, "sampling": sampling, **usual, **settings}


def without_clock(rows):
    return [{k: v for k, v in row.items() if k != "rollout_seconds"} for row in rows]


@pytest.mark.parametrize(
    ("stage", "method"),
    [
        (online(beta=0.1, num_iterations=2), {"type": "lora", "rank": 4}),
        (online("ppo", num_generations=1), "full"),
    ],
    ids=["grpo-lora", "ppo-full"],
)
def test_a_run_that_was_killed_goes_on_with_the_same_answers(stage, method, make_recipe, measured, trained_weights):
    whole = train(make_recipe("whole", stage=stage, method=method, **RUN)).folder
    killed = make_recipe("killed", stage=stage, method=method, **RUN)
    steps = count(1)

    def kill(event):
        if event["kind"] == "step" and next(steps) == 4:  # the second step with the same answers, where there are two
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(killed, kill)
    assert resume(killed.output).complete

    assert without_clock(measured(whole.path)) == without_clock(measured(killed.output))
    assert read_jsonl(whole.samples) == read_jsonl(killed.output / "samples" / "rollouts.jsonl")
    one, other = trained_weights(whole.path), trained_weights(killed.output)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any("value_head" in name for name in one)
    if stage["type"] == "ppo":
        folders = [path / "weights" / "value_head" for path in (whole.path, killed.output)]
        heads = [load_file(folder / "weights.safetensors") for folder in folders]
        assert float(heads[0]["weight"].abs().sum()) > 0
        assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


@pytest.mark.parametrize(
    ("name", "method"),
    [("rloo", "full"), ("reinforce_plus_plus", "full"), ("online_dpo", {"type": "lora", "rank": 4}), ("grpo", "nf4")],
    ids=["rloo", "reinforce", "dpo-lora", "grpo-qlora"],
)
def test_every_stage_trains(name, method, make_recipe, measured, saved_model):
    quick = {"schedule": {"steps": 2, "batch_size": 3, "learning_rate": 1e-2}, "evaluation": {"examples": 0}}
    stage = online(name, rewards=[{"score": {"type": "length", "target": 3}}], overlong_margin=0)
    blocks = {"method": method, **RUN, **quick}
    if method == "nf4":
        base = {"path": str(saved_model("qwen3")), "quantization": "nf4"}
        blocks |= {"method": {"type": "lora", "rank": 4}, "model": base}
    recipe = make_recipe(stage=stage, **blocks)
    steps = [e for e in measured(train(recipe).folder.path) if e["kind"] == "step"]

    assert len(steps) == 2
    assert all(step["gradient_norm"] > 0 for step in steps)


def test_what_a_run_measures_and_keeps(make_recipe, measured):
    # dropout would stand between what is sampled and what trains
    stage = online(beta=0.05, sampling={"max_new_tokens": 8, "temperature": 0.7})
    folder = train(make_recipe(stage=stage, method={"type": "lora", "rank": 4}, **RUN)).folder
    events = measured(folder.path)
    step, evaluation = (next(e for e in reversed(events) if e["kind"] == kind) for kind in ("step", "evaluation"))
    rows = read_jsonl(folder.samples)

    names = ("reward", "reward_length_match", "reward_exact_match", "reward_overlong", "answer_tokens", "copied")
    assert all(name in step for name in names)
    assert 0 <= step["sampler_gap"] < 1e-4
    assert evaluation["loss"] == -evaluation["reward"]
    assert {row["step"] for row in rows} == {1, 3}
    parts = rows[0]["parts"]
    weighted = parts["length_match"] + 0.1 * parts["exact_match"] + parts["overlong"]
    assert rows[0]["reward"] == pytest.approx(weighted)
    assert set(folder.read("evaluation.json")["scores"]) == {"length_match", "exact_match"}
    assert "length_match" in (folder.path / "report.html").read_text("utf-8")


def test_the_reward_rises(make_recipe, measured):
    """A model that gets something for ending its answer soon ends it soon."""
    schedule = {"steps": 16, "batch_size": 6, "learning_rate": 2e-2}
    stage = online(rewards=[{"score": {"type": "length", "target": 3}}], overlong_margin=0)
    recipe = make_recipe(stage=stage, method="full", **{**RUN, "schedule": schedule, "evaluation": {"examples": 0}})
    train(recipe)
    rewards = [e["reward"] for e in measured(recipe.output) if e["kind"] == "step"]

    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2


def test_answers_can_be_held_to_a_form(make_recipe):
    """Every kept answer has it, and the rest of the run goes as ever."""
    constraint = {"type": "regex", "pattern": "(pine|moon){1,2}"}
    stage = online(sampling={"max_new_tokens": 12, "constraint": constraint}, overlong_margin=0)
    rows = read_jsonl(train(make_recipe(stage=stage, **RUN)).folder.samples)

    assert all(re.fullmatch("(pine|moon){1,2}", row["answer"]) and row["finished"] for row in rows)
    assert len({row["answer"] for row in rows}) > 1


def test_early_stopping_watches_the_reward(make_recipe):
    evaluation = {"examples": 2, "every": 1, "patience": 2, "minimum_gain": 10, "generation": {"max_new_tokens": 4}}
    outcome = train(make_recipe(stage=online(), **{**RUN, "evaluation": evaluation}))

    assert outcome.reason == "early stopping"


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"stage": online(rewards=[])}, "rewards"),
        ({"stage": online(loss_type="cispo")}, "epsilon_high"),
        ({"stage": online(sampling={"max_new_tokens": 200})}, "leave no room for a prompt"),
        ({"stage": online(), "method": "prompt_tuning"}, "puts tokens before the text"),
        ({"stage": online(rewards=["no_such_score"])}, "no_such_score"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(blocks, said, make_recipe):
    with pytest.raises((RecipeError, UserError), match=said):
        train(make_recipe(**{**RUN, **blocks}))


def test_a_reward_is_a_score_with_its_weight_or_the_score_alone():
    length = {"type": "length", "target": 3}
    stage = as_stage("grpo", rewards=["length_match", length, {"score": "exact_match", "weight": -0.5}, "length_match"])

    assert reward_names(stage.rewards) == ["length_match", "length", "exact_match", "length_match_2"]
    assert [reward.weight for reward in stage.rewards] == [1, 1, -0.5, 1]
    assert STAGES.parse(stage.model_dump(mode="json")) == stage


def test_prompts_keep_their_conversation(tokenizer):
    from tunesmith.templates.chat import ChatTemplate

    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "moon"}}}
    messages = (Message("system", "rain"), Message("user", "hill"), Message("assistant", "pine", tool_calls=(call,)))
    talk = Conversation(messages)
    (example,), none = as_stage("grpo").examples(
        [talk, Conversation((Message("user", "rain" * 50),))], ChatTemplate(tokenizer), 99
    )
    asked = Asked.of(example)

    assert talk == asked.conversation
    assert none == []
    assert json.loads(json.dumps(example.values)) == list(example.values)
    assert tokenizer.decode(asked.tokens.tolist()).endswith("assistant\n")


def test_the_plan_counts_groups_of_the_longest_answers(make_recipe):
    from tunesmith.run.settle import settle

    small, large = (
        settle(make_recipe(stage=online(num_generations=n), engine={"tokens_per_pass": 4096}, **RUN)).plan.memory
        for n in (2, 16)
    )

    assert small.total < large.total


# --- alarms


def test_each_way_to_cheat_raises_its_alarm_once():
    watch = RolloutWatch(["hills are green in spring, rivers run to the sea"])
    plain = [f"answer {n} of the moon and the pine {n * 7}" for n in range(8)]
    for step in range(5):
        assert watch.look(step, plain, [20] * 8)[1] == []
    state = watch.state()

    def alarms(texts, tokens):
        watch.restore(json.loads(json.dumps(state)))
        return watch.look(6, texts, tokens)[1]

    assert "length is being rewarded" in alarms(plain, [50] * 8)[0]
    assert "it repeats" in alarms([f"{n}" + "ha" * 30 for n in range(8)], [20] * 8)[0]
    assert "one answer for all" in alarms(["the moon and the pine"] * 8, [20] * 8)[0]
    (said,) = alarms([f"{n} {n}, rivers run to the sea" for n in range(8)], [20] * 8)
    assert "it recites" in said
    assert watch.look(7, [f"{n} {n}, rivers run to the sea" for n in range(8)], [20] * 8)[1] == []

"""Preference losses: those of TRL 1.16, with their gradients, whatever the layout."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from preference_pairs import asking, conversations, distance, examples_of, make_pairs, step
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from tunesmith.data.conversation import Conversation, Message
from tunesmith.engine.pack import build_packs
from tunesmith.stages import STAGES
from tunesmith.templates.chat import ChatTemplate

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def template(tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer)


@pytest.fixture(scope="module")
def policy(saved_model):
    """A model a little off its start, and the start."""
    path = saved_model("llama")
    start = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02 * parameter.std().nan_to_num(0))
    return model, start


# --- TRL as the oracle


def padded(sequences) -> dict[str, torch.Tensor]:
    """Token sequences as rows with masks."""
    rows = [torch.tensor(s.tokens.tolist()) for s in sequences]
    ones = [torch.ones(len(s), dtype=torch.long) for s in sequences]
    trained = [torch.tensor((s.weight != 0).tolist()).long() for s in sequences]
    names = ("input_ids", "attention_mask", "completion_mask")
    return {n: pad_sequence(r, batch_first=True) for n, r in zip(names, (rows, ones, trained), strict=True)}


def bare(trainer_class, model, **settings):
    """A trainer of TRL with what its loss reads, and nothing else of what it sets up."""
    trainer = trainer_class.__new__(trainer_class)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    usual = {
        "model": model,
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "label_smoothing": 0.0,
    }
    for name, value in {**usual, **settings}.items():
        setattr(trainer, name, value)
    return trainer


def gradients_of(loss, model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def fused(policy):
    """Copies of both models as TRL's trainers change them."""
    import copy

    from trl.trainer.utils import add_fused_lm_head

    model, start = (copy.deepcopy(each) for each in policy)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    add_fused_lm_head(start)
    return model, start


def trl_dpo(fused, examples, losses, **settings):
    """Loss and gradients of TRL's DPOTrainer, which asks the reference model itself."""
    from trl import DPOTrainer

    model, start = fused
    usual = {
        "ld_alpha": None,
        "precompute_ref_logps": False,
        "ref_model": start,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "beta": 0.1,
        "use_weighting": False,
        "loss_types": list(losses),
        "loss_weights": list(losses.values()),
        "args": SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
    }
    trainer = bare(DPOTrainer, model, **{**usual, **settings})
    rows = padded([e.sequences[0] for e in examples] + [e.sequences[1] for e in examples])
    loss = trainer._compute_loss(model, rows, False)
    return float(loss.detach()), gradients_of(loss, model), trainer._metrics["eval"]


PLAIN = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down")
SORTED = ("aot", "aot_unpaired")
DPO_CASES = [
    *({"loss_type": name} for name in (*PLAIN, "discopop", *SORTED)),
    {"loss_type": "robust", "label_smoothing": 0.1},
    {"loss_type": "exo_pair", "label_smoothing": 1e-3},
    {"loss_type": "aot", "label_smoothing": 0.2},
    {"loss_type": {"sigmoid": 0.8, "bco_pair": 0.2}, "sft_weight": 0.7},
    {"loss_type": "sigmoid", "beta": 0.5, "divergence": "forward_kl"},
    {"loss_type": "hinge", "divergence": "js_divergence"},
    {"loss_type": "sigmoid", "divergence": "alpha_divergence", "divergence_alpha": 0.3},
    {"loss_type": "sigmoid", "tail_weight": 0.25},
]


@pytest.mark.parametrize("settings", DPO_CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_dpo_is_trls(settings, policy, fused, template):
    """Loss and gradients of every loss type, divergence and mixture equal TRL's trainer on the same batch."""
    stage = STAGES.get("dpo")(**settings)
    given = conversations(make_pairs(6))
    examples = examples_of(stage, given, template, policy[1])
    plain = examples_of(STAGES.get("dpo")(), given, template, policy[1])
    losses = stage.losses | ({"sft": stage.sft_weight} if stage.sft_weight else {})
    expected, gradients, measured = trl_dpo(
        fused,
        plain,
        losses,
        beta=stage.beta,
        label_smoothing=stage.label_smoothing,
        f_divergence_type=stage.divergence,
        f_alpha_divergence_coef=stage.divergence_alpha,
        ld_alpha=None if stage.tail_weight == 1 else stage.tail_weight,
    )
    loss, found, parts = step(stage, policy[0], examples)

    # sums of log-probabilities are rounded to 1e-5, which exponentials, and a division by 0.05, make more of
    rounding = TOLERANCE * (3 if stage.divergence != "reverse_kl" or "discopop" in losses else 1)
    assert loss == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)
    assert distance(found, gradients) < rounding
    assert parts["rewards/accuracy"] == pytest.approx(measured["rewards/accuracies"][0])
    assert parts["rewards/margin"] == pytest.approx(measured["rewards/margins"][0], abs=1e-4)


def test_label_smoothing_of_sigmoid_is_conservative_dpo(policy, template):
    """A share of the pairs taken the wrong way round, as LLaMA-Factory's dpo_label_smoothing means it."""
    given = conversations(make_pairs(5))
    swapped = [Conversation((*c.messages[:1], *c.rejected), rejected=c.messages[1:], shared=1) for c in given]
    plain, smoothed = STAGES.get("dpo")(), STAGES.get("dpo")(label_smoothing=0.2)
    right, wrong, mixed = (
        step(stage, policy[0], examples_of(stage, rows, template, policy[1]))[0]
        for stage, rows in ((plain, given), (plain, swapped), (smoothed, given))
    )

    assert mixed == pytest.approx(0.8 * right + 0.2 * wrong, rel=1e-6)


def sided(examples) -> dict[str, torch.Tensor]:
    """The batch of TRL's ORPO and CPO trainers."""
    batch = {}
    for side, name in enumerate(("chosen", "rejected")):
        rows = padded([e.sequences[side] for e in examples])
        labels = rows["input_ids"].masked_fill(rows["completion_mask"] == 0, -100)
        batch |= {f"{name}_input_ids": rows["input_ids"], f"{name}_attention_mask": rows["attention_mask"]}
        batch[f"{name}_labels"] = labels
    return batch


def compare_sided(trainer_class, stage, policy, template, **settings):
    """Assert that *stage* has the loss and the gradients of a trainer of TRL."""
    model = policy[0]
    examples = examples_of(stage, conversations(make_pairs(6)), template, policy[1])
    trainer = bare(trainer_class, model, pad_token_id=0, padding_value=0, **settings)
    loss, _ = trainer.get_batch_loss_metrics(model, sided(examples), "train")
    expected, gradients = float(loss.detach()), gradients_of(loss, model)
    found, own, _ = step(stage, model, examples)

    assert found == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)
    assert distance(own, gradients) < TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("cpo", {}, {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
        ("cpo", {"label_smoothing": 0.1, "sft_weight": 0.5}, {"loss_type": "sigmoid", "cpo_alpha": 0.5}),
        ("cpo", {"loss_type": "hinge", "beta": 0.2}, {"loss_type": "hinge", "cpo_alpha": 1.0}),
        ("cpo", {"loss_type": "ipo", "sft_weight": 0}, {"loss_type": "ipo", "cpo_alpha": 0}),
        ("simpo", {"beta": 2.0, "margin": 1.0}, {"loss_type": "simpo", "cpo_alpha": 0, "simpo_gamma": 1.0}),
        ("simpo", {"beta": 0.5, "margin": 0.3, "sft_weight": 1}, {"loss_type": "simpo", "cpo_alpha": 1.0}),
        ("simpo", {"alpha": 0.25, "label_smoothing": 0.1}, {"loss_type": "simpo", "cpo_alpha": 0, "simpo_gamma": 1.0}),
    ],
)
def test_cpo_and_simpo_are_trls(name, ours, theirs, policy, template):
    from trl.experimental.cpo import CPOTrainer

    stage = STAGES.get(name)(**ours)
    given = {"simpo_gamma": 0.3, "alpha": ours.get("alpha", 0.0), "label_smoothing": stage.label_smoothing}
    compare_sided(CPOTrainer, stage, policy, template, **{**given, "beta": stage.beta, **theirs})


@pytest.mark.filterwarnings("ignore")
def test_orpo_is_trls_with_the_prompt_and_the_papers_without(policy, template):
    """TRL imitates the prompt, too; what that adds costs no token, because the chosen ending begins with it."""
    from trl.experimental.orpo import ORPOTrainer

    stage = STAGES.get("orpo")(train_on_prompt=True, beta=0.3)
    compare_sided(ORPOTrainer, stage, policy, template, beta=0.3)
    answers = examples_of(STAGES.get("orpo")(), conversations(make_pairs(6)), template, policy[1])
    whole = examples_of(stage, conversations(make_pairs(6)), template, policy[1])
    sizes = [sum(len(p.tokens) for p in build_packs(made, "prefix", 10**6)) for made in (answers, whole)]

    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_kto_is_trls_on_a_batch_that_is_the_step(loss_type, policy, fused, template):
    """Given the same mismatched answers, the loss over one step is that of TRL's trainer over one batch."""
    from trl import KTOTrainer

    model, start = fused
    stage = STAGES.get("kto")(loss_type=loss_type, desirable_weight=1.5, undesirable_weight=0.8)
    examples = examples_of(stage, conversations(make_pairs(5)), template, policy[1])
    rows = padded([e.sequences[0] for e in examples])
    partners = [examples[e.values[4]].sequences[0] for e in examples]
    other = []
    for example, partner in zip(examples, partners, strict=True):
        own = example.sequences[0]
        begin, first = (int(np.flatnonzero(s.weight)[0]) for s in (own, partner))
        tokens = [*own.tokens[:begin].tolist(), *partner.tokens[first:].tolist()]
        other.append(type(own).trained_from(tokens, begin))
    rows |= {f"KL_{name}": value for name, value in padded(other).items()}
    trainer = bare(
        KTOTrainer,
        model,
        ref_model=start,
        precompute_ref_logps=False,
        calculate_KL=loss_type == "kto",
        loss_type=loss_type,
        beta=stage.beta,
        desirable_weight=stage.desirable_weight,
        undesirable_weight=stage.undesirable_weight,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    liked = torch.tensor([e.values[0] for e in examples])
    loss = trainer._compute_loss(model, {**rows, "label": liked}, False)
    expected, gradients = float(loss.detach()), gradients_of(loss, model)
    found, own, parts = step(stage, policy[0], examples)

    assert found == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)
    assert distance(own, gradients) < TOLERANCE
    assert parts["divergence"] == pytest.approx(trainer._metrics["eval"]["kl"][0], abs=1e-4)
    for name in ("chosen", "rejected"):
        assert parts[f"rewards/{name}"] == pytest.approx(trainer._metrics["eval"][f"rewards/{name}"][0], abs=1e-4)


# --- layouts


@pytest.mark.parametrize(
    "stage",
    [
        {"type": "dpo", "sft_weight": 0.5, "loss_type": {"sigmoid": 1.0, "aot_unpaired": 0.5}},
        {"type": "kto"},
        {"type": "orpo", "train_on_prompt": True},
    ],
    ids=lambda stage: stage["type"],
)
def test_layout_changes_neither_loss_nor_gradients(stage, policy, template):
    """Whatever the layout and the number of passes, a step has one loss and one gradient."""
    spec = STAGES.parse(stage)
    examples = examples_of(spec, conversations(make_pairs(6)), template, policy[1])
    expected, gradients, parts = step(spec, policy[0], examples, "single")
    for layout in ("prefix", "packed", "padded"):
        loss, found, measured = step(spec, policy[0], examples, layout)

        assert loss == pytest.approx(expected, rel=1e-5)
        assert distance(found, gradients) < TOLERANCE
        assert measured == pytest.approx(parts, abs=1e-4)


def test_a_prompt_is_computed_once_for_both_endings(policy, template):
    """DPO on pairs with a common prompt feeds at most 60% of the tokens that padding would."""
    stage = STAGES.get("dpo")()
    examples = examples_of(stage, conversations(make_pairs(8)), template, policy[1])
    shared, rows = (
        sum(len(pack.tokens) for pack in build_packs(examples, layout, 10**6)) for layout in ("prefix", "padded")
    )

    assert shared <= 0.6 * rows


def test_a_template_that_rewrites_history_keeps_an_ending_together(policy, template):
    """An ending of several turns may be several sequences; its log-probability is that of all of them."""
    stage = STAGES.get("dpo")()
    ending = (Message("assistant", "mist"), Message("user", "more"), Message("assistant", "hill"))
    given = Conversation((Message("user", "words"), *ending), rejected=(Message("assistant", "rain"),), shared=1)
    (example,) = examples_of(stage, [given], template, policy[1])
    whole = template.sequences([given])[0]

    assert example.values[0] == len(whole)
    assert example.values[2] == pytest.approx(sum(asking(policy[1])([type(example)(tuple(whole))])[0]), abs=1e-4)

"""Layout is not semantics: however examples are laid out, the gradients are those of one sequence after another."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM

from tunesmith.engine.check import choose_layout
from tunesmith.engine.example import Example
from tunesmith.engine.model import PackModel, pack_arguments
from tunesmith.engine.pack import build_packs
from tunesmith.methods import METHODS
from tunesmith.stages import STAGES
from tunesmith.templates.tokens import TokenSequence

LAYOUTS = ("prefix", "packed", "padded")
ONLY_PADDED = (
    "bloom-alibi",
    "gpt-neo-local",
    "mpt-alibi",
    "mamba-recurrent",
    "rwkv-recurrent",
    "lfm2-convolution",
)
MASKABLE = [name for name in ARCHITECTURES if name not in ONLY_PADDED]
# gradients of the whole model agree so far, relative to their norm, in float32
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Sequences that share a system prompt, some of them a question; duplicates, branches, long and short tails."""
    generator = torch.Generator().manual_seed(1)

    def text(length: int) -> list[int]:
        return torch.randint(5, 290, (length,), generator=generator).tolist()

    system, question = text(20), text(12)
    groups = [
        [system + text(3)],
        [system + question + text(9), system + question + text(2)],
        [system + question + text(80)],
        [system + question],
        [text(5)],
        [text(90)],
        [system + text(30), system + question + text(6)],
    ]
    groups.append(groups[2])

    def weighted(tokens: list[int]) -> TokenSequence:
        weights = torch.tensor([0.0, 0.5, 1.0, 2.0])[torch.randint(4, (len(tokens),), generator=generator)]
        return TokenSequence.of(tokens, weights.tolist())

    return [Example(tuple(weighted(tokens) for tokens in group)) for group in groups]


def load(path, method: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model ready to train, but without dropout; its adapters have left zero, so that all of them matter."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    spec = METHODS.get(method)()
    torch.manual_seed(5)
    trained = spec.apply(model).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return trained, spec.base_model(trained)


def by_name(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of each weight that trains; nothing where none came."""
    training = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in training}


def plain_step(path, method: str, examples: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients from transformers alone, one sequence at a time."""
    model, base = load(path, method)
    total = 0.0
    for sequence in (s for e in examples for s in e.sequences):
        tokens = torch.from_numpy(sequence.tokens).long()
        logits = base(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits.float(), tokens[1:], reduction="none")
        loss = (each * torch.from_numpy(sequence.weight)[1:]).sum()
        loss.backward()
        total += float(loss.detach())
    return total, by_name(model)


def packed_step(path, method: str, examples: list[Example], layout: str, budget: int = 10_000):
    """Loss and gradients from packs in *layout*."""
    trained, base = load(path, method)
    model, stage = PackModel(trained, base).eval(), STAGES.get("sft")()
    total = 0.0
    for pack in build_packs(examples, layout, budget):
        tensors = pack.to("cpu")
        loss = stage.loss(model(**pack_arguments(tensors)), tensors).total
        loss.backward()
        total += float(loss.detach())
    return total, by_name(trained)


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """How far two gradients are apart, relative to the norm of the expected one."""
    assert expected.keys() == found.keys()
    square = sum(float((found[name].double() - expected[name].double()).square().sum()) for name in expected)
    return (square / sum(float(g.double().square().sum()) for g in expected.values())) ** 0.5


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("architecture", MASKABLE)
def test_every_layout_gives_the_gradients_of_single_sequences(architecture, method, saved_model, examples):
    path = saved_model(architecture)
    loss, expected = plain_step(path, method, examples)

    for layout in LAYOUTS:
        found_loss, found = packed_step(path, method, examples, layout)
        assert abs(found_loss - loss) <= 1e-5 * abs(loss), layout
        assert distance(found, expected) <= ROUNDING, layout


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2-windowed", "granite-scaled"])
def test_the_sum_is_that_of_the_log_probabilities(architecture, saved_model, examples):
    """Stages that know their coefficients take another way through the model's head."""
    trained, base = load(saved_model(architecture), "full")
    model = PackModel(trained, base).eval()
    (pack,) = build_packs(examples, "prefix", 10_000)
    tensors = pack.to("cpu")
    (tensors.weight * model(**pack_arguments(tensors))).sum().backward()
    expected = by_name(trained)
    trained.zero_grad()
    model(**pack_arguments(tensors), coefficient=tensors.weight).backward()

    assert distance(by_name(trained), expected) <= ROUNDING


@pytest.mark.parametrize("name", STAGES.names())
def test_a_stage_that_knows_its_coefficients_has_no_other_loss(name, examples):
    if needed := [key for key, field in STAGES.get(name).model_fields.items() if field.is_required()]:
        pytest.skip(f"{name} needs {', '.join(needed)}, and computes its loss from the log-probabilities")
    (pack,) = build_packs(examples, "prefix", 10_000)
    tensors, stage = pack.to("cpu"), STAGES.get(name)()
    coefficient = stage.coefficient(tensors)
    if coefficient is None:
        pytest.skip(f"{name} computes its loss from the log-probabilities")
    log_probabilities = -torch.rand(len(tensors.target))
    loss = stage.loss(log_probabilities, tensors)

    torch.testing.assert_close((coefficient * log_probabilities).sum(), loss.total)
    assert not loss.parts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cutting_a_step_into_passes_changes_nothing(layout, saved_model, examples):
    path = saved_model("qwen3")
    whole_loss, whole = packed_step(path, "lora", examples, layout)
    loss, found = packed_step(path, "lora", examples, layout, budget=60)

    assert abs(loss - whole_loss) <= 1e-5 * abs(whole_loss)
    assert distance(found, whole) <= ROUNDING


@pytest.mark.parametrize("architecture", ONLY_PADDED)
def test_padded_rows_serve_models_that_cannot_be_masked(architecture, saved_model, examples):
    path = saved_model(architecture)
    loss, expected = plain_step(path, "full", examples)
    found_loss, found = packed_step(path, "full", examples, "padded")

    assert abs(found_loss - loss) <= 1e-5 * abs(loss)
    # recurrences multiply rounding along the sequence: 1.3e-4 for mamba in float32, 2e-7 in float64
    assert distance(found, expected) <= (3e-4 if architecture == "mamba-recurrent" else ROUNDING)


def test_loss_and_gradient_of_a_step_are_trls(saved_model, examples, tokenizer, tmp_path):
    """Against TRL's trainer with its padding and its gradient accumulation; it knows no weights but 0 and 1."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    sequences = [TokenSequence.of(s.tokens, s.weight > 0) for e in examples for s in e.sequences]
    rows = [{"input_ids": s.tokens, "labels": np.where(s.weight, s.tokens, -100)} for s in sequences]
    expected: dict[str, torch.Tensor] = {}

    class KeepGradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **others):
            expected.update(by_name(model))

    path = saved_model("qwen3")
    trainer = SFTTrainer(
        model=load(path, "lora")[0],
        args=SFTConfig(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            max_grad_norm=0,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[KeepGradients()],
    )
    trainer.train()

    total, summed = packed_step(path, "lora", [Example((s,)) for s in sequences], "prefix")
    size = sum(s.weight_total for s in sequences)
    assert abs(total / size - trainer.state.log_history[0]["loss"]) <= 1e-5
    assert distance({name: gradient / size for name, gradient in summed.items()}, expected) <= ROUNDING


def chosen(path, examples: list[Example], wanted: str, precision: str = "no") -> tuple[str, list[str]]:
    trained, base = load(path, "full")
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    return choose_layout(PackModel(trained, base), examples, wanted, accelerator)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", MASKABLE)
def test_a_layout_that_fits_is_kept_without_a_word(architecture, layout, saved_model, examples):
    assert (layout, []) == chosen(saved_model(architecture), examples, layout)


@pytest.mark.parametrize("architecture", ONLY_PADDED)
def test_a_model_that_cannot_be_masked_is_found_out_and_padded(architecture, saved_model, examples):
    layout, notices = chosen(saved_model(architecture), examples, "prefix")

    assert layout == "padded"
    assert any("prefix" in text and "padded" in text for text in notices)


@pytest.mark.parametrize("architecture", ["mamba-recurrent", "rwkv-recurrent", "lfm2-convolution"])
def test_packing_without_sharing_is_found_out_too(architecture, saved_model, examples):
    assert chosen(saved_model(architecture), examples, "packed")[0] == "padded"


@pytest.mark.parametrize("architecture", ONLY_PADDED)
def test_one_example_of_plain_data_is_enough_to_find_out(architecture, saved_model, examples):
    """Sequences that mix, and prefixes that are shared, may come with the second batch only."""
    assert chosen(saved_model(architecture), examples[:1], "prefix")[0] == "padded"


@pytest.mark.parametrize("architecture", MASKABLE)
def test_the_rounding_of_bfloat16_is_not_taken_for_a_mistake(architecture, saved_model, examples):
    assert chosen(saved_model(architecture), examples, "prefix", "bf16") == ("prefix", [])


@pytest.mark.parametrize("architecture", ONLY_PADDED)
def test_a_mistake_is_not_taken_for_the_rounding_of_bfloat16(architecture, saved_model, examples):
    assert chosen(saved_model(architecture), examples, "prefix", "bf16")[0] == "padded"

"""Settle everything about a run before any weight is loaded, each answer with its why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.errors import Problem, RecipeError
from tunesmith.engine.pack import ROWS
from tunesmith.models.quantized_base import check_device
from tunesmith.run.continuing import start_notices
from tunesmith.run.defaults import usual_rate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.engine.pack import Layout
    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.machine import Machine
    from tunesmith.run.need import Memory

# tokens of a pass beyond which a device is busy all the time: a GPU starts thousands of kernels a pass, a CPU few
MOST_TOKENS = {"cuda": 16384, "mps": 4096, "cpu": 1024}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe with every open question answered."""

    recipe: Recipe
    device: str
    processes: int
    precision: Literal["float32", "bfloat16", "float16"]
    layout: Layout
    attention: tuple[str, ...]
    """Backends of attention, the first that can compute a pack of this model does."""
    tokens_per_pass: int
    learning_rate: float
    examples: int
    steps: int
    evaluate_every: int | None
    checkpoint_every: int
    quantization: str | None = None
    """How the frozen weights are quantized, and None where they are not."""
    compile: bool = False
    """Whether the transformer blocks are compiled."""
    parameters: int | None = None
    """Of the whole model, adapters included; None where it could not be built without weights."""
    trained_parameters: int | None = None
    memory: Memory | None = None
    """What the run needs at its worst moment; None where that could not be counted."""
    seconds: float | None = None
    """How long the optimizer steps will take."""
    why: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data: the recipe, what was settled, and why."""
        own = {k: v for k, v in asdict(self).items() if k not in ("recipe", "why", "notices")}
        recipe = self.recipe.model_dump(mode="json")
        return {"recipe": recipe, "settled": own, "why": self.why, "notices": list(self.notices)}


def make_plan(
    recipe: Recipe, machine: Machine, examples: int, *, validated: bool, parameters: int | None = None
) -> Plan:
    """Settle *recipe* for *machine* and so many *examples*; raise :class:`RecipeError` for what cannot work.

    *parameters* of the model, where they are known, weigh in the learning rate.
    """
    _check_machine(recipe, machine)
    why = {
        "device": machine.name,
        "processes": "started by a launcher" if machine.processes > 1 else "no launcher: this process alone",
        "examples": "counted in the data",
        "quantization": "none: the weights are as in the files",
    }
    schedule, settings = recipe.schedule, recipe.engine
    precision = _precision(recipe, machine, why)
    layout = _layout(recipe, why)
    tokens = settings.tokens_per_pass
    if tokens is None:
        tokens = MOST_TOKENS[machine.device]
        why["tokens_per_pass"] = f"more is no faster on {machine.device}"
    rate = schedule.learning_rate
    if rate is None:
        rate, why["learning_rate"] = usual_rate(recipe, parameters)
    per_epoch = math.ceil(examples / schedule.batch_size) * recipe.stage.steps_per_batch
    steps = schedule.steps or max(1, round(schedule.epochs * per_epoch))
    if schedule.steps is None:
        why["steps"] = (
            f"{schedule.epochs:g} epochs of {per_epoch} steps ({examples} examples, {schedule.batch_size} a step)"
        )
    saved = recipe.checkpoints.every
    if saved is None:
        saved = min(per_epoch, steps)
        why["checkpoint_every"] = "once an epoch"
    return Plan(
        recipe=recipe,
        device=machine.device,
        processes=machine.processes,
        precision=precision,
        layout=layout,
        attention=_attention(settings.attention, machine.device, precision, layout, why),
        tokens_per_pass=tokens,
        learning_rate=rate,
        examples=examples,
        steps=steps,
        evaluate_every=_evaluate_every(recipe, steps, validated, why),
        checkpoint_every=saved,
        why=why,
        notices=tuple(_notices(recipe, examples)),
    )


def _precision(recipe: Recipe, machine: Machine, why: dict[str, str]) -> Literal["float32", "bfloat16", "float16"]:
    """Return the arithmetic; settle *why*."""
    wanted = recipe.engine.precision
    if wanted != "auto":
        return wanted
    if recipe.engine.weights == "bfloat16":
        why["precision"] = "the type of the weights that train"
        return "bfloat16"
    if machine.bfloat16:
        why["precision"] = f"{machine.name} computes bfloat16 fast"
        return "bfloat16"
    why["precision"] = f"{machine.device}: exact, and no faster otherwise"
    return "float32"


def _layout(recipe: Recipe, why: dict[str, str]) -> Layout:
    """Return how sequences are laid out in a pass; settle *why*."""
    wanted = recipe.engine.layout
    if wanted != "auto":
        return wanted
    if recipe.engine.attention == "varlen":
        why["layout"] = "packed: varlen attention shares nothing"
        return "packed"
    why["layout"] = "packed, with shared prompts computed once; checked against single sequences before the first step"
    return "prefix"


def _evaluate_every(recipe: Recipe, steps: int, validated: bool, why: dict[str, str]) -> int | None:
    """Return after how many steps the held-out loss is taken, None where nothing is held out; settle *why*."""
    if not validated:
        why["evaluate_every"] = "no validation data"
        return None
    if recipe.evaluation.every is not None:
        return recipe.evaluation.every
    why["evaluate_every"] = "about ten times a run"
    return max(1, steps // 10)


def _attention(wanted: str, device: str, precision: str, layout: str, why: dict[str, str]) -> tuple[str, ...]:
    """Return the backends of attention that may be used, the reference last; settle *why*."""
    if layout in ROWS:
        why["attention"] = "rows of one sequence take the attention that the model comes with"
        return ("own",)
    if wanted != "auto":
        return ("dense",) if wanted == "dense" else (wanted, "dense")
    fast = {"cpu": ("segments",), "cuda": ("flex",) if precision == "float32" else ("varlen", "flex")}.get(device, ())
    why["attention"] = (
        f"fastest first on {device}; checked against dense before the first step"
        if fast
        else f"no other computes the gradients on {device}"
    )
    return (*fast, "dense")


def _check_machine(recipe: Recipe, machine: Machine) -> None:
    problems = []
    wanted = recipe.engine.device
    if wanted not in ("auto", machine.device):
        problems.append(
            Problem(
                "engine.device",
                f"{wanted} was asked for, this machine has {machine.device}",
                hint="use engine.device=auto",
            )
        )
    if recipe.engine.precision == "float16" and machine.device == "cpu":
        problems.append(Problem("engine.precision", "float16 does not train on a CPU", hint="use float32 or bfloat16"))
    problems += _attention_problems(recipe, machine)
    problems += recipe.method.check_machine(machine.device)
    problems += recipe.optimizer.check_machine(machine.device)
    problems += recipe.stage.check_processes(machine.processes)
    problems += check_device(recipe.model, machine.device)
    if recipe.engine.activation_offload and machine.device != "cuda":
        why = f"activations of {machine.device} are in the CPU's memory already"
        problems.append(Problem("engine.activation_offload", why, hint="leave it off, or train on a GPU"))
    if recipe.engine.optimizer_in_backward and machine.processes > 1:
        why = f"{machine.processes} processes add up their gradients after the backward pass"
        problems.append(Problem("engine.optimizer_in_backward", why, hint="leave it off, or train in one process"))
    if recipe.regularization.layer_dropout and machine.processes > 1:
        why = f"{machine.processes} processes would leave out different blocks, and wait for each other's gradients"
        problems.append(Problem("regularization.layer_dropout", why, hint="set it to 0, or train in one process"))
    if problems:
        raise RecipeError(problems)


def _attention_problems(recipe: Recipe, machine: Machine) -> Iterator[Problem]:
    """Yield why the attention that was asked for cannot work here."""
    engine, path = recipe.engine, "engine.attention"
    device = {"segments": "cpu", "flex": "cuda", "varlen": "cuda"}.get(engine.attention, machine.device)
    if machine.device != device:
        yield Problem(path, f"{engine.attention} is for {device}, this machine has {machine.device}", hint="use auto")
    if engine.attention in ("dense", "auto"):
        return
    if engine.layout in ROWS:
        yield Problem(path, f"{engine.attention} is for packs, layout: {engine.layout} makes none", hint="use auto")
    if engine.attention == "varlen" and engine.layout == "prefix":
        yield Problem(path, "varlen cannot share prompts as layout: prefix does", hint="use layout: packed, or flex")
    if engine.attention == "varlen" and engine.precision == "float32":
        yield Problem(path, "varlen computes in half precision only", hint="use precision: bfloat16, or flex")


def _notices(recipe: Recipe, examples: int) -> list[str]:
    notices = list(start_notices(recipe))
    if recipe.model.trust_remote_code:
        notices.append(f"model.trust_remote_code: Python code that comes with {recipe.model.path} will be run")
    if examples < recipe.schedule.batch_size:
        notices.append(
            f"only {examples} examples for a batch of {recipe.schedule.batch_size}: every step sees all of them"
        )
    return notices

"""Settle everything about a run before any weight is loaded, each answer with its why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.errors import Problem, RecipeError

if TYPE_CHECKING:
    from tunesmith.engine.pack import Layout
    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.machine import Machine


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe with every open question answered."""

    recipe: Recipe
    device: str
    processes: int
    precision: Literal["float32", "bfloat16", "float16"]
    layout: Layout
    tokens_per_pass: int
    learning_rate: float
    examples: int
    steps: int
    evaluate_every: int | None
    checkpoint_every: int
    why: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data: the recipe, what was settled, and why."""
        own = {k: v for k, v in asdict(self).items() if k not in ("recipe", "why", "notices")}
        recipe = self.recipe.model_dump(mode="json")
        return {"recipe": recipe, "settled": own, "why": self.why, "notices": list(self.notices)}


def make_plan(recipe: Recipe, machine: Machine, examples: int, *, validated: bool) -> Plan:
    """Settle *recipe* for *machine* and so many *examples*; raise :class:`RecipeError` for what cannot work."""
    _check_machine(recipe, machine)
    why = {
        "device": machine.name,
        "processes": "started by a launcher" if machine.processes > 1 else "no launcher: this process alone",
        "examples": "counted in the data",
    }
    schedule, settings = recipe.schedule, recipe.engine
    precision = settings.precision
    if precision == "auto":
        precision = "bfloat16" if machine.bfloat16 else "float32"
        why["precision"] = (
            f"{machine.name} computes bfloat16 fast"
            if machine.bfloat16
            else f"{machine.device}: exact, and no faster otherwise"
        )
    layout = settings.layout
    if layout == "auto":
        layout = "prefix"
        why["layout"] = (
            "packed, with shared prompts computed once; checked against single sequences before the first step"
        )
    tokens = settings.tokens_per_pass
    if tokens is None:
        tokens = 8192 if machine.device == "cuda" else 1024
        why["tokens_per_pass"] = f"usual for {machine.device}; lower it when memory runs out"
    rate = schedule.learning_rate
    if rate is None:
        rate = recipe.method.learning_rate
        why["learning_rate"] = f"usual for {recipe.method.type_name()}"
    per_epoch = math.ceil(examples / schedule.batch_size)
    steps = schedule.steps or max(1, round(schedule.epochs * per_epoch))
    if schedule.steps is None:
        why["steps"] = (
            f"{schedule.epochs:g} epochs of {per_epoch} steps ({examples} examples, {schedule.batch_size} a step)"
        )
    every = recipe.evaluation.every
    if validated and every is None:
        every = max(1, steps // 10)
        why["evaluate_every"] = "about ten times a run"
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
        tokens_per_pass=tokens,
        learning_rate=rate,
        examples=examples,
        steps=steps,
        evaluate_every=every if validated else None,
        checkpoint_every=saved,
        why=why,
        notices=tuple(_notices(recipe, examples)),
    )


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
    if problems:
        raise RecipeError(problems)


def _notices(recipe: Recipe, examples: int) -> list[str]:
    notices = []
    if recipe.model.trust_remote_code:
        notices.append(f"model.trust_remote_code: Python code that comes with {recipe.model.path} will be run")
    if examples < recipe.schedule.batch_size:
        notices.append(
            f"only {examples} examples for a batch of {recipe.schedule.batch_size}: every step sees all of them"
        )
    return notices

"""Plan a recipe for this machine, for a named card, or so that it fits a memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.files import write_text
from tunesmith.core.settings import process_settings
from tunesmith.recipe.document import write_values
from tunesmith.run.cards import Card, Size, find_card, nameless_card, read_size
from tunesmith.run.fit import Fitter, advice
from tunesmith.run.fit import fit as fit_to
from tunesmith.run.machine import Machine
from tunesmith.run.need import bytes_text
from tunesmith.run.probe import probe_speed
from tunesmith.run.settle import Settled, settle
from tunesmith.run.speed import assumed_speed, quick_speed

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.fit import Fitted
    from tunesmith.run.speed import SpeedOf


@dataclass(frozen=True)
class Planned:
    """A plan, what would make it fit where it does not, and the recipe that was made to fit where one was asked for."""

    settled: Settled
    advice: tuple[str, ...] = ()
    fitted: Fitted | None = None

    @property
    def recipe_text(self) -> str:
        """The fitted recipe as YAML."""
        return write_values(self.fitted.values) if self.fitted is not None else ""

    def write_recipe(self, path: Path) -> None:
        """Write the fitted recipe to *path*."""
        write_text(path, self.recipe_text)

    def as_data(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        data = self.settled.as_data()
        if self.advice:
            data["advice"] = list(self.advice)
        if self.fitted is not None:
            data["fitted"] = {"recipe": self.fitted.values, "why": list(self.fitted.why)}
        return data


def check_options(*, card: str | None, fit: str | None, probe: bool, output: Path | None) -> None:
    """Raise :class:`UserError` for options that mean nothing or exclude one another, before anything is read."""
    if card is not None:
        find_card(card)
    if fit is not None:
        read_size(fit)
    if card is not None and fit is not None:
        raise UserError("--card and --fit exclude each other: --fit takes a card's name too")
    if probe and (card is not None or fit is not None):
        raise UserError("--probe times this machine; it says nothing about another one")
    if output is not None and fit is None:
        raise UserError("--output is for the recipe that --fit makes")


def plan_for(recipe: Recipe, *, card: str | None = None, fit: str | None = None, probe: bool = False) -> Planned:
    """Return the plan of *recipe* for this machine or the one that is named; raise for all that cannot work."""
    if fit is not None:
        wanted = read_size(fit)
        if isinstance(wanted, Size):
            recipe, machine, speed, assumed = _sized(recipe, wanted)
        else:
            (machine, speed), assumed = _machine(recipe, wanted), ""
        fitted = fit_to(recipe, machine, speed)
        if assumed:
            fitted = replace(fitted, why=(f"{fit}: {assumed}", *fitted.why))
        return Planned(fitted.settled, fitted=fitted)
    machine, speed = _machine(recipe, find_card(card) if card is not None else None)
    if probe:
        speed = probe_speed
    settled = settle(recipe, machine=machine, speed=speed, shape_will_do=True)
    memory = settled.plan.memory
    if memory is None or memory.verdict in ("fits", "unknown"):
        return Planned(settled)
    offers = Fitter(machine, settled.prepared, settled.config).offers(settled)
    return Planned(settled, tuple(advice(offers)))


def _machine(recipe: Recipe, wanted: Card | None) -> tuple[Machine, SpeedOf]:
    """Return the machine to plan for, and how to say how fast it is."""
    here = Machine.probe(recipe.engine.device, process_settings().world_size)
    if wanted is None:
        return here, quick_speed
    # whether torch is there decides what can be counted, not where the run will be
    return replace(wanted.machine(here.processes), has_torch=here.has_torch), partial(assumed_speed, wanted)


def _sized(recipe: Recipe, wanted: Size) -> tuple[Recipe, Machine, SpeedOf, str]:
    """Return *recipe* for a memory of the *wanted* size, machine and speed as :func:`_machine`, and what was assumed.

    A size alone is that of a GPU, for that is what people count memory of; where none is here, of a CUDA card.
    """
    device = recipe.engine.device
    if wanted.of_cpu and device not in ("auto", "cpu"):
        raise UserError(f"--fit: ram is the processor's, but the recipe says engine.device: {device}; leave one out")
    if wanted.of_cpu:  # said in the fitted recipe too: a GPU that is here would be taken otherwise
        recipe = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"device": "cpu"})})
    machine, speed = _machine(recipe, None)
    if wanted.memory_bytes is None:
        return recipe, machine, speed, f"{bytes_text(machine.memory_bytes)}, all that this machine has"
    if machine.device == "cpu" and recipe.engine.device != "cpu":
        card = nameless_card(wanted.memory_bytes)
        assumed = (
            "taken as the memory of a CUDA card, though none is here; write it with the word ram for a processor's"
        )
        return recipe, *_machine(recipe, card), assumed
    whose = "the processor's" if machine.device == "cpu" else f"that of this machine's {machine.device} device"
    return recipe, replace(machine, memory_bytes=wanted.memory_bytes), speed, f"taken as {whose}"

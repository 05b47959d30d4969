"""Plan a recipe for this machine, for a named card, or so that it fits a memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.files import write_text
from tunesmith.core.settings import process_settings
from tunesmith.recipe.document import write_values
from tunesmith.run.cards import Card, find_card, read_size
from tunesmith.run.fit import Fitter, advice
from tunesmith.run.fit import fit as fit_to
from tunesmith.run.machine import Machine
from tunesmith.run.settle import Settled, settle
from tunesmith.run.speed import Speed, assumed_speed, probe_speed, quick_speed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.fit import Fitted
    from tunesmith.run.outline import Outline
    from tunesmith.run.plan import Plan


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
        machine, speed = _machine(recipe, read_size(fit))
        fitted = fit_to(recipe, machine, speed)
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


def _machine(recipe: Recipe, wanted: Card | int | None) -> tuple[Machine, Callable[[Machine, Plan, Outline], Speed]]:
    """Return the machine to plan for, and how to say how fast it is."""
    here = Machine.probe(recipe.engine.device, process_settings().world_size)
    if isinstance(wanted, Card):
        # whether torch is there decides what can be counted, not where the run will be
        return replace(wanted.machine(here.processes), has_torch=here.has_torch), partial(_of_card, wanted)
    return (here if wanted is None else replace(here, memory_bytes=wanted)), _here


def _of_card(card: Card, machine: Machine, plan: Plan, outline: Outline) -> Speed:  # noqa: ARG001
    return assumed_speed(card)


def _here(machine: Machine, plan: Plan, outline: Outline) -> Speed:  # noqa: ARG001
    return quick_speed(machine, plan)

"""Make a recipe fit a memory: levers by their price, each tried on the model without weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.registry import is_missing
from tunesmith.engine.memory import LEVERS
from tunesmith.models.quantized_base import settled_quantization
from tunesmith.recipe.read import recipe_from_values
from tunesmith.run.need import CLOSE, bytes_text, weights_share
from tunesmith.run.plan import make_plan
from tunesmith.run.prepare import open_data, prepare
from tunesmith.run.sampled import online_stage, writes_here, written_together
from tunesmith.run.settle import Settled, make_outline, settle_prepared
from tunesmith.run.start import load_start

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedConfig

    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.machine import Machine
    from tunesmith.run.outline import Outline
    from tunesmith.run.prepared import Prepared
    from tunesmith.run.speed import SpeedOf

Values = dict[str, Any]
# of a recipe's settings: what neither shows in the model without weights nor in what is traced of it
_OUTSIDE_THE_MODEL: Any = {
    "optimizer": True,
    "engine": {"tokens_per_pass", "optimizer_in_backward"},
    "schedule": {"max_gradient_norm"},
}


@dataclass(frozen=True)
class Lever:
    """One way to need less memory."""

    name: str
    changes: tuple[tuple[str, Any], ...]
    """Settings and what they become."""
    time: float
    """Factor of a step's time; our judgement where the engine has measured none."""
    note: str = ""
    """What else it changes; empty where the run learns the same, beyond rounding."""


@dataclass(frozen=True)
class Offer:
    """A lever with what it would do for one recipe."""

    lever: Lever
    saves: int
    """Bytes."""
    enough: bool
    """Whether the recipe fits with this alone."""

    def __str__(self) -> str:
        settings = " ".join(f"{path}={_written(value)}" for path, value in self.lever.changes)
        note = f"; {self.lever.note}" if self.lever.note else ""
        enough = ", which is enough" if self.enough else ""
        time = f"a step takes {self.lever.time:.2f} times as long"
        return f"{settings}: saves {bytes_text(self.saves)}{enough}; {time}{note}"


@dataclass(frozen=True)
class Fitted:
    """A recipe that fits, what it settles to, and what was changed and why."""

    settled: Settled
    values: Values
    """The recipe's settings, without defaults."""
    why: tuple[str, ...]


@dataclass(frozen=True)
class Fitter:
    """Settles variants of a recipe over the same data."""

    machine: Machine
    prepared: Prepared
    config: PreTrainedConfig
    speed: SpeedOf | None = None
    outlines: dict[str, tuple[PreTrainedConfig, Outline | str]] = field(default_factory=dict)
    """Models without weights, and what was seen of them: those variants share one whose models are the same."""

    def settle(self, recipe: Recipe) -> Settled:
        """Return what *recipe*, a variant, settles to."""
        config, outline = self._outline(recipe)
        return settle_prepared(recipe, self.machine, self.prepared, config, outline, self.speed)

    def _outline(self, recipe: Recipe) -> tuple[PreTrainedConfig, Outline | str]:
        key = recipe.model_dump_json(exclude=_OUTSIDE_THE_MODEL)
        if key not in self.outlines:
            config = copy.deepcopy(self.config)  # building a model writes into it
            self.outlines[key] = config, make_outline(recipe, config, self.machine)
        return self.outlines[key]

    def offers(self, settled: Settled, levers: Iterable[Lever] | None = None) -> list[Offer]:
        """Return what would make *settled* smaller, cheapest first; levers that save nothing are left out."""
        before = settled.plan.memory
        found = []
        for lever in _levers(settled) if levers is None else levers:
            # compared at the same number of tokens a pass, whatever room a lever makes for more
            equal = _set(_values(settled.plan.recipe), "engine.tokens_per_pass", settled.plan.tokens_per_pass)
            changed = _apply(equal, lever)
            after = self._memory(changed)
            if before is not None and after is not None and after.tensors < 0.99 * before.tensors:
                found.append(Offer(lever, before.total - after.total, after.verdict in ("fits", "unknown")))
        return sorted(found, key=_price)

    def cheapest(self, settled: Settled, stated: set[str]) -> Lever | None:
        """Return the lever of the first of :meth:`offers` that changes nothing *stated*; fewer are tried for it.

        Where weights and optimizer alone are too many, no other lever can be enough: then it is the first of those that
        make them fewer, for which no pass need be traced.
        """
        levers = [each for each in _levers(settled) if not any(path in stated for path, _ in each.changes)]
        levers.sort(key=lambda each: (bool(each.note), each.time))
        memory = settled.plan.memory
        assert memory is not None
        if weights_share(memory) > 1 and (lever := self._least_weights(settled, levers)):
            return lever
        for _, group in groupby(levers, key=lambda each: bool(each.note)):
            found: list[Offer] = []
            for lever in group:
                if any(offer.enough and offer.lever.time < lever.time for offer in found):
                    break
                found += self.offers(settled, [lever])
            if found:
                return min(found, key=_price).lever
        return None

    def _least_weights(self, settled: Settled, levers: list[Lever]) -> Lever | None:
        """Return the first of *levers* after which weights and optimizer fit, else of those that make them fewer."""
        values = _values(settled.plan.recipe)
        smaller: list[tuple[bool, bool, float, int, Lever]] = []
        before, most = self._weights(values), CLOSE * self.machine.memory_bytes
        for lever in levers:
            after = self._weights(_apply(values, lever))
            if before is not None and after is not None and after < 0.99 * before:
                smaller.append((bool(lever.note), after > most, lever.time, after, lever))
        return min(smaller, key=lambda each: each[:4])[-1] if smaller else None

    def _weights(self, values: Values) -> int | None:
        """Return the bytes of weights and optimizer; None where that cannot be, or is not known."""
        try:
            recipe = recipe_from_values(values)
            _, outline = self._outline(recipe)
            plan = make_plan(recipe, self.machine, len(self.prepared.train.examples), validated=False)
        except UserError:
            return None
        return None if isinstance(outline, str) else sum(outline.static(plan).values())

    def _memory(self, values: Values) -> Any:
        try:
            return self.settle(recipe_from_values(values)).plan.memory
        except UserError:  # the lever does not go with another setting of this recipe
            return None


def _price(offer: Offer) -> tuple[bool, bool, float, int]:
    """Return what offers are sorted by: what learns the same comes before what does not; then time, then bytes."""
    return bool(offer.lever.note), not offer.enough, offer.lever.time, -offer.saves


def fit(recipe: Recipe, machine: Machine, speed: SpeedOf, listener: Listener = ignore) -> Fitted:
    """Return *recipe* changed until it fits *machine*; raise :class:`UserError` where nothing is enough.

    What the recipe states stays as it is; the cheapest levers come first, and none that turns out not to be needed.
    """
    data = open_data(recipe)
    start = load_start(recipe, data, shape_will_do=True)
    prepared = start.tell(prepare(recipe, data, start.tokenizer, listener, own_files=not start.notice))
    fitter = Fitter(machine, prepared, start.config, speed)
    values, stated = _values(recipe), _stated(recipe)
    settled = fitter.settle(recipe)
    if settled.plan.memory is None:
        raise UserError(f"--fit: {settled.plan.why['memory']}")
    pulled: list[Lever] = []
    while not _good(settled):
        lever = fitter.cheapest(settled, stated)
        if lever is None:
            memory = settled.plan.memory
            need, there = bytes_text(memory.total if memory else 0), bytes_text(machine.memory_bytes)
            raise UserError(
                f"--fit: {need} is the least that this recipe can be brought to, of {there}. "
                "Take a smaller model, lower data.max_tokens, or leave settings out that the recipe states"
            )
        pulled.append(lever)
        values = _apply(values, lever)
        settled = fitter.settle(recipe_from_values(values))
    for lever in pulled[:-1]:  # a later one may have made an earlier one needless
        fewer = _values(recipe)
        for other in pulled:
            fewer = fewer if other is lever else _apply(fewer, other)
        attempt = fitter.settle(recipe_from_values(fewer))
        if _good(attempt):
            pulled, values, settled = [other for other in pulled if other is not lever], fewer, attempt
    return _fitted(settled, values, pulled, stated)


def _fitted(settled: Settled, values: Values, pulled: list[Lever], stated: set[str]) -> Fitted:
    plan = settled.plan
    why = []
    if "method" not in stated and not any(path == "method" for lever in pulled for path, _ in lever.changes):
        why.append(
            f"method {plan.recipe.method.type_name()}: the default; it learns as much for most data, in less memory"
        )
    for lever in pulled:
        change = ", ".join(f"{path} {_written(value)}" for path, value in lever.changes)
        note = f"; {lever.note}" if lever.note else ""
        why.append(f"{change}: {lever.name}, {lever.time:.2f} times the time{note}")
    for name in ("precision", "tokens_per_pass"):
        why.append(f"{name} {getattr(plan, name)}: {plan.why.get(name, 'the recipe says so')}")
        values = _set(values, f"engine.{name}", getattr(plan, name))
    return Fitted(settled, values, tuple(why))


def _good(settled: Settled) -> bool:
    return settled.plan.memory is not None and settled.plan.memory.verdict == "fits"


def _levers(settled: Settled) -> Iterator[Lever]:
    """Yield the levers that this recipe has left, whatever they cost."""
    plan, recipe = settled.plan, settled.plan.recipe
    engine, whole = recipe.engine, not recipe.method.adds_adapter
    if plan.precision == "float32":
        slower = 1.0 if settled.machine.bfloat16 else 1.5
        yield Lever("short numbers", (("engine.precision", "bfloat16"),), slower)
    if not engine.gradient_checkpointing:
        yield _priced("keep products only", "gradient_checkpointing", "selective")
    if engine.gradient_checkpointing is not True:
        yield _priced("compute activations again", "gradient_checkpointing", True)
    if plan.tokens_per_pass > _FEWEST_TOKENS:
        yield Lever(
            "smaller passes", (("engine.tokens_per_pass", max(_FEWEST_TOKENS, plan.tokens_per_pass // 4)),), 1.1
        )
    yield from _fewer_answers(settled)
    if recipe.optimizer.type_name() == "adamw" and not is_missing("bitsandbytes"):
        yield Lever("short states", (("optimizer", {"type": "adamw_8bit"}),), 1.02, "the optimizer rounds its states")
    if whole and not engine.optimizer_in_backward:
        yield replace(
            _priced("step each weight at once", "optimizer_in_backward", True),
            changes=(("engine.optimizer_in_backward", True), ("schedule.max_gradient_norm", 0)),
            note="gradients are not clipped",
        )
    if whole and engine.weights == "float32":
        yield replace(
            _priced("short weights", "weights", "bfloat16"),
            changes=(("engine.weights", "bfloat16"), ("engine.precision", "bfloat16")),
            note="updates are rounded by chance",
        )
    if whole and recipe.model.scratch is None:
        yield Lever("train adapters", (("method", {"type": "lora"}),), 0.8, "trains adapters instead of the weights")
    packs = recipe.model.scratch is None and settled_quantization(recipe.model, settled.config) is None
    if packs and not recipe.method.needs_plain_weights and not is_missing("bitsandbytes"):
        note = "frozen weights are rounded to four bits"
        yield Lever("four bits a frozen weight", (("model.quantization", "nf4"),), _NF4_TIME, note)


def _fewer_answers(settled: Settled) -> Iterator[Lever]:
    """Yield a smaller batch of answers where the model that trains writes several."""
    recipe = settled.plan.recipe
    if not writes_here(recipe):
        return
    rows = written_together(settled.plan, settled.prepared).rows
    fewer = max(online_stage(recipe).num_generations, rows // 4)
    if fewer < rows:
        yield Lever("fewer answers at once", (("stage.sampling.batch_size", fewer),), _FEWER_ANSWERS)


_FEWEST_TOKENS = 512
# our judgement: writing is a part of a step, and a quarter of the answers take more than a quarter of the time
_FEWER_ANSWERS = 1.5
# AMD EPYC, 2 cores, bfloat16, qwen3 1024 wide, 4 layers, LoRA on 1,024 packed tokens, medians of 4 alternating steps
# (2026-11-21): 1.095 s plain, 1.217 s nf4 (1.11), 1.272 s with double scales (1.16), 1.299 s int8 (1.19)
_NF4_TIME = 1.11


def _priced(name: str, setting: str, value: Any) -> Lever:
    """Return a lever of the engine at its measured price."""
    (time,) = (lever.time for lever in LEVERS if (lever.setting, lever.value) == (setting, value))
    return Lever(name, ((f"engine.{setting}", value),), time)


def _values(recipe: Recipe) -> Values:
    values: Values = recipe.model_dump(mode="json", exclude_defaults=True)
    return values


def _stated(recipe: Recipe) -> set[str]:
    """Return the paths of the settings that the recipe's author wrote, blocks among them."""
    found: set[str] = set()

    def walk(value: Any, path: str) -> None:
        if path:
            found.add(path)
        for key, inner in value.items() if isinstance(value, dict) else ():
            walk(inner, f"{path}.{key}".lstrip("."))

    walk(recipe.model_dump(mode="json", exclude_unset=True), "")
    return found


def _apply(values: Values, lever: Lever) -> Values:
    for path, value in lever.changes:
        values = _set(values, path, value)
    return values


def _set(values: Values, path: str, value: Any) -> Values:
    head, _, rest = path.partition(".")
    inner = values.get(head)
    return {**values, head: _set(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def _written(value: Any) -> str:
    return (
        str(value["type"]) if isinstance(value, dict) else str(value).lower() if isinstance(value, bool) else str(value)
    )


def refuse_too_large(settled: Settled) -> None:
    """Raise :class:`UserError` with what would help, cheapest first, where a run plainly does not fit."""
    memory = settled.plan.memory
    if memory is None or memory.verdict != "too much":
        return
    offers = Fitter(settled.machine, settled.prepared, settled.config).offers(settled)
    raise UserError("\n".join([f"memory: {memory.why(settled.machine)}, {memory.moment}", *advice(offers)]))


def advice(offers: list[Offer]) -> list[str]:
    """Return what to say to someone whose run does not fit."""
    last = "a smaller model, shorter sequences (data.max_tokens), or a device with more memory"
    return ["what would help, cheapest first:", *(f"  {offer}" for offer in offers), f"  {last}"]

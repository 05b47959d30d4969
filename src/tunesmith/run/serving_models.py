"""What a server answers with: one base in memory, adapters on it, and blends of those, each by its name."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest
from tunesmith.models.load import check_model, find_model, model_from, tokenizer_from
from tunesmith.models.schema import ADAPTER_WEIGHTS
from tunesmith.run.adapters import check_adapters_on, read_adapter
from tunesmith.run.evaluate import model_stop_ids
from tunesmith.run.serving_errors import RefusedError
from tunesmith.templates.chat import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunesmith.models.load import Place
    from tunesmith.run.adapters import Adapter

_NAME = re.compile(r"[^\s\x00-\x1f\x7f*+=?#](?:[^\x00-\x1f\x7f*+=?#]{0,198}[^\s\x00-\x1f\x7f*+=?#])?")
_TERM = re.compile(r"(-?\d*\.?\d+)\*([^*+]+)")


@dataclass(frozen=True)
class Served:
    """One name that a request may give as its ``model``."""

    name: str
    adapter: str | Mapping[str, float] | None
    """What the engine is asked for: an adapter, a blend, or the base."""
    template: ChatTemplate
    """What its prompts are rendered with: the template of its training."""
    root: str
    """Where it came from, for people."""
    parent: str | None = None
    """The base's name, of an adapter or blend."""
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class Loaded:
    """What lies in memory before the first request: a plain model, its template, and the adapters still to load."""

    model: Any
    name: str
    template: ChatTemplate
    root: str
    adapters: Mapping[str, Adapter]
    first: str
    """The name that is served where one asks for no adapter by name: that of what was named on the command line."""


def load_base(
    path: str, adapters: Mapping[str, str], *, name: str | None, device: str, trust_remote_code: bool
) -> Loaded:
    """Load what *path* names: with the LoRA of a run beside its base, so that both answer, else with all merged.

    *adapters* (name -> path) are looked at, and must be on it.  Raises :class:`UserError` for what cannot be served.
    """
    import torch

    from tunesmith.engine.model import default_device

    check_model(path)
    place = find_model(path)
    found = {each: read_adapter(where) for each, where in adapters.items()}
    if found:
        check_adapters_on(path, list(found.values()))
    for each, adapter in found.items():
        check_lora(adapter, each)
    own = name or own_name(path)
    first = own
    if not found and place.adapter is not None and _is_plain_lora(alone := read_adapter(path)):
        found, base = {own: alone}, replace(place.below, quantized=place.quantized)
        own = own_name(base.weights)
        own = f"{own}-base" if own == first else own
    else:
        base = place
    for each in (own, *found):
        check_name(each)
    if own in found:
        raise UserError(f"an adapter is called {own!r}, as the model itself; write another name, or --name")
    target = default_device(device)
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    options = {"trust_remote_code": True} if trust_remote_code else {}
    model: Any = model_from(base, dtype, merge=True, **options).to(target)  # type: ignore[arg-type]
    return Loaded(model.eval(), own, load_template(base, model, **options), base.weights, found, first)


def load_template(place: Place, model: Any, **options: Any) -> ChatTemplate:
    """Return the template at *place*, with the stop tokens of its adapter or of *model*."""
    template = ChatTemplate(tokenizer_from(place.tokenizer, **options))
    template.add_stop_ids(model_stop_ids(place, model))
    return template


def own_name(path: str) -> str:
    """Return what a model is called after its *path*: its folder's name, or all of a Hub name."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    folder = folder.resolve()
    return (folder.parent if folder.name == "weights" else folder).name


def check_name(name: str) -> None:
    """Raise :class:`UserError` for a name that requests could not give, or that would be misread."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name of a model: no control characters, none of * + = ? #, at most 200 long")


def _is_plain_lora(adapter: Adapter) -> bool:
    plain = adapter.config["peft_type"] == "LORA" and not adapter.config.get("use_dora")
    return plain and not (adapter.folder / "config.json").exists()


def check_lora(adapter: Adapter, name: str) -> None:
    """Raise :class:`UserError` for an adapter that cannot be switched by request."""
    if adapter.config["peft_type"] != "LORA":
        raise UserError(
            f"{name}: {adapter.folder} is a {adapter.kind} adapter; only LoRA is switched by request: "
            "serve it alone, or make it LoRA with: tunesmith adapter convert"
        )
    if not (adapter.folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"{name}: {adapter.folder} has no {ADAPTER_WEIGHTS}; other formats can run code and are refused"
        )


def read_named(words: Sequence[str]) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Return name -> path, and name -> blend, of ``name=path`` and ``name=0.7*one+0.3*other`` words."""
    paths: dict[str, str] = {}
    blends: dict[str, dict[str, float]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise UserError(f"{word!r}: adapters are named; write name=PATH, or name=0.7*one+0.3*other for a blend")
        check_name(name)
        if name in paths or name in blends:
            raise UserError(f"two are called {name!r}; give each its own name")
        terms = [_TERM.fullmatch(part.strip()) for part in value.split("+")]
        if all(terms):
            blends[name] = {term[2]: float(term[1]) for term in terms if term}
        else:
            paths[name] = value
    return paths, blends


def allowed_folder(path: str, folders: Sequence[Path]) -> Path:
    """Return the folder that *path*, from a request, leads to, if it lies in one of *folders*, links followed.

    Raises :class:`RefusedError` otherwise, with the same words for what is elsewhere and for what is not there.
    """
    refused = RefusedError(
        f"lora_path: there is no adapter {path!r} in an allowed folder; the server's --adapter-folder says which are",
        "lora_path",
        status=404,
        code="adapter_not_found",
    )
    if "\0" in path:
        raise refused
    for folder in folders:
        try:
            root = folder.resolve(strict=True)
            found = (root / path).resolve(strict=True)
        except (OSError, RuntimeError):  # not there; links in a circle
            continue
        if not found.is_relative_to(root) or found == root or not found.is_dir():
            continue
        weights = found / "weights" if (found / "weights").is_dir() else found
        here = list(weights.iterdir())
        names = {file.name for file in here}
        if {"adapter_config.json", ADAPTER_WEIGHTS} <= names and all(f.resolve().is_relative_to(root) for f in here):
            return found
    raise refused


class Names:
    """Which names are served; changes while requests come in, one change at a time."""

    def __init__(self, base: Served, first: str) -> None:
        self._served = {base.name: base}
        self.base, self.first = base, first

    def all(self) -> list[Served]:
        """Return what is served, that which the server was started for first."""
        return sorted(self._served.values(), key=lambda each: each.name != self.first)

    def find(self, name: str) -> Served:
        """Return what is served as *name*; raise :class:`RefusedError` that says what there is."""
        served = dict(self._served)
        if name not in served:
            message = f"model: there is no {name!r}{suggest(name, served)}; there are {', '.join(served)}"
            raise RefusedError(message, "model", status=404, code="model_not_found")
        return served[name]

    def check_free(self, name: str, param: str | None = None) -> None:
        """Raise :class:`RefusedError` for a name that is taken or is none."""
        if name in self._served:
            raise RefusedError(f"{name!r} is served already; unload it first, or take another name", param)
        try:
            check_name(name)
        except UserError as error:
            raise RefusedError(str(error), param) from None

    def add(self, served: Served) -> None:
        """Serve one more."""
        self._served = {**self._served, served.name: served}

    def add_blend(self, name: str, weights: Mapping[str, float]) -> Served:
        """Serve a blend of adapters; raise :class:`RefusedError` for what is no adapter."""
        for part in weights:
            if part not in self._served or not isinstance(self._served[part].adapter, str):
                there = [each.name for each in self._served.values() if isinstance(each.adapter, str)]
                message = f"blend: {part!r} is no adapter in memory{suggest(part, there)}; there are {', '.join(there)}"
                raise RefusedError(message.removesuffix("; there are "), "blend", status=404, code="adapter_not_found")
        if not any(weights.values()):
            raise RefusedError("blend: all weights are 0; that is the base", "blend")
        # prompts are rendered as for the adapter that weighs most
        heaviest = self._served[max(weights, key=lambda part: abs(weights[part]))]
        root = " + ".join(f"{weight:g}*{part}" for part, weight in weights.items())
        blend = Served(name, dict(weights), heaviest.template, root, self.base.name)
        self.add(blend)
        return blend

    def remove(self, name: str) -> Served:
        """Serve *name* no more; raise :class:`RefusedError` for the base, and for a part of a blend."""
        served = self.find_adapter(name)
        blends = [e.name for e in self._served.values() if isinstance(e.adapter, dict) and name in e.adapter]
        if blends:
            raise RefusedError(f"{name!r} is a part of {', '.join(blends)}; unload that first", "lora_name", status=409)
        self._served = {each: value for each, value in self._served.items() if each != name}
        return served

    def find_adapter(self, name: str) -> Served:
        """Return the adapter or blend *name*; raise :class:`RefusedError` where there is none, or it is the base."""
        if name not in self._served:
            message = f"lora_name: there is no {name!r}; there are {', '.join(self._served)}"
            raise RefusedError(message, "lora_name", status=404, code="adapter_not_found")
        served = self._served[name]
        if served.adapter is None:
            raise RefusedError(f"lora_name: {name!r} is the base, not an adapter", "lora_name")
        return served

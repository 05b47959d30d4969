"""Soup: one model whose weights are the average of several with the same shape (arXiv:2203.05482)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.files import check_new_folder, whole_folder
from tunesmith.models.load import check_model, find_model, model_from, tokenizer_from
from tunesmith.run.adapters import check_named_once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tunesmith.models.load import Place

_FEWEST = 2


def soup(
    paths: Sequence[str], target: Path, weights: Sequence[float] | None = None, listener: Listener = ignore
) -> Path:
    """Write the average of the whole models at *paths* to *target*, with the tokenizer and template of the first.

    *weights* are their shares; left out, all count alike.  They are added up in float32, one model in memory at a time
    beside the sum, and written in the type of the first one's files.  Raises :class:`UserError` for adapters, and for
    models that differ in anything but the values of their weights.
    """
    import torch

    shares = _shares(paths, weights)
    check_new_folder(target)
    places = [_whole(path) for path in paths]
    check_named_once(paths, [place.weights for place in places])
    configs = [_config(place) for place in places]
    tokenizers = [tokenizer_from(place.tokenizer) for place in places]
    for path, config, tokenizer in zip(paths[1:], configs[1:], tokenizers[1:], strict=True):
        _check_alike((paths[0], configs[0], tokenizers[0]), (path, config, tokenizer))
    dtype = configs[0].dtype or torch.float32
    mixed: Any = None
    for path, place, share in zip(paths, places, shares, strict=True):
        listener({"kind": "notice", "text": f"adding {share:.3g} of {path}"})
        model: Any = model_from(place, torch.float32)
        if mixed is None:
            mixed = model
        _check_shapes(paths[0], mixed, path, model)
        with torch.no_grad():
            for own, other in zip(mixed.parameters(), model.parameters(), strict=True):
                if model is mixed:
                    own.mul_(share)
                else:
                    own.add_(other, alpha=share)
    with whole_folder(target) as partial:
        mixed.to(dtype).save_pretrained(partial)
        tokenizers[0].save_pretrained(partial)
    return target


def read_shares(text: str | None) -> list[float] | None:
    """Return the numbers that *text* lists between commas; raise :class:`UserError` where they are none."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--weights: {text!r} is no list of numbers; write shares such as 0.7,0.3") from None


def _shares(paths: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if len(paths) < _FEWEST:
        raise UserError(f"a soup is made of at least {_FEWEST} models; found {len(paths)}")
    if weights is None:
        return [1 / len(paths)] * len(paths)
    if len(weights) != len(paths):
        raise UserError(f"--weights: {len(weights)} of them for {len(paths)} models; give one each")
    if min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):  # which what is no number is not, either
        raise UserError(f"--weights: shares are at least 0 and add up to 1; found {', '.join(map(str, weights))}")
    return list(weights)


def _whole(path: str) -> Place:
    check_model(path)
    place = find_model(path)
    if place.adapter is not None:
        raise UserError(
            f"{path} is an adapter: average adapters of one base with tunesmith adapter add; for a soup of models, "
            f"export it first: tunesmith export {path} --to FOLDER"
        )
    return place


def _config(place: Place) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(place.base)


def _check_alike(first: tuple[str, Any, Any], other: tuple[str, Any, Any]) -> None:
    """Raise :class:`UserError` where two models compute, or spell, otherwise."""
    (path, config, tokenizer), (other_path, other_config, other_tokenizer) = first, other
    ignored = {"dtype", "transformers_version", "use_cache", "_name_or_path", "architectures"}
    own, found = config.to_dict(), other_config.to_dict()
    for name in sorted((own.keys() | found.keys()) - ignored, key=lambda name: (name != "model_type", name)):
        if own.get(name) != found.get(name):
            raise UserError(
                f"{path} and {other_path} cannot be averaged: {name} is {own.get(name)} in one, {found.get(name)} in "
                "the other"
            )
    if tokenizer.get_vocab() != other_tokenizer.get_vocab():
        differing = sorted(set(tokenizer.get_vocab().items()) ^ set(other_tokenizer.get_vocab().items()))
        raise UserError(
            f"{path} and {other_path} cannot be averaged: their tokenizers differ, in {differing[0][0]!r} first"
        )
    if tokenizer.chat_template != other_tokenizer.chat_template:
        raise UserError(f"{path} and {other_path} cannot be averaged: they were trained with different chat templates")


def _check_shapes(path: str, model: Any, other_path: str, other: Any) -> None:
    own = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(p.shape) for name, p in other.named_parameters()}
    for name in sorted(own.keys() | found.keys()):
        if own.get(name) != found.get(name):
            raise UserError(
                f"{path} and {other_path} cannot be averaged: weight {name} is {own.get(name)} in one, "
                f"{found.get(name)} in the other"
            )

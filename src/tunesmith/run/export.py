"""Export: a run's result as one model that every tool loads, proved to answer as the run does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.files import check_new_folder, whole_folder
from tunesmith.models.heads import head_at
from tunesmith.models.load import check_model, find_model, merge_adapter, plain_model_from
from tunesmith.models.quantized_base import is_quantized
from tunesmith.run.evaluate import Contestant, load_contestant
from tunesmith.run.export_gguf import check_new_file, export_gguf, gguf_type
from tunesmith.run.export_head import export_head
from tunesmith.run.export_papers import write_papers
from tunesmith.run.export_quantized import find_quantization, quantized, quantized_drift
from tunesmith.run.probes import PROBES, continuations, probe_prompts
from tunesmith.run.verify import LocalForm, Reference, kind_of, record, told_of

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.models.load import Place

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def export(
    path: str,
    target: Path,
    *,
    dtype: Precision = "auto",
    quantization: str | None = None,
    listener: Listener = ignore,
) -> Path:
    """Merge the run or adapter at *path* into its base and write it to *target* with tokenizer and template.

    ``auto`` keeps the type of the base's files.  Merged in float32, the model must continue the probes with the same
    greedy tokens as the run; the files, loaded back, must hold that model to the bit, rounded to *dtype*.  Otherwise
    nothing is left behind and :class:`UserError` says where it differs.  With *quantization*, a name of
    ``tunesmith.models.quantization``, the files hold that model in fewer bits.  A *target* that ends in ``.gguf`` is
    one file of that format; *quantization* is then one of its types.

    A run that trained on quantized weights is merged into the original ones; how far that moves its answers is told.
    """
    import torch

    check_model(path)
    place = find_model(path)
    head = head_at(place.base, place.adapters)
    if target.suffix == ".gguf":
        if head is not None:
            raise UserError("--to: a model that gives numbers has no place in a GGUF file; name a folder")
        kind = gguf_type(quantization, dtype, lambda: _base_dtype(path))
        check_new_file(target, place)
        return export_gguf(path, *merged(path, place, listener), target, kind, listener)
    check_new_folder(target)
    if head is not None:
        if quantization is not None:
            raise UserError("--quantization: a model that gives numbers is exported in its own type; leave it out")
        return export_head(path, place, head, target, dtype=dtype, probes=PROBES, listener=listener)
    fewer_bits = find_quantization(quantization) if quantization else None
    tuned, reference = merged(path, place, listener)
    model = tuned.model.to(getattr(torch, dtype) if dtype != "auto" else _base_dtype(path))
    model.generation_config.eos_token_id = list(tuned.template.stop_ids) or None
    model.config.use_cache = True
    with whole_folder(target) as partial:
        if fewer_bits is not None:
            model = quantized(model, fewer_bits, partial)
        model.save_pretrained(partial)
        tuned.template.tokenizer.save_pretrained(partial)
        written = _check_written(partial, model, tuned)
        parity = LocalForm(written, kind_of(str(partial), written)).compare(str(target), reference)
        for text in told_of(parity, fewer_bits.type_name() if fewer_bits else ""):
            listener({"kind": "notice", "text": text})
        write_papers(partial, path, target, tuned.template, [parity], ollama=fewer_bits is None)
    record(path, [parity])
    return target


def merged(path: str, place: Place, listener: Listener) -> tuple[Contestant, Reference]:
    """Return the run or adapter at *path* merged into its base, in float32, and what it said before.

    Raises :class:`UserError` where the merged model would write other tokens than the run.
    """
    import torch

    listener({"kind": "notice", "text": f"loading {path}"})
    tuned = load_contestant(path, device="cpu")
    if is_quantized(tuned.model):
        trained, tuned = tuned, Contestant(plain_model_from(place, torch.float32), tuned.template)
        text = quantized_drift(trained, tuned, probe_prompts(trained), continuations(trained))
        listener({"kind": "notice", "text": text})
    said = Reference.ask(path, tuned)
    model: Any = tuned.model
    if place.adapter is not None:
        listener({"kind": "notice", "text": "merging the adapter into the weights"})
        model = merge_adapter(model, check=True)
    listener({"kind": "notice", "text": "checking that it answers as the run does"})
    tuned = Contestant(model, tuned.template)
    _check_equal(said.written, continuations(tuned), tuned.template.tokenizer)
    return tuned, said


def writes_text(folder: Path) -> bool:
    """Say whether the model in *folder* is a language model, and not one that gives numbers."""
    if folder.suffix == ".gguf":
        return True
    place = find_model(str(folder))
    return head_at(place.base, place.adapters) is None


def _base_dtype(path: str) -> Any:
    """Return the type that the base's files say they have; float32 where they say nothing."""
    import torch
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(find_model(path).base).dtype or torch.float32


def _check_written(folder: Path, model: Any, tuned: Contestant) -> Contestant:
    """Load *folder* as any tool would: its weights must be those of *model* to the bit, its prompts the run's."""
    written = load_contestant(str(folder), device="cpu")
    found, expected = written.model.state_dict(), model.state_dict()
    wrong = [n for n, w in expected.items() if n not in found or not _same(found[n], w)]
    if wrong := wrong or sorted(found.keys() - expected.keys()):
        raise UserError(f"the files do not hold the merged model: weight {wrong[0]} differs")
    if probe_prompts(written) != probe_prompts(tuned) or written.template.stop_ids != tuned.template.stop_ids:
        raise UserError("the files render prompts otherwise than the run does, or stop at other tokens")
    return written


def _same(found: Any, expected: Any) -> bool:
    """Return whether two weights are equal to the bit, in the type of *found*; torchao compares only unpacked ones."""
    import torch

    if type(expected).__module__.startswith("torchao."):
        return type(found) is type(expected) and bool(torch.equal(found.dequantize(), expected.dequantize()))
    return bool(torch.equal(found, expected.to(found.dtype)))


def _check_equal(expected: list[list[int]], found: list[list[int]], tokenizer: Any) -> None:
    for probe, before, after in zip(PROBES, expected, found, strict=True):
        if before != after:
            at = next(
                (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
            )
            raise UserError(
                f"the merged model differs from the run: after {probe!r} + {at} tokens it writes "
                f"{tokenizer.decode(after[at : at + 8])!r} instead of {tokenizer.decode(before[at : at + 8])!r}"
            )

"""Export: a run's result as one model that every tool loads, proved to answer as the run does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.files import check_new_folder, whole_folder
from tunesmith.generation.settings import Generation
from tunesmith.models.load import find_model, merge_adapter, plain_model_from
from tunesmith.models.peft_warnings import quiet_peft
from tunesmith.models.quantized_base import is_quantized
from tunesmith.run.evaluate import Contestant, load_contestant
from tunesmith.run.export_quantized import find_quantization, quantized, quantized_drift

if TYPE_CHECKING:
    from pathlib import Path

# short, of several kinds and languages; what they say does not matter, only that both models say the same
PROBES = (
    "春风又绿江南岸",
    "Once upon a time",
    "请对出下联。\n白日依山尽",
    "What is the capital of France?",
    "def add(a, b):",
    "1 2 3 4",
)
_PROBE_TOKENS = 32


def export(
    path: str,
    target: Path,
    *,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    quantization: str | None = None,
    listener: Listener = ignore,
) -> Path:
    """Merge the run or adapter at *path* into its base and write it to *target* with tokenizer and template.

    ``auto`` keeps the type of the base's files.  Merged in float32, the model must continue the probes with the same
    greedy tokens as the run; the files, loaded back, must hold that model to the bit, rounded to *dtype*.  Otherwise
    nothing is left behind and :class:`UserError` says where it differs.  With *quantization*, a name of
    ``tunesmith.models.quantization``, the files hold that model in fewer bits.

    A run that trained on quantized weights is merged into the original ones; how far that moves its answers is told.
    """
    import torch

    check_new_folder(target)
    place, fewer_bits = find_model(path), find_quantization(quantization) if quantization else None
    listener({"kind": "notice", "text": f"loading {path}"})
    trained = tuned = load_contestant(path, device="cpu")
    if is_quantized(trained.model):
        tuned = Contestant(plain_model_from(place, torch.float32), trained.template)
        text = quantized_drift(trained, tuned, _probe_prompts(trained), _continuations(trained))
        listener({"kind": "notice", "text": text})
    expected = _continuations(tuned)
    model: Any = tuned.model
    wanted = getattr(torch, dtype) if dtype != "auto" else _base_dtype(path)
    if place.adapter is not None:
        listener({"kind": "notice", "text": "merging the adapter into the weights"})
        model = merge_adapter(model, check=True)
    listener({"kind": "notice", "text": "checking that it answers as the run does"})
    _check_equal(expected, _continuations(Contestant(model, tuned.template)), tuned.template.tokenizer)
    model = model.to(wanted)
    model.generation_config.eos_token_id = list(tuned.template.stop_ids) or None
    model.config.use_cache = True
    with whole_folder(target) as partial:
        if fewer_bits is not None:
            model = quantized(model, fewer_bits, partial)
            now = Contestant(model, tuned.template)
            text = quantized_drift(tuned, now, _probe_prompts(tuned), expected, after=fewer_bits.type_name())
            listener({"kind": "notice", "text": text})
        model.save_pretrained(partial)
        tuned.template.tokenizer.save_pretrained(partial)
        _check_written(partial, model, tuned)
    return target


def _base_dtype(path: str) -> Any:
    """Return the type that the base's files say they have; float32 where they say nothing."""
    import torch
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(find_model(path).base).dtype or torch.float32


def _check_written(folder: Path, model: Any, tuned: Contestant) -> None:
    """Load *folder* as any tool would: its weights must be those of *model* to the bit, its prompts the run's."""
    written = load_contestant(str(folder), device="cpu")
    found, expected = written.model.state_dict(), model.state_dict()
    wrong = [n for n, w in expected.items() if n not in found or not _same(found[n], w)]
    if wrong := wrong or sorted(found.keys() - expected.keys()):
        raise UserError(f"the files do not hold the merged model: weight {wrong[0]} differs")
    if _probe_prompts(written) != _probe_prompts(tuned) or written.template.stop_ids != tuned.template.stop_ids:
        raise UserError("the files render prompts otherwise than the run does, or stop at other tokens")


def _same(found: Any, expected: Any) -> bool:
    """Return whether two weights are equal to the bit, in the type of *found*; torchao compares only unpacked ones."""
    import torch

    if type(expected).__module__.startswith("torchao."):
        return type(found) is type(expected) and bool(torch.equal(found.dequantize(), expected.dequantize()))
    return bool(torch.equal(found, expected.to(found.dtype)))


def _probe_prompts(contestant: Contestant) -> list[list[int]]:
    from tunesmith.data.conversation import Conversation, Message

    template = contestant.template
    if template.has_chat:
        return template.prompts([Conversation((Message("user", text),)) for text in PROBES])
    return template.encode(PROBES)


def _continuations(contestant: Contestant) -> list[list[int]]:
    from tunesmith.generation.sample import answer_all

    contestant.model.eval()
    # one prompt at a time: filling rows up would round differently and hide nothing
    prompts = _probe_prompts(contestant)
    with quiet_peft():
        settings = Generation(max_new_tokens=_PROBE_TOKENS, batch_size=1)
        return answer_all(contestant.model, prompts, settings, stop_ids=())


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

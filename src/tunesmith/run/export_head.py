"""Export a model that gives numbers: merged, written, and proved to give the numbers that the run gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.errors import UserError
from tunesmith.core.files import whole_folder
from tunesmith.models.heads import auto_class, filling_token
from tunesmith.models.load import merge_adapter, model_from, tokenizer_from
from tunesmith.run.export_papers import write_head_papers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tunesmith.core.events import Listener
    from tunesmith.models.heads import Head
    from tunesmith.models.load import Place

_CLOSE = 1e-4  # how far merging may move an output of size 1, by rounding


def export_head(
    path: str,
    place: Place,
    head: Head,
    target: Path,
    *,
    dtype: Literal["auto", "float32", "bfloat16", "float16"],
    probes: Sequence[str],
    listener: Listener,
) -> Path:
    """Write the model of *path*, at *place*, with its *head* to *target* as transformers loads it, with its papers.

    Merged in float32 it must say of the *probes* what the run says, up to rounding, and the files must hold its weights
    to the bit, rounded to *dtype*; otherwise nothing is left behind and :class:`UserError` says what differs.
    """
    import torch
    import transformers

    tokenizer: Any = tokenizer_from(place.tokenizer)
    if place.quantized is not None:
        raise UserError("export: a head trained on quantized weights belongs to them; use the run as it is")
    model: Any = model_from(place, torch.float32, head=head).eval()
    wanted = transformers.AutoConfig.from_pretrained(place.base).dtype if dtype == "auto" else getattr(torch, dtype)
    expected = _outputs(model, tokenizer, probes)
    if place.adapter is not None:
        listener({"kind": "notice", "text": "merging the adapter into the weights"})
        model = merge_adapter(model, check=True).eval()
    apart = float((_outputs(model, tokenizer, probes) - expected).abs().max())
    if apart > _CLOSE * max(1.0, float(expected.abs().max())):
        raise UserError(f"the merged model differs from the run: an output is off by {apart:.1e}")
    model = model.to(wanted or torch.float32)
    model.config.get_text_config().pad_token_id = filling_token(tokenizer)
    with whole_folder(target) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        written = getattr(transformers, auto_class(head)).from_pretrained(partial, dtype=model.dtype)
        found, own = written.state_dict(), model.state_dict()
        wrong = [name for name in own if name not in found or not torch.equal(found[name], own[name])]
        if wrong := wrong or sorted(found.keys() - own.keys()):
            raise UserError(f"the files do not hold the merged model: weight {wrong[0]} differs")
        write_head_papers(partial, path, target, auto_class(head), len(probes), apart)
    return target


def _outputs(model: Any, tokenizer: Any, probes: Sequence[str]) -> Any:
    """Return what *model* says of each text, ``[probes, ...]`` in one row."""
    import torch

    rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in probes]
    with torch.no_grad():
        return torch.cat([model(row).logits.flatten() for row in rows])

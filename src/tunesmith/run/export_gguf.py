"""Export as one GGUF file, for llama.cpp, Ollama and others: written, read back, and held against the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tunesmith.core.errors import UserError
from tunesmith.core.files import check_new_folder, writing
from tunesmith.models.load import tokenizer_from
from tunesmith.run.export_papers import write_gguf_papers
from tunesmith.run.gguf_file import GgufFile, GgufType, check_gguf, write_gguf
from tunesmith.run.verify import GgufForm, Reference, record, told_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunesmith.core.events import Listener
    from tunesmith.models.load import Place
    from tunesmith.run.evaluate import Contestant

_OF_TYPES: dict[str, GgufType] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def gguf_type(quantization: str | None, dtype: str, base: Callable[[], Any]) -> GgufType:
    """Return the type of the matrices: the one that was asked for, else that of the base's files.

    Raises :class:`UserError` for one that is not written here.
    """
    if quantization is None:
        name = str(base()).removeprefix("torch.") if dtype == "auto" else dtype
        return _OF_TYPES.get(name, "f32")
    if dtype != "auto":
        raise UserError("--dtype: of a GGUF file --quantization says the type; leave --dtype out")
    if quantization not in get_args(GgufType):
        raise UserError(
            f"--quantization: GGUF files are written as {', '.join(get_args(GgufType))} here, not {quantization}; for "
            "others write f16, and let llama.cpp's llama-quantize make them"
        )
    return quantization  # type: ignore[return-value]


def check_new_file(target: Path, place: Place) -> None:
    """Raise :class:`UserError` where *target* cannot be written, or *place* has a model that GGUF cannot hold."""
    from transformers import AutoConfig

    if target.exists():
        raise UserError(f"{target} is there already; name a new file")
    check_new_folder(target.absolute().with_name(f".{target.name}.partial"))
    check_gguf(AutoConfig.from_pretrained(place.config), tokenizer_from(place.tokenizer))


def export_gguf(
    path: str, tuned: Contestant, reference: Reference, target: Path, kind: GgufType, listener: Listener
) -> Path:
    """Write *tuned*, made of the run at *path*, to *target*, with its certificate beside it.

    Raises :class:`UserError`, and leaves nothing, where the file is asked with other tokens than the run, stops at
    others, or (in f32) is not the model; what fewer bits change is told.
    """
    listener({"kind": "notice", "text": f"writing {target}"})
    partial = target.with_name(f".{target.stem}.partial.gguf")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_gguf(partial, tuned, target.stem, kind)
        listener({"kind": "notice", "text": "reading it back with another reader, and asking the probes"})
        file = GgufFile(partial)
        file.check_tokens(tuned.template.tokenizer)
        parity = GgufForm(file).compare(str(target), reference)
        if parity.prompts < parity.probes or file.stop_ids != tuned.template.stop_ids:
            raise UserError(f"the file is asked with other tokens than the run, or stops at others: {parity.why}")
        if parity.why and kind == "f32":
            raise UserError(f"the file does not hold the model: {parity.why}")
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    for text in told_of(parity, kind if kind != "f32" else ""):
        listener({"kind": "notice", "text": text})
    write_gguf_papers(path, target, tuned.template, parity)
    record(path, [parity])
    return target

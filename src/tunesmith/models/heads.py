"""Heads that read hidden states and give numbers: transformers' models for classification of sequences and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["sequence", "token"]

# how transformers and peft call the two
_CLASSES: dict[Kind, str] = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}
_TASKS: dict[Kind, str] = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}
# what their heads are called, which peft saves whole beside an adapter
_NAMES = ("score", "classifier")
_SPREAD = 0.02  # of a new head's weights, where the configuration names none
# where transformers remembers that weights are quantized: on the model around them
_OF_QUANTIZED = ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")


@dataclass(frozen=True)
class Head:
    """A linear layer over hidden states."""

    kind: Kind
    """``sequence`` reads the last token of a text, ``token`` as many as are asked for."""
    outputs: int
    labels: tuple[str, ...] = ()
    """Names of the outputs, where they are classes."""
    problem: Literal["regression", "single_label_classification"] | None = None
    """What transformers calls the task."""

    @property
    def task(self) -> str:
        """What peft calls the task."""
        return _TASKS[self.kind]

    def write(self, config: PreTrainedConfig) -> None:
        """Say in *config* what the outputs are."""
        config.num_labels = self.outputs
        if self.labels:
            config.id2label = dict(enumerate(self.labels))
            config.label2id = {name: index for index, name in enumerate(self.labels)}
        config.problem_type = self.problem


def auto_class(head: Head | None) -> str:
    """Return the class of transformers that loads models with such a *head*; of language models where None."""
    return "AutoModelForCausalLM" if head is None else f"AutoModel{_CLASSES[head.kind]}"


def filling_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that rows are filled up with; transformers reads a text at its last token that is another."""
    filling = cast("int | None", tokenizer.pad_token_id)
    return cast("int | None", tokenizer.eos_token_id) if filling is None else filling


def head_in(config: Any) -> Head | None:
    """Return the head that the files of *config* hold; None where they are a language model."""
    (name,) = (config.architectures or [""])[:1] or [""]
    kind = next((kind for kind, ending in _CLASSES.items() if name.endswith(ending)), None)
    return None if kind is None else Head(kind, config.num_labels, _labels(config), config.problem_type)


def head_of_adapter(folder: Path) -> Head | None:
    """Return the head that the adapter in *folder* brings; None where it is one of a language model."""
    import json

    from safetensors import safe_open
    from transformers import AutoConfig

    task = json.loads((folder / "adapter_config.json").read_text("utf-8")).get("task_type")
    kind = next((kind for kind, name in _TASKS.items() if name == task), None)
    if kind is None:
        return None
    with safe_open(folder / "adapter_model.safetensors", "np") as weights:
        names = [name for name in weights.keys() if name.endswith(tuple(f"{each}.weight" for each in _NAMES))]  # noqa: SIM118
        if not names:
            raise UserError(f"{folder}: an adapter of the kind {task} without the weights of its head")
        outputs = int(weights.get_slice(names[0]).get_shape()[0])
    config = AutoConfig.from_pretrained(folder) if (folder / "config.json").exists() else None
    if config is None or config.num_labels != outputs:
        return Head(kind, outputs)
    return Head(kind, outputs, _labels(config), config.problem_type)


def _labels(config: Any) -> tuple[str, ...]:
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return () if names == tuple(f"LABEL_{index}" for index in range(config.num_labels)) else names


def task_type(model: nn.Module) -> str:
    """Return what peft calls the task of a transformers *model*."""
    name = type(model).__name__
    return next((task for kind, task in _TASKS.items() if name.endswith(_CLASSES[kind])), "CAUSAL_LM")


def head_name(model: nn.Module) -> str | None:
    """Return the name of the module that reads hidden states in a transformers *model*; None for a language model."""
    if task_type(model) == "CAUSAL_LM":
        return None
    children = dict(model.named_children())
    return next(name for name in _NAMES if name in children)


def _check_same(found: Head, wanted: Head, where: str) -> None:
    """Raise :class:`UserError` where the head at *where* is no such one as training goes on with."""
    if (found.kind, found.outputs) != (wanted.kind, wanted.outputs):
        raise UserError(
            f"model: {where} reads each {found.kind} with {found.outputs} outputs, but the stage wants one that reads "
            f"each {wanted.kind} with {wanted.outputs}; start from the model below it"
        )
    if found.labels and wanted.labels and found.labels != wanted.labels:
        raise UserError(
            f"stage.labels: {', '.join(wanted.labels)}, but {where} has {', '.join(found.labels)}; name these, in order"
        )


def fitting_head(found: Head | None, wanted: Head | None, where: str) -> Head | None:
    """Return the head *found* at *where*; raise :class:`UserError` where another is wanted, or none."""
    if found is None:
        return None
    if wanted is None:
        raise UserError(
            f"model: {where} is a reward model or classifier: it gives numbers and writes no text; "
            "use it as score reward_model, or go on with the model that it was made of"
        )
    _check_same(found, wanted, where)
    return found


def head_at(base: str, adapters: Sequence[Path]) -> Head | None:
    """Return the head of the model *base* with *adapters* on it; None where it is a language model."""
    from transformers import AutoConfig

    for adapter in reversed(adapters):
        if (found := head_of_adapter(adapter)) is not None:
            return found
    try:
        return head_in(AutoConfig.from_pretrained(base))
    except (OSError, ValueError) as error:
        raise UserError(f"model: cannot load the model {base}: {str(error).strip().splitlines()[0]}") from None


def put_head(model: PreTrainedModel, head: Head, seed: int = 0) -> PreTrainedModel:
    """Return a model with the layers of the language *model* and a new *head* in place of the output head.

    Raises :class:`UserError` where transformers has no such model of this architecture.
    """
    import torch
    import transformers

    config, kind = model.config, model.config.model_type
    head.write(config)
    try:
        with torch.device("meta"):
            wrapped: Any = getattr(transformers, auto_class(head)).from_config(config)
    except ValueError:
        raise UserError(f"stage: transformers has no {_CLASSES[head.kind]} of {kind}; use another model") from None
    core: Any = model.base_model
    wrapped.config = config
    setattr(wrapped, wrapped.base_model_prefix, core)
    rest = [(name, module) for name, module in wrapped.named_children() if module is not core]
    heads = [(name, module) for name, module in rest if any(True for _ in module.parameters())]
    if wrapped.base_model is not core or [name for name, _ in heads if name not in _NAMES] or len(heads) != 1:
        raise UserError(f"stage: {type(wrapped).__name__} is more than layers and one head; use another model")
    weights = torch.Generator().manual_seed(seed)
    on_meta = core.device.type == "meta"
    for _, module in heads:
        for name, parameter in list(module.named_parameters()):
            # float32: what reads a thousand numbers into one is small, and its rounding shows
            value = torch.empty(parameter.shape, dtype=torch.float32, device="meta" if on_meta else "cpu")
            if not on_meta and parameter.ndim > 1:
                value.normal_(
                    0, getattr(config.get_text_config(), "initializer_range", None) or _SPREAD, generator=weights
                )
            elif not on_meta:
                value.zero_()
            place, _, last = name.rpartition(".")
            setattr(module.get_submodule(place), last, torch.nn.Parameter(value.to(core.device)))
    for name in _OF_QUANTIZED:
        if name in vars(model):
            setattr(wrapped, name, vars(model)[name])
    return cast("PreTrainedModel", wrapped.train(model.training))

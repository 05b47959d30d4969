"""Shapes of well-known models by name, for plans where their files cannot be reached (``known_shapes.toml``)."""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_FILE = Path(__file__).with_suffix(".toml")
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# what names of one shape differ in: how it was tuned, and who published a copy
_TUNED = re.compile(r"(-(instruct|base|chat|it|pt|hf|thinking|v\d+(\.\d+)?|\d{4}|unsloth|bnb-4bit))+$")


@lru_cache
def known_shapes() -> dict[str, dict[str, Any]]:
    """Return each known name's settings for transformers; beside them ``parameters``, how many it is said to have."""
    shapes = {}
    for family in tomllib.loads(_FILE.read_text("utf-8"))["family"]:
        for name, own in family["models"].items():
            given = {key: value for key, value in own.items() if key not in ("sizes", "tied")}
            sizes = dict(zip(_SIZES, own["sizes"], strict=True))
            shape = {"model_type": family["model_type"], **family["common"], **sizes, **given}
            shapes[name] = {**shape, "tie_word_embeddings": own.get("tied", False)}
            if shape["model_type"] == "mistral":
                shapes[name]["sliding_window"] = None  # TOML has no word for nothing, and transformers would have one
    return shapes


def known_name(path: str) -> str | None:
    """Return the known name of the shape that *path*, a name on the Hub, has; tuned variants and copies have it too."""
    exact = {_tail(name): name for name in known_shapes()}
    return exact.get(_tail(path)) or {_plain(name): name for name in known_shapes()}.get(_plain(path))


def known_config(name: str) -> PreTrainedConfig:
    """Return the configuration of a :func:`known_name`; sizes are right, what only numbers depend on need not be."""
    from transformers import AutoConfig

    shape = dict(known_shapes()[name])
    del shape["parameters"]
    shape |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return AutoConfig.for_model(**shape)


def _tail(path: str) -> str:
    return path.rpartition("/")[2].lower().removeprefix("meta-")


def _plain(path: str) -> str:
    """Return *path* without owner, tuning and date."""
    return _TUNED.sub("", _tail(path))

"""What the tests train: random two-layer models, a tokenizer of characters, and rows that repeat their question."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tunesmith.core.files import read_jsonl
from tunesmith.core.settings import prepare_process
from tunesmith.models.schema import NewTokenizer
from tunesmith.recipe.read import recipe_from_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunesmith.recipe.schema import Recipe

_SIZES = {"num_hidden_layers": 2, "max_position_embeddings": 256}
_WIDTH = {**_SIZES, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_GROUPED = {**_WIDTH, "num_key_value_heads": 2, "head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
_WINDOWED = {**_GROUPED, "sliding_window": 6}
_CAPPED = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
_LOCAL = {"attention_types": [[["global", "local"], 1]], "window_size": 6, "max_position_embeddings": 256}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}

# name -> (model type of transformers, sizes); the name says what is odd about it
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {**_GROUPED, "tie_word_embeddings": False}),
    "qwen3-tied": ("qwen3", {**_GROUPED, "tie_word_embeddings": True}),
    "llama": ("llama", _GROUPED),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "phi": ("phi", _WIDTH),
    "mistral-windowed": ("mistral", _WINDOWED),
    "gemma2-windowed": ("gemma2", {**_WINDOWED, **_CAPPED}),
    "gemma3-windowed": ("gemma3_text", {**_WINDOWED, **_MIXED}),
    "mixtral-experts": ("mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-experts": ("qwen3_moe", {**_GROUPED, **_EXPERTS, "num_experts": 4}),
    "granite-scaled": ("granite", {**_GROUPED, "logits_scaling": 3.0}),
    "bloom-alibi": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gpt-neo-local": ("gpt_neo", {"hidden_size": 32, "num_layers": 2, "num_heads": 4, **_LOCAL}),
    "mpt-alibi": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
    "mamba-recurrent": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "rwkv-recurrent": ("rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}),
    "lfm2-convolution": ("lfm2", {**_GROUPED, "layer_types": ["conv", "full_attention"]}),
}


def pytest_configure() -> None:
    """Keep to this machine and to one core a process: no test asks the Hub, and sums are taken in one order."""
    prepare_process()
    pytest.MonkeyPatch().setenv("HF_HUB_OFFLINE", "1")
    # nothing that is kept between runs is kept between tests
    pytest.MonkeyPatch().setenv("TUNESMITH_CACHE", str(Path(tempfile.gettempdir()) / f"tunesmith-tests-{os.getpid()}"))
    import torch

    torch.set_num_threads(1)


def make_rows(count: int) -> list[dict[str, str]]:
    """Alpaca rows of uneven length under one instruction; the answer repeats the input."""
    words = ["mist", "hill", "pine tree", "moon", "a boat on the river", "rain"]
    inputs = [" ".join(words[(i * step) % len(words)] for step in range(1, 2 + i % 3)) + f" {i}" for i in range(count)]
    return [{"instruction": "Write the words again.", "input": text, "output": f"{text}."} for text in inputs]


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> tuple[str, str]:
    """Files of 24 training rows and 6 rows for validation."""
    folder, rows = tmp_path_factory.mktemp("data"), make_rows(30)
    for name, part in (("train", rows[:24]), ("validation", rows[24:])):
        (folder / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    return str(folder / "train.json"), str(folder / "validation.json")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Characters as tokens, ChatML as template."""
    from tunesmith.models.new_tokenizer import make_tokenizer

    return make_tokenizer(NewTokenizer(vocabulary_size=300), [json.dumps(make_rows(30))])


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory, tokenizer) -> Callable[[str], Path]:
    """Return the folder of a random model by its name in ``ARCHITECTURES``, made when it is first asked for."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        path = folder / name
        if not path.exists():
            kind, sizes = ARCHITECTURES[name]
            special = {
                "vocab_size": len(tokenizer),
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            }
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **special, bos_token_id=None, **sizes))
            # random weights of the usual size hardly depend on what they see: bigger ones make every mistake show
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.mul_(4)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        return path

    return save


@pytest.fixture(scope="session")
def make_recipe_in(saved_model, data) -> Callable[..., Recipe]:
    """Return a function from a folder for outputs, a name and changed blocks to a recipe that trains in a blink."""
    train, validation = data
    usual = {
        "data": {"train": train, "validation": validation, "max_tokens": 160},
        "method": {"type": "lora", "rank": 4, "dropout": 0.1},
        "schedule": {"steps": 6, "batch_size": 5, "learning_rate": 1e-3, "warmup": 0},
        "evaluation": {"examples": 0, "every": 2},
        "checkpoints": {"every": 2, "keep": 2},
        "engine": {"device": "cpu", "precision": "float32"},
        "seed": 3,
    }

    def make(folder: Path, name: str = "run", *, architecture: str = "qwen3", **blocks: Any) -> Recipe:
        values: dict[str, Any] = {"model": str(saved_model(architecture)), "output": str(folder / name), **usual}
        for key, block in blocks.items():
            merges = isinstance(block, dict) and isinstance(values.get(key), dict) and "type" not in block
            values[key] = {**values[key], **block} if merges else block
        return recipe_from_values(values)

    return make


@pytest.fixture
def make_recipe(make_recipe_in, tmp_path) -> Callable[..., Recipe]:
    """Return ``make_recipe_in`` for this test's own folder."""
    return partial(make_recipe_in, tmp_path)


@pytest.fixture(scope="session")
def measured() -> Callable[[Path], list[dict[str, Any]]]:
    """Return a function from a run's folder to all it measured, without what depends on the clock."""
    clock = ("seconds", "tokens_per_second")

    def read(folder: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in m.items() if k not in clock} for m in read_jsonl(folder / "metrics.jsonl")]

    return read


@pytest.fixture(scope="session")
def trained_weights() -> Callable[[Path], dict[str, Any]]:
    """Return a function from a run's folder to the weights it ended with."""
    from safetensors.torch import load_file

    def read(folder: Path) -> dict[str, Any]:
        (path,) = (folder / "weights").glob("*.safetensors")
        return load_file(path)

    return read

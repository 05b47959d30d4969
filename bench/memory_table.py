"""Predicted against measured memory: short runs of models as people train them, each in a process of its own.

    python bench/memory_table.py docs/memory.md                 all recipes, 20 minutes of one core
    python bench/memory_table.py docs/memory.md --only lora     those so named; the others' rows stay as they were
    python bench/memory_table.py docs/memory.md --missing       those without a row
    python bench/memory_table.py docs/memory.md --predict       predict all anew, measure none

On the CPU the peak of live tensors is taken from torch's profiler and the growth of resident memory from the kernel, in
two processes a recipe; on CUDA ``torch.cuda.max_memory_allocated`` is taken.  The weights are random, the runs are of
ordinary recipes, through ``tunesmith.run.train``, from loading to the last checkpoint.  Every measurement is kept in
``bench/results/memory.jsonl``; a recipe's last one counts.
"""

import argparse
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.measure import MEGABYTE, _live_peak, _status

# sizes of models that people train, as their config.json states them, and a few smaller ones
_QWEN3 = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
_SMOLLM = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
_SMOLLM_360 = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
_GEMMA = {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4}
_TINY = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4}
_TIED = {"tie_word_embeddings": True}
# name -> architecture, sizes, words
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "Qwen3-0.6B": ("qwen3", {**_QWEN3, **_TIED, "num_key_value_heads": 8, "head_dim": 128}, 151936),
    "SmolLM2-360M": ("llama", {**_SMOLLM_360, **_TIED, "num_key_value_heads": 5}, 49152),
    "SmolLM2-135M": ("llama", {**_SMOLLM, **_TIED, "num_key_value_heads": 3}, 49152),
    "Gemma-3-270M": ("gemma3_text", {**_GEMMA, "num_key_value_heads": 1, "sliding_window": 512}, 262144),
    "GPT-2": ("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}, 50257),
    "llama 24M, own head": (
        "llama",
        {**_TINY, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 12, "tie_word_embeddings": False},
        20000,
    ),
    "qwen3 40M, 60k words": ("qwen3", {**_TINY, **_TIED, "num_hidden_layers": 4, "head_dim": 64}, 60000),
    "qwen3 16M": ("qwen3", {**_TINY, **_TIED, "num_hidden_layers": 6, "head_dim": 64}, 2000),
}
_LORA = {"type": "lora", "rank": 16}
_GRPO = {"type": "grpo", "rewards": ["distinct_n"], "sampling": {"max_new_tokens": 32}}
# name -> model, words a row, rows a step, changes to the recipe
RECIPES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "lora": ("Qwen3-0.6B", 60, 8, {"method": _LORA}),
    "lora, checkpointed": ("SmolLM2-360M", 120, 4, {"method": _LORA, "engine": {"gradient_checkpointing": True}}),
    "lora, float32": ("SmolLM2-135M", 60, 8, {"method": _LORA, "engine": {"precision": "float32"}}),
    "qlora, nf4": ("SmolLM2-360M", 60, 6, {"method": _LORA, "model": {"quantization": "nf4"}}),
    "dora": ("SmolLM2-135M", 60, 8, {"method": {"type": "dora", "rank": 16}}),
    "lora, packed, dropout": (
        "SmolLM2-135M",
        120,
        8,
        {"method": {**_LORA, "dropout": 0.1}, "engine": {"layout": "packed"}},
    ),
    "lora, one long pass": ("SmolLM2-135M", 600, 2, {"method": _LORA, "engine": {"tokens_per_pass": 4096}}),
    "lora, sliding windows": ("Gemma-3-270M", 100, 4, {"method": _LORA}),
    "freeze all but two blocks": ("SmolLM2-360M", 60, 6, {"method": {"type": "freeze", "last": 2}}),
    "full": ("SmolLM2-135M", 60, 8, {"method": "full"}),
    "full, float32": ("SmolLM2-135M", 60, 8, {"method": "full", "engine": {"precision": "float32"}}),
    "full, checkpointed, several passes": (
        "SmolLM2-135M",
        120,
        8,
        {"method": "full", "engine": {"gradient_checkpointing": True}},
    ),
    "full, other family": ("GPT-2", 120, 8, {"method": "full"}),
    "full, short weights, 8-bit states": (
        "SmolLM2-360M",
        60,
        4,
        {"method": "full", "optimizer": "adamw_8bit", "engine": {"weights": "bfloat16"}},
    ),
    "lora, padded, small": ("qwen3 16M", 120, 16, {"method": _LORA, "engine": {"layout": "padded"}}),
    "lora, large vocabulary, small": ("qwen3 40M, 60k words", 60, 16, {"method": _LORA}),
    "full, small": ("qwen3 16M", 60, 16, {"method": "full"}),
    "dpo, lora": ("SmolLM2-135M", 60, 4, {"method": _LORA, "stage": "dpo"}),
    "grpo, lora": ("SmolLM2-135M", 60, 4, {"method": _LORA, "stage": _GRPO}),
    "grpo, lora, many answers at once": (
        "qwen3 40M, 60k words",
        60,
        4,
        {
            "method": _LORA,
            "stage": {**_GRPO, "num_generations": 32},
            "engine": {"gradient_checkpointing": True, "tokens_per_pass": 512},
        },
    ),
    "grpo, full, start weights kept": (
        "qwen3 40M, 60k words",
        60,
        4,
        {
            "method": "full",
            "stage": {**_GRPO, "num_generations": 32, "beta": 0.05},
            "engine": {"gradient_checkpointing": True, "tokens_per_pass": 512},
        },
    ),
    "freeze, small": ("llama 24M, own head", 120, 16, {"method": {"type": "freeze", "last": 2}}),
}
_CPU = f"CPU, one thread ({platform.machine()})"
_RESULTS = Path(__file__).with_name("results") / "memory.jsonl"
_HOW = """How: [run/estimate.py](../src/tunesmith/run/estimate.py) runs the engine's own code without numbers
([engine/phantom.py](../src/tunesmith/engine/phantom.py)); [run/need.py](../src/tunesmith/run/need.py) adds what
allocators and libraries were seen to take: on the CPU a kernel for each shape of a bfloat16 product, half a MiB each,
of which two caches keep 64 each, and a twentieth of the tensors for freed blocks that stay resident between those
kernels. Before the first step the engine gives freed blocks back to the system.

A file whose numbers are of another type than those that are kept is mapped whole while it is loaded; torch's profiler
counts that as tensors, though it is no memory of the process. The files here are bfloat16, as published ones are.
"""


def build(folder: Path, name: str, *, weights: bool = True) -> dict[str, Any]:
    """Write the model, if wanted with its *weights*, and the data of a recipe to *folder*; return the recipe."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunesmith.models.new_tokenizer import make_tokenizer
    from tunesmith.models.schema import NewTokenizer

    model, words, rows, changes = RECIPES[name]
    architecture, sizes, vocabulary = MODELS[model]
    dice = random.Random(3)
    alphabet = [chr(0x4E00 + i) for i in range(1500)]

    def text(length: int) -> str:
        return "".join(dice.choice(alphabet) for _ in range(length))

    examples = [
        {
            "instruction": "续写下面的文字。",
            "input": text(dice.randint(words // 3, words // 2)),
            "output": text(words // 2),
        }
        for _ in range(rows * 3)
    ]
    if changes.get("stage") == "dpo":
        examples = [
            {"instruction": e["instruction"], "input": e["input"], "chosen": e["output"], "rejected": text(words // 2)}
            for e in examples
        ]
    (folder / "data.json").write_text(json.dumps(examples, ensure_ascii=False), "utf-8")
    tokenizer = make_tokenizer(NewTokenizer(vocabulary_size=2000), ["".join(alphabet), *(e["input"] for e in examples)])
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(architecture, vocab_size=max(vocabulary, len(tokenizer)), **special, **sizes)
    config.dtype = torch.bfloat16  # as published
    config.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    if weights:
        torch.manual_seed(0)
        model_there = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model_there.save_pretrained(folder / "model")
    # compiled blocks store less, and their compiler takes hundreds of megabytes of its own: not what is predicted
    engine = {"compile": False, **changes.get("engine", {})}
    return {
        "model": {"path": str(folder / "model"), **changes.get("model", {})},
        "data": {"train": str(folder / "data.json"), "max_tokens": 2048},
        "schedule": {"steps": 3, "batch_size": rows},
        "evaluation": {"examples": 0},
        "output": str(folder / "run"),
        **{key: value for key, value in changes.items() if key not in ("model", "engine")},
        "engine": engine,
    }


def child(folder: Path, mode: str) -> dict[str, float]:
    """Predict (``predict``) or measure (``tensors``, ``resident``) one recipe; return bytes."""
    import torch

    from tunesmith.core.settings import prepare_process
    from tunesmith.recipe.read import recipe_from_values

    prepare_process()
    torch.set_num_threads(1)
    recipe = recipe_from_values(json.loads((folder / "recipe.json").read_text("utf-8")))
    if mode == "predict":
        from tunesmith.run.settle import settle
        from tunesmith.run.speed import quick_speed

        memory = settle(recipe, speed=quick_speed).plan.memory
        assert memory is not None
        libraries = memory.parts["libraries"]
        found = {"tensors": memory.tensors, "resident": memory.total - libraries, "moment": memory.moment}
        return {**found, "parts": memory.parts}  # type: ignore[dict-item]
    import accelerate  # noqa: F401 - so that their own size is not counted
    import peft  # noqa: F401
    import transformers.models.auto.modeling_auto  # noqa: F401

    import tunesmith.engine.check
    import tunesmith.engine.loop  # noqa: F401
    from tunesmith.run.train import train

    if torch.cuda.is_available():
        train(recipe)
        return {mode: torch.cuda.max_memory_allocated(), "where": torch.cuda.get_device_name()}  # type: ignore[dict-item]
    if mode == "tensors":
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        profiler.start()
        train(recipe)
        profiler.stop()
        return {mode: _live_peak(profiler) * MEGABYTE}
    before = _status("RssAnon")
    with _resident_peak(folder) as peak:
        train(recipe)
    return {mode: (max(peak) - before) * MEGABYTE, "imported": before * MEGABYTE}


@contextmanager
def _resident_peak(folder: Path) -> Iterator[list[float]]:
    """Yield a list that a thread fills with the most MiB of anonymous memory and mapped files of *folder* at a time.

    Weights of the type they have in their file are not copied from it, but mapped.
    """
    found, done = [0.0], threading.Event()

    def look() -> None:
        mapped, read = 0.0, 0.0
        while not done.wait(0.004):
            if time.monotonic() > read + 0.25:  # to ask takes milliseconds
                mapped, read = _mapped(folder), time.monotonic()
            found[0] = max(found[0], _status("RssAnon") + mapped)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _mapped(folder: Path) -> float:
    """Return how many MiB of the files below *folder* this process has mapped and read."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        name, _, rest = line.partition(":")
        if " " in name:  # the head of a mapping, which ends in its file
            counts = str(folder) in rest
        elif counts and name in ("Rss", "Anonymous"):  # what was written to is anonymous, and counted as that
            total += int(rest.split()[0]) * (1 if name == "Rss" else -1)
    return total / 1024


def run(name: str, folder: Path, modes: tuple[str, ...]) -> dict[str, Any]:
    """Return prediction and measurements of the recipe *name*, or what *modes* name of them."""
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(build(folder, name, weights=len(modes) > 1)), "utf-8")
    found: dict[str, Any] = {"recipe": name, "model": RECIPES[name][0]}
    for mode in modes:
        command = ["env", "HF_DEACTIVATE_ASYNC_LOAD=1", sys.executable, __file__, "--child", mode, str(folder)]
        # torch's profiler does not see what other threads allocate: let the weights be loaded by the main one
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}, {mode}: {done.stderr[-3000:]}")
        result = json.loads(done.stdout.splitlines()[-1])
        found |= {f"{mode} {key}" if mode == "predict" else key: value for key, value in result.items()}
        shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.rmtree(folder)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, in MiB."""
    kinds = " | ".join(f"{kind} predicted | measured | off by" for kind in ("tensors", "resident"))
    head = f"| recipe | model | {kinds} | worst moment |"
    lines = [head, "|---|---|--:|--:|--:|--:|--:|--:|---|"]
    for row in rows:
        cells = [row["recipe"], row["model"]]
        for kind in ("tensors", "resident"):
            predicted, measured = row[f"predict {kind}"] / MEGABYTE, row[kind] / MEGABYTE
            cells += [f"{predicted:,.0f}", f"{measured:,.0f}", f"{predicted / measured - 1:+.1%}"]
        lines.append("| " + " | ".join([*cells, row["predict moment"]]) + " |")
    return "\n".join(lines)


def kept() -> dict[str, dict[str, Any]]:
    """Return the last row of each recipe that there still is."""
    lines = _RESULTS.read_text("utf-8").splitlines() if _RESULTS.exists() else []
    rows = {row["recipe"]: row for row in map(json.loads, lines)}
    return {name: rows[name] for name in RECIPES if name in rows}


def main() -> None:
    """Measure every recipe, or those that are named, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, help="file for the table; left out, rows are only kept")
    parser.add_argument("--only", default="", help="the recipe of this name, or those whose name contains it")
    parser.add_argument("--predict", action="store_true", help="predict anew, and measure nothing")
    parser.add_argument("--missing", action="store_true", help="measure those that never were")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[1]), options.child[0])))
        return
    modes = ("predict",) if options.predict else ("predict", "tensors", "resident")
    with tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate([options.only] if options.only in RECIPES else RECIPES):
            before = kept().get(name, {})
            if options.only not in name or (options.predict and not before) or (options.missing and before):
                continue
            row = {**before, "date": time.strftime("%Y-%m-%d"), **run(name, Path(folder) / str(index), modes)}
            with _RESULTS.open("a", encoding="utf-8") as results:
                results.write(json.dumps(row) + "\n")
            print(table([row]).splitlines()[-1], flush=True)
    if options.page is not None:
        options.page.write_text(page(list(kept().values())), "utf-8")


def page(rows: list[dict[str, Any]]) -> str:
    """Return the page about *rows*."""
    off = {kind: [abs(r[f"predict {kind}"] / r[kind] - 1) for r in rows] for kind in ("tensors", "resident")}
    within = {kind: sum(each <= 0.1 for each in values) for kind, values in off.items()}
    where = ", ".join(dict.fromkeys(row.get("where", _CPU) for row in rows))
    missing = ", ".join(name for name in RECIPES if name not in {row["recipe"] for row in rows})
    return f"""# Memory: predicted and measured

Made by `python bench/memory_table.py docs/memory.md` on {max(row["date"] for row in rows)}, {where}, torch
{version("torch")}, transformers {version("transformers")}. Random weights in the shapes of the models that are named;
each line is a whole run of three steps, from loading to the last checkpoint. Numbers in MiB. *Tensors*: the most bytes
of tensors alive at once (torch's profiler; on CUDA `torch.cuda.max_memory_allocated`). *Resident*: growth of resident
memory over that of the process with its libraries imported (the kernel's count every 4 ms: anonymous memory, and the
model's own files, from which weights of the same type are mapped, not copied).

Within 10%: tensors {within["tensors"]} of {len(rows)}, resident {within["resident"]} of {len(rows)}; worst
{max(off["tensors"]):.1%} and {max(off["resident"]):.1%}.{f" Not measured: {missing}." if missing else ""}

{table(rows)}

{_HOW}"""


if __name__ == "__main__":
    main()

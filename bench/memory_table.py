"""Predicted against measured memory: short runs of small models, each in a process of its own.

    python bench/memory_table.py docs/memory.md

On the CPU the peak of live tensors is taken from torch's profiler and the growth of resident anonymous memory from the
kernel, in two processes a recipe; on CUDA ``torch.cuda.max_memory_allocated`` is taken.  The weights are random, the
runs are of ordinary recipes, through ``tunesmith.run.train``, from loading to the last checkpoint.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.measure import MEGABYTE, _live_peak, _status

_SMALL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
_WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
# name -> architecture, sizes, words
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "qwen3 16M": ("qwen3", {**_WIDE, "num_hidden_layers": 6, "tie_word_embeddings": True}, 2000),
    "qwen3 40M, 60k words": ("qwen3", {**_WIDE, "num_hidden_layers": 4, "tie_word_embeddings": True}, 60000),
    "llama 24M, own head": ("llama", {**_SMALL, "num_hidden_layers": 12, "tie_word_embeddings": False}, 20000),
    "qwen3 58M": ("qwen3", {**_WIDE, "num_hidden_layers": 18, "tie_word_embeddings": True}, 8000),
    "gemma3 14M": ("gemma3_text", {**_SMALL, "num_hidden_layers": 6, "sliding_window": 64}, 16000),
    "gpt2 20M": ("gpt2", {"n_embd": 512, "n_layer": 6, "n_head": 8, "n_positions": 2048}, 2000),
}
_LORA = {"type": "lora", "rank": 16}
# name -> model, words a row, rows a step, changes to the recipe
RECIPES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "lora float32 prefix": ("qwen3 16M", 60, 16, {"method": _LORA, "engine": {"precision": "float32"}}),
    "lora bfloat16 prefix": ("qwen3 58M", 60, 16, {"method": _LORA, "engine": {"precision": "bfloat16"}}),
    "lora packed, dropout": (
        "qwen3 16M",
        120,
        16,
        {"method": {**_LORA, "dropout": 0.1}, "engine": {"layout": "packed"}},
    ),
    "lora padded": ("qwen3 16M", 120, 16, {"method": _LORA, "engine": {"layout": "padded"}}),
    "lora checkpointed": ("qwen3 58M", 200, 16, {"method": _LORA, "engine": {"gradient_checkpointing": True}}),
    "lora long, one pass": ("llama 24M, own head", 900, 2, {"method": _LORA, "engine": {"tokens_per_pass": 4096}}),
    "lora large vocabulary": ("qwen3 40M, 60k words", 60, 16, {"method": _LORA}),
    "lora other attention": ("gemma3 14M", 200, 8, {"method": _LORA}),
    "full float32": ("qwen3 16M", 60, 16, {"method": "full", "engine": {"precision": "float32"}}),
    "full bfloat16, several passes": ("qwen3 16M", 200, 32, {"method": "full", "engine": {"precision": "bfloat16"}}),
    "full large vocabulary": ("qwen3 40M, 60k words", 60, 16, {"method": "full"}),
    "full checkpointed": ("qwen3 58M", 200, 16, {"method": "full", "engine": {"gradient_checkpointing": True}}),
    "full other family": ("gpt2 20M", 120, 16, {"method": "full"}),
    "freeze last two": ("llama 24M, own head", 120, 16, {"method": {"type": "freeze", "last": 2}}),
}


def build(folder: Path, name: str) -> dict[str, Any]:
    """Write the model and the data of a recipe to *folder*; return the recipe's values."""
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
    (folder / "data.json").write_text(json.dumps(examples, ensure_ascii=False), "utf-8")
    tokenizer = make_tokenizer(NewTokenizer(vocabulary_size=2000), ["".join(alphabet), *(e["input"] for e in examples)])
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(architecture, vocab_size=max(vocabulary, len(tokenizer)), **special, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    # compiled blocks store less, and their compiler takes hundreds of megabytes of its own: not what is predicted
    engine = {"compile": False, **changes.get("engine", {})}
    return {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "data.json"), "max_tokens": 2048},
        "schedule": {"steps": 3, "batch_size": rows},
        "evaluation": {"examples": 0},
        "output": str(folder / "run"),
        **changes,
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

        memory = settle(recipe, speed=lambda machine, plan, _: quick_speed(machine, plan)).plan.memory
        assert memory is not None
        libraries = memory.parts["libraries"]
        return {"tensors": memory.tensors, "resident": memory.total - libraries, "moment": memory.moment}  # type: ignore[dict-item]
    import accelerate  # noqa: F401 - so that their own size is not counted
    import peft  # noqa: F401
    import transformers.models.auto.modeling_auto  # noqa: F401

    import tunesmith.engine.check
    import tunesmith.engine.loop  # noqa: F401
    from tunesmith.run.train import train

    if torch.cuda.is_available():
        train(recipe)
        return {mode: torch.cuda.max_memory_allocated()}
    if mode == "tensors":
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        profiler.start()
        train(recipe)
        profiler.stop()
        return {mode: _live_peak(profiler) * MEGABYTE}
    before = _status("RssAnon")
    with _peak_of("RssAnon") as peak:
        train(recipe)
    return {mode: (max(peak) - before) * MEGABYTE, "imported": before * MEGABYTE}


@contextmanager
def _peak_of(name: str) -> Iterator[list[float]]:
    """Yield a list that a thread fills with a field of this process's status, every few milliseconds."""
    found, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.004):
            found[0] = max(found[0], _status(name))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def run(name: str, folder: Path) -> dict[str, Any]:
    """Return prediction and measurements of the recipe *name*."""
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(build(folder, name)), "utf-8")
    found: dict[str, Any] = {"recipe": name, "model": RECIPES[name][0]}
    for mode in ("predict", "tensors", "resident"):
        command = ["env", "HF_DEACTIVATE_ASYNC_LOAD=1", sys.executable, __file__, "--child", mode, str(folder)]
        # torch's profiler does not see what other threads allocate: let the weights be loaded by the main one
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}, {mode}: {done.stderr[-3000:]}")
        result = json.loads(done.stdout.splitlines()[-1])
        found |= {f"{mode} {key}" if mode == "predict" else key: value for key, value in result.items()}
        subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
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


def main() -> None:
    """Measure every recipe, or those that are named, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, help="file for the table; printed alone where left out")
    parser.add_argument("--only", help="recipes whose name contains this")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[1]), options.child[0])))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate(n for n in RECIPES if (options.only or "") in n):
            rows.append(run(name, Path(folder) / str(index)))
            print(
                table(rows[-1:]).splitlines()[-1], "imported", round(rows[-1].get("imported", 0) / MEGABYTE), flush=True
            )
    found = table(rows)
    if options.page is None:
        return
    import torch
    import transformers

    off = {kind: [abs(r[f"predict {kind}"] / r[kind] - 1) for r in rows] for kind in ("tensors", "resident")}
    within = {kind: sum(each <= 0.1 for each in values) for kind, values in off.items()}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, one thread ({platform.machine()})"
    options.page.write_text(
        f"""# Memory: predicted and measured

Made by `python bench/memory_table.py docs/memory.md` on {time.strftime("%Y-%m-%d")}, {where}, torch
{torch.__version__}, transformers {transformers.__version__}. Random weights; each line is a whole run of
three steps, from loading to the last checkpoint. Numbers in MiB. *Tensors*: the most bytes of tensors alive at once
(torch's profiler; on CUDA `torch.cuda.max_memory_allocated`). *Resident*: growth of resident anonymous memory over
that of the process with its libraries imported (the kernel's count, every 4 ms).

Within 10%: tensors {within["tensors"]} of {len(rows)}, resident {within["resident"]} of {len(rows)}; worst
{max(off["tensors"]):.1%} and {max(off["resident"]):.1%}.

What the libraries keep beside tensors (kernels, freed blocks) is a constant here; on runs this small it was seen to be
anything between 20 and 450 MiB, so *resident* can be off by that much whatever the size of the run.

{found}

How: [run/estimate.py](../src/tunesmith/run/estimate.py) runs the engine's own code without numbers
([engine/phantom.py](../src/tunesmith/engine/phantom.py)); [run/need.py](../src/tunesmith/run/need.py) adds what
allocators and libraries were seen to take.
""",
        "utf-8",
    )


if __name__ == "__main__":
    main()

"""GRPO here and in TRL: the same model, prompts and reward, each at its defaults, in alternating rounds.

    python bench/rollouts.py --rounds 3

A step is eight prompts with eight answers each, learnt in one pass, as TRL does by default (``--tokens-per-pass 1024``
is our own default on a CPU, which takes less memory).  The model is random, so that nearly every answer has the longest
length and both write equally much.  Times are medians over a round's steps, the first two left out; the ratio is TRL's
time over ours.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PROMPTS, ANSWERS, LONGEST, WARM_UP = 8, 8, 32, 2
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def make_inputs(folder: Path) -> None:
    """Write the demo's couplets as prompts, and a random model with a tokenizer of their characters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunesmith.models.new_tokenizer import make_tokenizer
    from tunesmith.models.schema import NewTokenizer
    from tunesmith.run.demo_corpus import write_demo_data

    write_demo_data(folder / "data")
    rows = json.loads((folder / "data" / "couplets_train.json").read_text("utf-8"))[:512]
    asked = [f"{row['instruction']}\n{row['input']}" for row in rows]
    pairs = [{"prompt": [{"role": "user", "content": text}]} for text in asked]
    (folder / "trl.jsonl").write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs), "utf-8")
    (folder / "ours.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    tokenizer = make_tokenizer(NewTokenizer(vocabulary_size=2000), asked)
    torch.manual_seed(0)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model("qwen3", vocab_size=len(tokenizer), **special, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def run_ours(folder: Path, method: str, steps: int, most: int) -> list[float]:
    """Return the seconds of each step."""
    from tunesmith.core.files import read_jsonl
    from tunesmith.recipe.read import recipe_from_values
    from tunesmith.run.train import train

    stage = {"type": "grpo", "rewards": [{"score": {"type": "length", "target": 5}}], "num_generations": ANSWERS}
    values: dict[str, Any] = {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "ours.json"), "max_tokens": 256},
        "stage": {**stage, "sampling": {"max_new_tokens": LONGEST}},
        "method": {"type": "lora", "rank": 16, "alpha": 32} if method == "lora" else "full",
        "engine": {"tokens_per_pass": most},
        "schedule": {"steps": steps, "batch_size": PROMPTS, "learning_rate": 1e-6},
        "output": str(folder / "ours"),
    }
    train(recipe_from_values(values), overwrite=True)
    lines = [line for line in read_jsonl(folder / "ours" / "metrics.jsonl") if line["kind"] == "step"]
    return [line["seconds"] + line["rollout_seconds"] for line in lines]


def run_trl(folder: Path, method: str, steps: int) -> list[float]:
    """Return the seconds of each step."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.monotonic() - self.began)

    def nearly_five(completions: list[Any], **_: Any) -> list[float | None]:
        lengths = [len(c[0]["content"].strip()) for c in completions]
        return [min(length, 5) / max(length, 5) for length in lengths]

    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * ANSWERS,
        num_generations=ANSWERS,
        max_completion_length=LONGEST,
        learning_rate=1e-6,
        report_to="none",
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
    )
    adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=nearly_five,
        args=arguments,
        train_dataset=load_dataset("json", data_files=str(folder / "trl.jsonl"), split="train"),
        callbacks=[Clock()],
        peft_config=adapter if method == "lora" else None,
    )
    trainer.train()
    return seconds


def one_round(side: str, folder: Path, asked: argparse.Namespace) -> float:
    """Return the median seconds of a step, measured in a process of its own."""
    arguments = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--method", asked.method]
    numbers = ["--steps", str(asked.steps), "--tokens-per-pass", str(asked.tokens_per_pass)]
    done = subprocess.run([*arguments, *numbers], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return statistics.median(seconds[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--method", choices=["lora", "full"], default="full")
    parser.add_argument("--tokens-per-pass", type=int, default=4096)
    parser.add_argument("--side", choices=["ours", "trl"], default=None, help="measure one side and print its seconds")
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    if asked.side is not None:
        given = asked.folder, asked.method, asked.steps
        print(json.dumps(run_trl(*given) if asked.side == "trl" else run_ours(*given, asked.tokens_per_pass)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        pairs = [tuple(one_round(side, folder, asked) for side in ("trl", "ours")) for _ in range(asked.rounds)]
    table = Table("round", "TRL, s a step", "here", "ratio")
    for number, (theirs, ours) in enumerate(pairs, start=1):
        table.add_row(str(number), f"{theirs:.3f}", f"{ours:.3f}", f"{theirs / ours:.2f}")
    ratios = sorted(theirs / ours for theirs, ours in pairs)
    table.add_row("min / median / max", "", "", f"{ratios[0]:.2f} / {statistics.median(ratios):.2f} / {ratios[-1]:.2f}")
    Console().print(f"GRPO, {asked.method}: {PROMPTS} prompts x {ANSWERS} answers of up to {LONGEST} tokens")
    Console().print(table)


if __name__ == "__main__":
    main()

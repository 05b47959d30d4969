"""The benchmark for a GPU: transformers' Trainer against Tunesmith in one environment. It has never run on one.

Needs torch with CUDA, transformers, peft, accelerate and pydantic in the interpreter that runs it (pydantic,
pydantic_core, annotated_types and typing_inspection can be brought along as wheels), nothing from the network, and
under half an hour: ``python bench/gpu.py --output results.jsonl``. Then, where the repository is:
``python bench/report.py``.
"""

import argparse
import dataclasses
import shlex
import sys
import time
from pathlib import Path

import reference
import run
from environments import OURS, PEERS, Setting
from report import summary
from results import read_session
from workloads import Case

QWEN_VOCABULARY = 151_936
SHAPES = ("0.6B", "1.7B")
WORKLOADS = ("couplets", "chats", "long")
PER_PASS = {"per_device_train_batch_size": 32, "bf16": True, "tf32": True}
TUNESMITH = {
    "default": Setting("the plan decides everything"),
    "pass-4096": Setting("engine.tokens_per_pass: 4096", {"engine": {"tokens_per_pass": 4096}}),
    "pass-16384": Setting("engine.tokens_per_pass: 16384", {"engine": {"tokens_per_pass": 16384}}),
}
TRAINER = {
    "default": Setting("every default; 4 × 8 examples a step", {"arguments": {}}),
    "bf16": Setting(
        "bf16, frozen weights in bfloat16, grouped by length, 32 a pass",
        {"dtype": {"lora": "bfloat16"}, "arguments": {**PER_PASS, "train_sampling_strategy": "group_by_length"}},
    ),
    "compiled": Setting(
        "the same, and torch_compile",
        {
            "dtype": {"lora": "bfloat16"},
            "arguments": {**PER_PASS, "train_sampling_strategy": "group_by_length", "torch_compile": True},
        },
    ),
}


def main() -> None:
    """Measure every shape and workload in rounds; write one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    sizes, kinds = run.names(reference.SHAPES), run.names(WORKLOADS)
    parser.add_argument("--shapes", type=sizes, default=",".join(SHAPES), help="models of these sizes; also 8B")
    parser.add_argument("--workloads", type=kinds, default=",".join(WORKLOADS), help="the kinds of data")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one run")
    parser.add_argument("--output", type=Path, default=run.RESULTS / time.strftime("gpu-%Y-%m-%dT%H%M.jsonl"))
    chosen = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("this machine has no CUDA device; make bench measures on the CPU")
    # one environment for both: there is no network to build others from
    PEERS["transformers"] = dataclasses.replace(PEERS["transformers"], environment=None, settings=TRAINER)
    PEERS[OURS] = dataclasses.replace(PEERS[OURS], environment=None, settings=TUNESMITH)
    cases = [
        Case(workload, reference.BATCH * chosen.steps, vocabulary=QWEN_VOCABULARY, shape=shape)
        for shape in chosen.shapes
        for workload in chosen.workloads
    ]
    contestants = [(peer, setting) for peer in (OURS, "transformers") for setting in PEERS[peer].settings]
    head = run.header(shlex.join(["python", *sys.argv]), threads=16)
    head["gpu"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    with chosen.output.open("w", encoding="utf-8") as lines:
        run.append(lines, head)
        bench = run.Bench(16, chosen.timeout, lambda record: run.append(lines, record))
        bench.measure(cases, contestants, chosen.repeats, check=True)
    print(summary(read_session(chosen.output)))


if __name__ == "__main__":
    main()

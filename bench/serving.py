"""How much the serving engine gains by batching, and what adapters in a batch cost.

    python bench/serving.py together --model m50     # 32 clients at once against one after the other
    python bench/serving.py adapters --model m50     # 32 replies by 8 adapters against 32 by the base

Weights are random: what is measured does not depend on what they say.  Rounds alternate; ratios are of neighbours.
Every greedy reply is compared with the one that its prompt gets alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from tunesmith.generation.batch import BatchLimits
from tunesmith.generation.requests import Request
from tunesmith.generation.serving import BatchedEngine
from tunesmith.generation.settings import Generation

# the demo's nano model, and one of fifty million parameters
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
MODELS: dict[str, dict[str, int]] = {
    "nano": {**dict(zip(_SIZES, (192, 512, 4, 6, 2, 32), strict=True)), "vocab_size": 2000},
    "m50": {**dict(zip(_SIZES, (512, 1408, 14, 8, 4, 64), strict=True)), "vocab_size": 16384},
}
CLIENTS, ADAPTERS, RANK = 32, 8, 8


def make_model(name: str) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**MODELS[name], max_position_embeddings=2048, tie_word_embeddings=True)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():  # of weights of the usual size all tokens are nearly as likely, and rounding would choose
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def make_adapters(model: Any, folder: Path) -> list[Path]:
    from peft import LoraConfig, get_peft_model

    model.name_or_path = "random weights"
    config = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
    wrapped = get_peft_model(model, config, adapter_name="adapter_0")
    for number in range(1, ADAPTERS):
        wrapped.add_adapter(f"adapter_{number}", config)
    wrapped.save_pretrained(folder)
    wrapped.unload()
    return [folder / f"adapter_{number}" for number in range(ADAPTERS)]


def prompts(vocabulary: int) -> list[tuple[int, ...]]:
    """Return prompts of 16 to 40 tokens."""
    torch.manual_seed(1)
    return [tuple(torch.randint(5, vocabulary, (16 + 24 * row // CLIENTS,)).tolist()) for row in range(CLIENTS)]


def one_after_the_other(engine: BatchedEngine, requests: list[Request]) -> list[tuple[int, ...]]:
    return [engine.submit(request).reply(300).tokens for request in requests]


def all_at_once(engine: BatchedEngine, requests: list[Request]) -> list[tuple[int, ...]]:
    """Ask from a thread for each request, as that many clients would."""
    found: dict[int, tuple[int, ...]] = {}

    def client(number: int) -> None:
        found[number] = engine.submit(requests[number]).reply(300).tokens

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(requests))]


def timed(run: Any, *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = run(*arguments)
    return time.perf_counter() - start, found


def spread(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 2), "median": round(statistics.median(values), 2), "max": round(max(values), 2)}


def together(engine: BatchedEngine, asked: list[Request], rounds: int) -> dict[str, Any]:
    ratios, rates, differing = [], [], 0
    all_at_once(engine, asked[:4])
    for _ in range(rounds):
        alone_seconds, alone = timed(one_after_the_other, engine, asked)
        seconds, found = timed(all_at_once, engine, asked)
        differing += sum(one != other for one, other in zip(alone, found, strict=True))
        ratios.append(alone_seconds / seconds)
        rates.append(sum(map(len, found)) / seconds)
    return {"ratio": spread(ratios), "tokens_per_second": spread(rates), "differing": differing, "of": rounds * CLIENTS}


def adapters(engine: BatchedEngine, asked: list[Request], rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        loading = [
            timed(engine.load_adapter, str(number), path)[0]
            for number, path in enumerate(make_adapters(engine._model, Path(folder)))
        ]
    mixed = [
        Request(request.prompt, request.settings, adapter=str(number % ADAPTERS))
        for number, request in enumerate(asked)
    ]
    alone = one_after_the_other(engine, mixed)
    ratios, differing = [], 0
    all_at_once(engine, asked)
    for _ in range(rounds):
        base_seconds, base = timed(all_at_once, engine, asked)
        seconds, found = timed(all_at_once, engine, mixed)
        differing += sum(one != other for one, other in zip(alone, found, strict=True))
        ratios.append((sum(map(len, found)) / seconds) / (sum(map(len, base)) / base_seconds))
    return {
        "share_of_base": spread(ratios),
        "loading_milliseconds": spread([1000 * seconds for seconds in loading]),
        "differing": differing,
        "of": rounds * CLIENTS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("together", "adapters"))
    parser.add_argument("--model", choices=MODELS, default="m50")
    parser.add_argument("--tokens", type=int, default=24, help="tokens that each reply has")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = make_model(options.model)
    engine = BatchedEngine(model, None, limits=BatchLimits(rows=CLIENTS))
    settings = Generation(max_new_tokens=options.tokens)
    asked = [Request(prompt, settings) for prompt in prompts(model.config.vocab_size)]
    measure = together if options.what == "together" else adapters
    found = measure(engine, asked, options.rounds)
    engine.close()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"what": options.what, "parameters": parameters, "threads": torch.get_num_threads(), **found}))


if __name__ == "__main__":
    main()

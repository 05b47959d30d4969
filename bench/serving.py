"""How much the serving engine gains by batching, and what adapters in a batch cost.

    python bench/serving.py together --model m50     # 32 clients at once against one after the other
    python bench/serving.py adapters --model m50     # 32 replies by 8 adapters against 32 by the base
    python bench/serving.py http --model nano        # 32 clients of `tunesmith serve`, whole answers and streams

Weights are random: what is measured does not depend on what they say.  Rounds alternate; ratios are of neighbours.
Every greedy reply is compared with the one that its prompt gets alone.  ``http`` starts the server as a process of its
own; the clients share the machine with it, as they share it with each other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tunesmith.generation.batch import BatchLimits
from tunesmith.generation.requests import Request
from tunesmith.generation.serving import BatchedEngine
from tunesmith.generation.settings import Generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

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
CLIENTS, ADAPTERS = 32, 8


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


def make_adapters(model: Any, folder: Path, rank: int = 8) -> list[Path]:
    from peft import LoraConfig, get_peft_model

    model.name_or_path = "random weights"
    config = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False)
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


def adapters(engine: BatchedEngine, asked: list[Request], rounds: int, rank: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        loading = [
            timed(engine.load_adapter, str(number), path)[0]
            for number, path in enumerate(make_adapters(engine._model, Path(folder), rank))
        ]
    mixed = [
        Request(request.prompt, request.settings, adapter=str(number % ADAPTERS))
        for number, request in enumerate(asked)
    ]
    alone = one_after_the_other(engine, mixed)
    ratios, cpu_ratios, differing = [], [], 0
    all_at_once(engine, asked)
    for _ in range(rounds):
        cpu_start = time.process_time()
        base_seconds, base = timed(all_at_once, engine, asked)
        cpu_between = time.process_time()
        seconds, found = timed(all_at_once, engine, mixed)
        cpu_end = time.process_time()
        differing += sum(one != other for one, other in zip(alone, found, strict=True))
        work = sum(map(len, found)) / sum(map(len, base))
        ratios.append(work * base_seconds / seconds)
        cpu_ratios.append(work * (cpu_between - cpu_start) / (cpu_end - cpu_between))
    return {
        "share_of_base": spread(ratios),
        "by_processor_time": spread(cpu_ratios),
        "loading_milliseconds": spread([1000 * seconds for seconds in loading]),
        "differing": differing,
        "of": rounds * CLIENTS,
    }


class Answer(NamedTuple):
    """What a client got."""

    text: str
    finish_reason: str
    tokens: int


def save_model(name: str, folder: Path) -> list[str]:
    """Save the model with a tokenizer that has a character for each token; return those characters."""
    from tunesmith.models.new_tokenizer import make_tokenizer
    from tunesmith.models.schema import NewTokenizer

    size = MODELS[name]["vocab_size"]
    characters = [chr(0x4E00 + place) for place in range(size)]
    tokenizer = make_tokenizer(NewTokenizer(vocabulary_size=size), ["".join(characters)])
    make_model(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    known = tokenizer.get_vocab()
    return [character for character in characters if character in known]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Start ``tunesmith serve`` as a process of its own, and yield its address; what it logs is read and dropped."""
    options = ["--port", "0", "--batch", str(CLIENTS), "--keep-tokens", "0"]  # each round asks the same again
    command = [sys.executable, "-m", "tunesmith", "serve", str(folder), *options]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"at (http://\S+/v1)", line):
                threading.Thread(target=process.stdout.read, daemon=True).start()
                try:
                    yield found[1]
                finally:
                    process.terminate()
                return
        raise RuntimeError(f"the server did not start: {''.join(said)}")


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """Return the answer, whole or gathered from a stream; raise for anything but an answer."""
    if not body["stream"]:
        response = await client.post("chat/completions", json=body)
        found = response.raise_for_status().json()
        (choice,) = found["choices"]
        return Answer(choice["message"]["content"], choice["finish_reason"], found["usage"]["completion_tokens"])
    text, reason, tokens = "", "", 0
    async with client.stream("POST", "chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                found = json.loads(line.removeprefix("data: "))
                for choice in found["choices"]:
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
                tokens = (found.get("usage") or {}).get("completion_tokens", tokens)
    return Answer(text, reason, tokens)


async def load_over_http(url: str, bodies: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    import httpx

    ratios, rates, alone_rates, differing = [], [], [], 0
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await asyncio.gather(*(ask(client, body) for body in bodies))  # connections, and memory for the cache
        for _ in range(rounds):
            start = time.perf_counter()
            alone = [await ask(client, body) for body in bodies]
            between = time.perf_counter()
            found = await asyncio.gather(*(ask(client, body) for body in bodies))
            seconds = time.perf_counter() - between
            differing += sum(one != other for one, other in zip(alone, found, strict=True))
            rates.append(sum(answer.tokens for answer in found) / seconds)
            alone_rates.append(sum(answer.tokens for answer in alone) / (between - start))
            ratios.append(rates[-1] / alone_rates[-1])
    return {
        "ratio": spread(ratios),
        "tokens_per_second": spread(rates),
        "one_after_the_other": spread(alone_rates),
        "differing": differing,
        "of": rounds * CLIENTS,
    }


def over_http(name: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Load a server with whole answers and with streams; any error of one request ends the measurement."""
    chance, found = random.Random(1), {}
    with tempfile.TemporaryDirectory() as folder:
        characters = save_model(name, Path(folder))
        texts = ["".join(chance.choices(characters, k=16 + 24 * row // CLIENTS)) for row in range(CLIENTS)]
        with served(Path(folder)) as url:
            for kind, how in (("whole", {"stream": False}), ("streams", {"stream": True})):
                usage = {"stream_options": {"include_usage": True}} if how["stream"] else {}
                bodies = [
                    {
                        "model": Path(folder).name,
                        "messages": [{"role": "user", "content": text}],
                        "max_tokens": tokens,
                        "temperature": 0,
                        **how,
                        **usage,
                    }
                    for text in texts
                ]
                found[kind] = asyncio.run(load_over_http(url, bodies, rounds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("together", "adapters", "http"))
    parser.add_argument("--model", choices=MODELS, default="m50")
    parser.add_argument("--tokens", type=int, default=24, help="tokens that each reply has")
    parser.add_argument("--rank", type=int, default=8, help="of each adapter")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "http":
        found = over_http(options.model, options.tokens, options.rounds)
        print(json.dumps({"what": "http", "model": options.model, "clients": CLIENTS, **found}))
        return
    model = make_model(options.model)
    engine = BatchedEngine(model, None, limits=BatchLimits(rows=CLIENTS))
    settings = Generation(max_new_tokens=options.tokens)
    asked = [Request(prompt, settings) for prompt in prompts(model.config.vocab_size)]
    if options.what == "together":
        found = together(engine, asked, options.rounds)
    else:
        found = {"rank": options.rank, **adapters(engine, asked, options.rounds, options.rank)}
    engine.close()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"what": options.what, "parameters": parameters, "threads": torch.get_num_threads(), **found}))


if __name__ == "__main__":
    main()

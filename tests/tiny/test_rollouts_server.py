"""Answers that a server writes while a model trains: handed over, told with their probabilities, the trainer's own.

vLLM needs a GPU: our own server, which has its routes and fields, stands in for it.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from transformers import AutoModelForCausalLM

from tunesmith.apps.server.app import create_app
from tunesmith.core.errors import RecipeError, UserError
from tunesmith.core.files import read_jsonl, write_text
from tunesmith.generation.remote import ask
from tunesmith.generation.remote_rollouts import RemoteSampler, check_server
from tunesmith.generation.sampling import Sampling
from tunesmith.generation.sampling_server import SamplingServer
from tunesmith.run.serving import Limits
from tunesmith.run.serving_access import Access, decide_access, listen
from tunesmith.run.serving_keys import KeyFile
from tunesmith.run.serving_start import Asked, begin, check_folders
from tunesmith.run.settle import settle
from tunesmith.run.train import resume, train

LORA = {"type": "lora", "rank": 4}
RUN = {
    "schedule": {"steps": 3, "batch_size": 3, "learning_rate": 1e-2},
    "evaluation": {"examples": 0},
    "checkpoints": {"every": 1, "keep": 9},
}


class Serving:
    """A base model behind HTTP, with a folder from which it loads adapters."""

    def __init__(self, base: Path, folder: Path, access: Access | None = None) -> None:
        self.folder = folder
        self.folder.mkdir()
        limits = Limits(adapter_folders=check_folders([folder]))
        self.service = begin(Asked(model=str(base), device="cpu", name="base", limits=limits), lambda _: None)
        self.lines: list[str] = []
        app = create_app(self.service, access or Access(), self.lines.append)
        self.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> Serving:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()

    def block(self, **more: Any) -> dict[str, Any]:
        """Return the setting that names it."""
        return {"url": self.url, "adapters": str(self.folder), **more}

    def names(self) -> list[str]:
        return [card["id"] for card in self.service.models()]

    def asked(self, path: str) -> int:
        """Return how many requests came for *path*."""
        return sum(f" {path} " in line for line in self.lines)


@pytest.fixture(scope="module")
def served(saved_model, tmp_path_factory):
    with Serving(saved_model("qwen3"), tmp_path_factory.mktemp("served") / "adapters") as running:
        yield running


def online(server: Any = None, name: str = "grpo", **sampling: Any) -> dict[str, Any]:
    rewards = [{"score": {"type": "length", "target": 3}}]
    sampling = {"max_new_tokens": 8, "server": server, **sampling}
    return {"type": name, "rewards": rewards, "sampling": sampling, "num_generations": 4, "record_every": 1}


def steps_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == "step"]


# --- whole runs


def test_a_run_learns_from_a_servers_answers(make_recipe, served, measured):
    """The adapter of each step is there and the one before is gone; both sides give tokens the same probabilities."""
    loads, unloads = (f"/v1/{name}_lora_adapter" for name in ("load", "unload"))
    loaded, unloaded = served.asked(loads), served.asked(unloads)
    evaluation = {"examples": 2, "every": 2, "generation": {"max_new_tokens": 4}}
    recipe = make_recipe("first", stage=online(served.block()), method=LORA, **{**RUN, "evaluation": evaluation})
    said: list[Any] = []
    folder = train(recipe, said.append).folder
    steps = steps_of(measured(folder.path))
    base, adapter = served.names()

    assert f"answers are written by base at {served.url}" in [e.get("text") for e in said]
    assert len(steps) == 3
    assert all(0 <= step["sampler_gap"] < 1e-4 and np.isfinite(step["loss"]) for step in steps)
    assert any(step["gradient_norm"] > 0 for step in steps)
    assert base == "base"
    assert adapter.startswith("first-")
    assert [path.name for path in served.folder.iterdir()] == [adapter]
    # four kinds of weights: those of the start, and after each step; what is judged is not handed over again.  The
    # first request for a load has no name: it asks whether there is a way to load
    assert (served.asked(loads) - loaded, served.asked(unloads) - unloaded) == (5, 3)
    assert len({row["answer"] for row in read_jsonl(folder.samples)}) > 4


def test_what_a_server_writes_is_what_the_trainer_would_write(make_recipe, served, measured):
    """Where nothing is left to chance the runs are the same to the last weight."""
    found = {}
    for name, server in (("there", served.block()), ("here", None)):
        folder = train(make_recipe(name, stage=online(server, top_k=1), method=LORA, **RUN)).folder
        rows = read_jsonl(folder.samples)
        found[name] = ([(row["step"], row["answer"], row["finished"]) for row in rows], steps_of(measured(folder.path)))
    rows, steps = found["there"]
    rows_here, steps_here = found["here"]

    assert rows == rows_here
    assert [s["reward"] for s in steps] == [s["reward"] for s in steps_here]
    assert [s["entropy"] for s in steps] == pytest.approx([s["entropy"] for s in steps_here], abs=1e-5)


def test_a_killed_run_goes_on_with_the_same_answers(make_recipe, served, measured, trained_weights):
    """The same seed and weights are written the same answers, and what a killed run had loaded does not stay."""
    stage = online(served.block(), "ppo")
    whole = train(make_recipe("whole", stage=stage, method=LORA, **RUN)).folder
    killed = make_recipe("killed", stage=stage, method=LORA, **RUN)
    steps = count(1)

    def kill(event: Any) -> None:
        if event["kind"] == "step" and next(steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(killed, kill)
    assert resume(killed.output).complete

    assert read_jsonl(whole.samples) == read_jsonl(killed.output / "samples" / "rollouts.jsonl")
    one, other = trained_weights(whole.path), trained_weights(killed.output)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sum(name.startswith("killed-") for name in served.names()) == 1
    assert sum(path.name.startswith("killed-") for path in served.folder.iterdir()) == 1


def test_a_key_comes_from_the_environment_and_is_written_nowhere(make_recipe, saved_model, tmp_path, monkeypatch):
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("trainer")
    access = decide_access("127.0.0.1", keys, without_key=False, most_bytes=2**20)
    with Serving(saved_model("qwen3"), tmp_path / "adapters", access) as running:
        stage = online(running.block(key_variable="SAMPLER_KEY"))
        recipe = make_recipe(stage=stage, method=LORA, **{**RUN, "schedule": {"steps": 1, "batch_size": 2}})
        with pytest.raises(UserError, match="set SAMPLER_KEY to the key of this address"):
            train(recipe)
        monkeypatch.setenv("SAMPLER_KEY", key)
        train(recipe)

    assert len(running.names()) == 2
    assert not any(key in path.read_text("utf-8", "ignore") for path in recipe.output.rglob("*") if path.is_file())


# --- what cannot be is said


def refused(recipe: Any) -> str:
    """Return why *recipe* is not carried out, which is said before there is a folder."""
    with pytest.raises(UserError) as caught:
        train(recipe)
    assert not recipe.output.exists()
    return str(caught.value)


def test_a_server_that_cannot_do_it_is_told_of_before_the_model_loads(make_recipe, served, saved_model, tmp_path):
    def said(server: dict[str, Any], **more: Any) -> str:
        sampling = more.pop("sampling", {})
        return refused(make_recipe(stage=online(server, **sampling), method=LORA, **RUN, **more))

    closed = served.url.replace(served.url.split(":")[2], "9/v1")
    assert f"stage.sampling.server: no answer from {closed}/models" in said(served.block(url=closed))
    assert "does the address end in /v1?" in said(served.block(url=served.url.removesuffix("/v1")))
    assert "no base model 'bse' (did you mean 'base'?)" in said(served.block(model="bse"))
    assert "takes 256 tokens, and data.max_tokens is 400" in said(served.block(), data={"max_tokens": 400})
    assert "of temperature 1, not of 0.7" in said(served.block(), sampling={"temperature": 0.7})


def test_another_base_is_told_of(make_recipe, saved_model, tmp_path):
    """Our own server says so of the adapter, before the first step."""
    with Serving(saved_model("llama"), tmp_path / "adapters") as running:
        recipe = make_recipe(stage=online(running.block()), method=LORA, **RUN)
        with pytest.raises(UserError, match=r"stage\.sampling\.server: .* was trained on .*, not on "):
            train(recipe)
    assert not any(event["kind"] == "step" for event in read_jsonl(recipe.output / "metrics.jsonl"))


def test_other_weights_are_told_of_by_their_probabilities(served, saved_model, monkeypatch):
    """A server that cannot know the difference writes answers which the trainer gives other probabilities."""
    sampler = RemoteSampler(SamplingServer(**served.block()), "run-1", lambda _: None)
    monkeypatch.setattr(sampler, "hand_over", lambda: "base")
    model = AutoModelForCausalLM.from_pretrained(saved_model("qwen3")).eval()
    prompt = np.arange(5, 12, dtype=np.int32)
    groups = sampler.sample([prompt], 20, Sampling(max_new_tokens=6), stop_ids=[2], seed=[1])
    sampler.check(model, [prompt], groups, 1.0)
    sampler = RemoteSampler(SamplingServer(**served.block()), "run-1", lambda _: None)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)

    assert len(groups[0]) == 20
    assert len({tuple(answer.tokens.tolist()) for answer in groups[0]}) > 15
    with pytest.raises(UserError, match="serve the base model that is trained on"):
        sampler.check(model, [prompt], groups, 1.0)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"method": "full"}, "full is handed to no server"),
        ({"method": "dora"}, "no code for the magnitudes of dora"),
        ({"method": {**LORA, "modules_to_save": ["embed_tokens"]}}, "method.modules_to_save: servers take adapters"),
        ({"stage": {"constraint": {"type": "regex", "pattern": "a+"}}}, "vLLM knows none of our constraints"),
        ({"stage": {"server": {"adapters": "/nowhere"}}}, "/nowhere is no folder"),
        ({"stage": {"server": {"url": "http://me:key@here/v1"}}}, "no name or key in an address"),
        ({"stage": {"server": {"url": "here:8000"}}}, "'here:8000' is no address"),
    ],
)
def test_what_no_server_can_do_is_refused_by_the_plan(blocks, said, make_recipe, tmp_path):
    """Without a word to the server, which is not there."""
    server = {"url": "http://127.0.0.1:9/v1", "adapters": str(tmp_path)}
    change = blocks.get("stage", {})
    stage = online({**server, **change.get("server", {})}, **{k: v for k, v in change.items() if k != "server"})
    with pytest.raises(RecipeError) as caught:
        settle(make_recipe(stage=stage, **{"method": LORA, **RUN, **{k: v for k, v in blocks.items() if k != "stage"}}))

    assert said in str(caught.value)


# --- as vLLM answers


class VLLM(ThreadingHTTPServer):
    """Answers as vLLM does, without a model; *habits* say how it was started."""

    def __init__(self, **habits: Any) -> None:
        super().__init__(("127.0.0.1", 0), Speaker)
        self.habits, self.loaded, self.bodies = habits, ["run-1-of-before"], []
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Speaker(BaseHTTPRequestHandler):
    server: VLLM

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        cards = [{"id": "qwen", "parent": None, "max_model_len": 4096}]
        cards += [{"id": name, "parent": "qwen", "max_model_len": None} for name in self.server.loaded]
        self.send(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append((self.path, body))
        if self.path.endswith("lora_adapter"):
            self.change(body["lora_name"])
        else:
            prompts = self.server.habits["ids"] if isinstance(body["prompt"], str) else body["prompt"]
            self.send(200, {"choices": [self.choice(body, prompts, at) for at in range(body.get("n", 1))]})

    def change(self, name: str) -> None:
        if not self.server.habits.get("updating", True):
            self.send(404, {"detail": "Not Found"})
        elif not name:
            self.send(400, {"error": {"message": "Both 'lora_name' and 'lora_path' must be provided.", "code": 400}})
        elif self.path.endswith("/unload_lora_adapter"):
            self.server.loaded.remove(name)  # which it has dropped from memory by itself
            self.send(500, {"error": {"message": f"Failed to remove lora adapter '{name}'", "code": 500}})
        else:
            self.server.loaded.append(name)
            self.send(200, f"Success: LoRA adapter '{name}' added successfully.")

    def choice(self, body: dict[str, Any], prompt: list[int], at: int) -> dict[str, Any]:
        told = -2.0 / body["temperature"] if self.server.habits.get("processed") and "temperature" in body else -2.0
        choice = {"index": at, "text": "", "finish_reason": "stop", "stop_reason": 2}
        choice["logprobs"] = {"token_logprobs": [told, -1.0], "top_logprobs": [{"a": told, "b": told - 1}, {"c": -1.0}]}
        if self.server.habits.get("tells_ids", True):
            choice |= {"token_ids": [5 + at, 2], "prompt_token_ids": prompt}
        return choice

    def send(self, status: int, value: Any) -> None:
        content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.mark.parametrize(
    ("habits", "sampling", "said"),
    [
        ({}, {}, ""),
        ({}, {"top_p": 0.9}, ""),
        ({"processed": True}, {"temperature": 0.7}, ""),
        ({"processed": True}, {"temperature": 0.7, "top_k": 20}, "leave the three out"),
        ({}, {"temperature": 0.7}, "--logprobs-mode processed_logprobs"),
        ({"updating": False}, {}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"tells_ids": False}, {}, "vLLM does from 0.10.2 on"),
        ({"ids": [3, 4, 5]}, {}, "has another tokenizer"),
    ],
)
def test_vllm_is_asked_how_it_was_started(habits, sampling, said, tokenizer, tmp_path):
    from tunesmith.generation.remote_rollouts import _PROBE

    with VLLM(**{"ids": tokenizer(_PROBE, add_special_tokens=False)["input_ids"], **habits}) as server:
        asked = Sampling(server={"url": server.url, "adapters": str(tmp_path)}, **sampling)
        try:
            found = check_server(asked, tokenizer, 160)
        except UserError as error:
            found = str(error)

    assert said in found if said else found == "qwen"


def test_vllm_is_handed_one_adapter_after_the_other(tmp_path):
    """Each under a name of its own, from where the server sees the folder; what was there before goes first."""
    weights = iter("aab")

    def save(folder: Path) -> None:
        write_text(folder / "adapter_model.safetensors", next(weights))

    sampling, loaded = Sampling(max_new_tokens=4, temperature=0.5), []
    prompts = [np.array([7, 8], np.int32), np.array([9], np.int32)]
    with VLLM() as server:
        block = SamplingServer(url=server.url, adapters=str(tmp_path), adapters_there="/shared/")
        sampler = RemoteSampler(block, "run-1", save)
        for _ in range(3):
            groups = sampler.sample(prompts, 3, sampling, stop_ids=[2], seed=[0])
            loaded.append(list(server.loaded))
    bodies = [body for path, body in server.bodies if path == "/v1/completions"]
    paths = [body["lora_path"] for path, body in server.bodies if path == "/v1/load_lora_adapter"]

    assert [len(names) for names in loaded] == [1, 1, 1]
    assert loaded[0] == loaded[1] != loaded[2]
    assert paths == [f"/shared/{names[0]}" for names in (loaded[0], loaded[2])]
    assert [path.name for path in tmp_path.iterdir()] == loaded[2]
    assert [[answer.tokens.tolist() for answer in group] for group in groups] == [[[5, 2], [6, 2], [7, 2]]] * 2
    assert groups[0][0].log_probabilities.tolist() == [-2.0, -1.0]
    assert groups[0][0].finished
    assert len({body["seed"] for body in bodies[:2]}) == 2
    assert sorted(body["seed"] for body in bodies[:2]) == sorted(body["seed"] for body in bodies[2:4])
    expected = {"n": 3, "ignore_eos": True, "stop_token_ids": [2], "top_p": 1.0, "top_k": 0, "temperature": 0.5}
    assert all(body.items() >= expected.items() for body in bodies)


# --- the server's part


def test_ids_of_tokens_are_told_with_the_one_that_ended_the_answer(served, saved_model):
    """As vLLM has it: one log-probability for each id, the last id what ended the answer, and no habit of the model."""
    model = AutoModelForCausalLM.from_pretrained(saved_model("qwen3")).eval()
    prompts = [[7, 8, 9], [10, 11, 12, 13]]
    with torch.no_grad():
        wanted = [model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in prompts]
    firsts = [int(log_p.argmax()) for log_p in wanted]
    body = {
        "model": "base", "prompt": prompts, "max_tokens": 3, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True, "logprobs": 0,
    }  # fmt: skip
    found = ask(f"{served.url}/completions", {**body, "stop_token_ids": firsts})["choices"]

    assert [choice["prompt_token_ids"] for choice in found] == prompts
    assert [choice["token_ids"] for choice in found] == [[first] for first in firsts]
    assert [choice["finish_reason"] for choice in found] == ["stop", "stop"]
    for choice, log_p, first in zip(found, wanted, firsts, strict=True):
        assert choice["logprobs"]["token_logprobs"] == pytest.approx([float(log_p[first])], abs=1e-5)
    (free,) = ask(f"{served.url}/completions", {**body, "prompt": prompts[0]})["choices"]
    assert (free["finish_reason"], len(free["token_ids"])) == ("length", 3)
    plain = {key: value for key, value in body.items() if key not in ("return_token_ids", "logprobs")}
    (choice, _) = ask(f"{served.url}/completions", plain)["choices"]
    assert "token_ids" not in choice
    with pytest.raises(UserError, match="a stream tells no ids"):
        ask(f"{served.url}/completions", {**body, "stream": True})

"""Rollouts by a server: it is handed the adapter as it is, and writes the answers; vLLM's API, which ours speaks too.

Prompts and answers are token ids, so that no text is tokenized again, and each token comes with the log-probability
that the server gave it: how far that is from the trainer's own is measured at every step (``sampler_gap``).
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.core.errors import UserError
from tunesmith.core.files import hash_file, whole_folder
from tunesmith.core.registry import suggest
from tunesmith.generation.remote import AddressRefusesError, ask, tell
from tunesmith.generation.sampling import Completion
from tunesmith.models.schema import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tunesmith.generation.sampling import Sampling
    from tunesmith.generation.sampling_server import SamplingServer

_SETTING = "stage.sampling.server"
_FAR = 0.5  # nats a token: bfloat16 and 4-bit bases are off by a tenth of it, other weights by several
_CHECKED = 4  # answers whose log-probabilities are compared before the first step
_MOST_ANSWERS = 16  # that our server writes to a request; vLLM takes more
_PROBE = "Tunesmith 词牌 0123\n"
_NEEDS_LORA = "vLLM loads adapters with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"


@dataclass(frozen=True)
class BaseModel:
    """What a server calls the base model, and the most tokens that it reads and writes; None where it does not say."""

    name: str
    context: int | None


def find_base(server: SamplingServer) -> BaseModel:
    """Return the base model of *server*; raise :class:`UserError` where nobody answers, or has no such model."""
    try:
        cards = ask(f"{server.url}/models", variable=server.key_variable).get("data", [])
    except AddressRefusesError as error:
        raise UserError(
            f"{_SETTING}: {error}" + ("; does the address end in /v1?" if error.status == 404 else "")
        ) from None
    except UserError as error:
        start = f"tunesmith serve MODEL --adapter-folder {server.adapters}, or vllm serve MODEL --enable-lora"
        raise UserError(f"{_SETTING}: {error}; start it with: {start}") from None
    found = {str(card.get("id")): card for card in cards}
    bases = [name for name, card in found.items() if not card.get("parent")]
    name = server.model or (bases[0] if len(bases) == 1 else None)
    there = ", ".join(bases) or "none"
    if name is None:
        raise UserError(f"{_SETTING}.model: which one? {server.url} has {there}")
    if name not in bases:
        raise UserError(
            f"{_SETTING}.model: {server.url} has no base model {name!r}{suggest(name, bases)}; it has {there}"
        )
    context = found[name].get("max_model_len")
    return BaseModel(name, context if isinstance(context, int) else None)


def check_server(sampling: Sampling, tokenizer: Any, most: int) -> str:
    """Ask the server of *sampling* whether it can do what a run will ask for; return what it calls the base.

    *most* are the tokens of the longest prompt with its answer.  Nothing is loaded.  Raises :class:`UserError`.
    """
    server = sampling.server
    assert server is not None
    base = find_base(server)
    if base.context is not None and base.context < most:
        raise UserError(
            f"{_SETTING}: {server.url} takes {base.context} tokens, and data.max_tokens is {most}; "
            "lower that, or start the server with a longer context"
        )
    _check_loads_adapters(server)
    _check_tokens(server, base.name, tokenizer)
    _check_probabilities(server, base.name, sampling)
    return base.name


def _check_loads_adapters(server: SamplingServer) -> None:
    """Raise where the route for adapters is not there: what is asked for cannot be loaded, and must be refused so."""
    try:
        tell(f"{server.url}/load_lora_adapter", {"lora_name": "", "lora_path": ""}, server.key_variable)
    except AddressRefusesError as error:
        if error.status in (404, 405):
            raise UserError(f"{_SETTING}: {server.url} loads no adapters; {_NEEDS_LORA}") from None
        if error.status in (401, 403):
            raise


def _check_tokens(server: SamplingServer, base: str, tokenizer: Any) -> None:
    """Raise where ids of tokens are not told, or are not ours."""
    (choice,) = _complete(server, base, {"prompt": _PROBE, "max_tokens": 1, "return_token_ids": True})
    found = choice.get("prompt_token_ids")
    if not isinstance(found, list) or not isinstance(choice.get("token_ids"), list):
        message = f"{server.url} does not tell the ids of tokens (return_token_ids); vLLM does from 0.10.2 on"
        raise UserError(f"{_SETTING}: {message}")
    own = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if found[-len(own) :] != own:  # a token may begin the text
        message = f"{base} of {server.url} has another tokenizer than the model that trains: it reads {_PROBE!r} as"
        raise UserError(f"{_SETTING}: {message} {found}, ours as {own}; serve the same base model")


def _check_probabilities(server: SamplingServer, base: str, sampling: Sampling) -> None:
    """Raise where the log-probabilities that are told are not those of *sampling* at its temperature, nothing cut off.

    vLLM's ``raw_logprobs`` (as ours) are of temperature 1, its ``processed_logprobs`` of what is left to sample from.
    """
    if sampling.temperature == 1 and not sampling.cuts:
        return

    def likeliest(temperature: float) -> float:
        body = {"prompt": _PROBE, "max_tokens": 1, "temperature": temperature, "logprobs": 1, "seed": 0}
        (choice,) = _complete(server, base, body)
        try:
            return float(max(choice["logprobs"]["top_logprobs"][0].values()))
        except (LookupError, TypeError, AttributeError):
            raise UserError(f"{_SETTING}: {server.url} tells no log-probabilities") from None

    processed = abs(likeliest(1.0) - likeliest(2.0)) > 1e-2
    if not processed and sampling.temperature != 1:
        raise UserError(
            f"stage.sampling.temperature: {server.url} tells log-probabilities of temperature 1, not of "
            f"{sampling.temperature:g}; set it to 1, or start vLLM with --logprobs-mode processed_logprobs"
        )
    if processed and sampling.cuts:
        raise UserError(
            f"stage.sampling: {server.url} tells log-probabilities of what top_k, top_p and min_p leave, and the loss "
            "takes those of all tokens; leave the three out, or start vLLM without --logprobs-mode"
        )


def _complete(server: SamplingServer, model: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the choices that *server* gives."""
    found = ask(f"{server.url}/completions", {"model": model, **body}, server.key_variable)
    choices = found.get("choices")
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise UserError(f"{_SETTING}: {server.url}/completions gave no answer")
    return choices


class RemoteSampler:
    """Has a server write answers with the weights that train, as they are now."""

    def __init__(self, server: SamplingServer, prefix: str, save: Callable[[Path], None]) -> None:
        """Name adapters *prefix*, which no other run has, and a hash; *save* writes the adapter to a folder."""
        self.server, self._prefix, self._save = server, prefix, save
        self._loaded: str | None = None
        self._checked = False

    def sample(
        self,
        prompts: Sequence[NDArray[np.int32]],
        count: int,
        sampling: Sampling,
        *,
        stop_ids: Sequence[int],
        seed: Sequence[int],
    ) -> list[list[Completion]]:
        """Return *count* answers to each of *prompts*, in order; raise :class:`UserError` where the server does not."""
        name = self.hand_over()
        asked = {
            "max_tokens": sampling.max_new_tokens,
            # all of them: what is left out a server takes from the model's own generation settings
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
            "stop_token_ids": [int(token) for token in stop_ids],
            "ignore_eos": True,  # the tokens above end an answer, and no other
            "logprobs": 0,
            "return_token_ids": True,
        }

        def write(place: tuple[int, int]) -> list[Completion]:
            index, first = place
            chance = np.random.SeedSequence([*seed, index, first]).generate_state(1, np.uint64)[0]
            prompt, answers = prompts[index].tolist(), min(_MOST_ANSWERS, count - first)
            body = {"prompt": prompt, "n": answers, "seed": int(chance >> np.uint64(2)), **asked}
            choices = _complete(self.server, name, body)
            if len(choices) != answers or any(each.get("prompt_token_ids") != prompt for each in choices):
                raise UserError(f"{_SETTING}: {self.server.url} did not answer the prompt that it was given")
            ordered = sorted(choices, key=lambda each: int(each.get("index", 0)))
            return [_read(each, self.server.url, stop_ids) for each in ordered]

        places = [(index, first) for index in range(len(prompts)) for first in range(0, count, _MOST_ANSWERS)]
        at_once = max(1, sampling.batch_size // min(count, _MOST_ANSWERS))
        with ThreadPoolExecutor(min(at_once, len(places), 64)) as pool:
            written = list(pool.map(write, places))
        groups: list[list[Completion]] = [[] for _ in prompts]
        for (index, _), answers in zip(places, written, strict=True):
            groups[index] += answers
        return groups

    def hand_over(self) -> str:
        """Have the server load the adapter as it is now, and no other of this run; return what it is called there."""
        folder = self.server.folder
        with whole_folder(folder / f"{self._prefix}-next") as partial:
            self._save(partial)
        written = folder / f"{self._prefix}-next"
        # named by what is in it: servers keep what prompts became under an adapter's name, for the next that asks
        name = f"{self._prefix}-{hash_file(written / ADAPTER_WEIGHTS)[:12]}"
        if name == self._loaded:
            shutil.rmtree(written)
            return name
        self._forget()
        written.rename(folder / name)
        body = {"lora_name": name, "lora_path": self.server.path_there(name)}
        try:
            tell(f"{self.server.url}/load_lora_adapter", body, self.server.key_variable)
        except AddressRefusesError as error:
            hint = _NEEDS_LORA if error.status in (404, 405) else "vLLM also needs --max-lora-rank of this rank"
            raise UserError(f"{_SETTING}: {error}; the adapter is {folder / name} ({hint})") from None
        self._loaded = name
        return name

    def _forget(self) -> None:
        """Unload what this run has loaded before, also before it was killed, and remove it from the folder."""
        server, start = self.server, f"{self._prefix}-"
        if self._loaded is None:
            cards = ask(f"{server.url}/models", variable=server.key_variable).get("data", [])
            old = [name for card in cards if (name := str(card.get("id"))).startswith(start)]
        else:
            old = [self._loaded]
        for name in old:
            try:
                tell(f"{server.url}/unload_lora_adapter", {"lora_name": name}, server.key_variable)
            except AddressRefusesError as error:
                if error.status in (401, 403):
                    raise
                # vLLM says so of an adapter that it has dropped by itself, and a server that was started anew
        self._loaded = None
        for folder in server.folder.glob(f"{start}*"):
            if not folder.name.endswith("-next"):
                shutil.rmtree(folder)

    def check(
        self,
        model: Any,
        prompts: Sequence[NDArray[np.int32]],
        groups: Sequence[Sequence[Completion]],
        temperature: float,
    ) -> None:
        """Raise :class:`UserError` where the first answers were not written by the weights of *model*; look once."""
        if self._checked:
            return
        self._checked = True
        answers = [(prompt, group[0]) for prompt, group in zip(prompts, groups, strict=True)][:_CHECKED]
        apart = [_gap(model, prompt, each, temperature) for prompt, each in answers]
        gap = sum(apart) / sum(len(each.tokens) for _, each in answers)
        if not gap <= _FAR:
            raise UserError(
                f"{_SETTING}: the log-probabilities that {self.server.url} tells are {gap:.2f} from the trainer's, a "
                f"token, and from the same weights they are at most {_FAR:g}; serve the base model that is trained on"
            )


def _read(choice: dict[str, Any], url: str, stop_ids: Sequence[int]) -> Completion:
    """Return *choice* as an answer; raise :class:`UserError` for one that was cut off, or is not whole."""
    reason, tokens = choice.get("finish_reason"), choice.get("token_ids")
    log_p = (choice.get("logprobs") or {}).get("token_logprobs")
    if reason not in ("stop", "length"):
        raise UserError(f"{_SETTING}: {url} did not finish an answer: {reason}")
    whole = isinstance(tokens, list) and isinstance(log_p, list) and len(tokens) == len(log_p) > 0
    if not whole or None in log_p or (reason == "stop") != (tokens[-1] in stop_ids):  # type: ignore[operator,index]
        message = "an answer without its tokens, their log-probabilities, or the token that ended it"
        raise UserError(f"{_SETTING}: {url} gave {message}")
    return Completion(np.asarray(tokens, np.int32), np.asarray(log_p, np.float32), reason == "stop")


@torch.no_grad()
def _gap(model: Any, prompt: NDArray[np.int32], answer: Completion, temperature: float) -> float:
    """Return how far the log-probabilities of *answer* are from those of *model*, over all its tokens."""
    tokens = torch.from_numpy(np.concatenate([prompt, answer.tokens]).astype(np.int64)).to(model.device)
    logits_TV = model(input_ids=tokens[None], use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    log_p_T = (logits_TV / temperature).log_softmax(-1).gather(1, tokens[len(prompt) :, None])[:, 0]
    return float((log_p_T.cpu() - torch.from_numpy(answer.log_probabilities)).abs().sum())

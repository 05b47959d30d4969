"""A model behind an API: what the server's routes call.  Nothing here knows of HTTP's machinery.

Requests are made ready and handed to the engine by :class:`Service`; what comes back is an :class:`Exchange`, whose
pieces the door passes on as they come.  Every method may be called from any thread.
"""

from __future__ import annotations

import base64
import logging
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Conversation
from tunesmith.generation.requests import ContextTooLongError, Request
from tunesmith.run.adapters import check_adapters_on, read_adapter
from tunesmith.run.serving_answers import Answer, ChatWriter, Speller, TextWriter
from tunesmith.run.serving_errors import RefusedError, refusal
from tunesmith.run.serving_messages import MessagesAnswer
from tunesmith.run.serving_metrics import Metrics
from tunesmith.run.serving_models import Names, Served, allowed_folder, check_lora, load_template, own_name
from tunesmith.run.serving_prompts import (
    Prompt,
    chat_prompt,
    dialogue_ids,
    read_messages,
    read_tools,
    sampling,
    text_prompts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tunesmith.generation.requests import Engine, Handle, Piece
    from tunesmith.generation.settings import Generation
    from tunesmith.run.serving_chat_requests import ChatRequest, TokenizeRequest
    from tunesmith.run.serving_messages import MessagesRequest
    from tunesmith.run.serving_models import Loaded
    from tunesmith.run.serving_requests import CompletionRequest, EmbeddingRequest, LoadAdapterRequest, Sampling


_LOG = logging.getLogger("tunesmith.server")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may take."""

    max_tokens: int = 2048
    """Longest answer, in tokens; also what is written where a request does not say."""
    seconds: float = 600.0
    """Longest time that an answer may take, waiting included."""
    preset: str | None = None
    """Sampling for what requests leave out; None is OpenAI's (temperature 1)."""
    adapter_folders: tuple[Path, ...] = ()
    """Folders from which requests may load adapters."""


@dataclass
class Exchange:
    """A request that the engine works on."""

    served: Served
    answer: Answer | MessagesAnswer
    handles: list[Handle]
    prompt_tokens: int
    forced_tokens: int
    """Tokens that we wrote into each answer."""
    stream: bool
    metrics: Metrics
    begun: float = field(default_factory=time.monotonic)
    first_seen: bool = False
    closed: bool = False

    def begin(self) -> list[dict[str, Any]]:
        """Return a stream's first chunks."""
        return self.answer.begin()

    def feed(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Return what *piece* of choice *index* adds to a stream; raise :class:`RefusedError` for one cut off."""
        if not self.first_seen and piece.tokens:
            self.first_seen = True
            self.metrics.observe("tunesmith_first_token_seconds", time.monotonic() - self.begun)
        if piece.finish_reason == "error":
            _LOG.error("an answer could not be finished", exc_info=self.handles[index].error)
        if piece.finish_reason is not None:
            self.metrics.count("tunesmith_finished_total", model=self.served.name, reason=piece.finish_reason)
        chunks = self.answer.feed(index, piece)
        if piece.finish_reason is None and self.answer.is_done(index):
            self.handles[index].cancel()
        return chunks

    def end(self) -> list[dict[str, Any]]:
        """Return a stream's last chunks."""
        return self.answer.end(self.prompt_tokens, self.completion_tokens)

    def body(self) -> dict[str, Any]:
        """Return the whole answer."""
        return self.answer.body(self.prompt_tokens, self.completion_tokens)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(handle.usage.completion_tokens + self.forced_tokens for handle in self.handles)

    def close(self) -> None:
        """Stop what still runs, and count what was done, however it ended."""
        if self.closed:
            return
        self.closed = True
        for handle in self.handles:
            if not handle.finished:
                handle.cancel()
        name = self.served.name
        self.metrics.observe("tunesmith_request_seconds", time.monotonic() - self.begun)
        self.metrics.count("tunesmith_prompt_tokens_total", self.prompt_tokens, model=name)
        self.metrics.count("tunesmith_completion_tokens_total", self.completion_tokens, model=name)


class Service:
    """A base with its adapters, the engine that writes, and the limits."""

    def __init__(self, engine: Engine, names: Names, limits: Limits, base_path: str, model: Any) -> None:
        self.engine, self.names, self.limits, self.metrics = engine, names, limits, Metrics()
        self._base_path, self._model = base_path, model
        self._spellers: dict[int, Speller] = {}
        self._changing = threading.Lock()

    @classmethod
    def begin(cls, loaded: Loaded, engine: Engine, limits: Limits, blends: Mapping[str, Mapping[str, float]]) -> Self:
        """Put the adapters of *loaded* into *engine*, and name *blends* of them."""
        base = Served(loaded.name, None, loaded.template, own_name(loaded.root))
        service = cls(engine, Names(base, loaded.first), limits, loaded.root, loaded.model)
        for name, adapter in loaded.adapters.items():
            engine.load_adapter(name, adapter.folder)
            template = load_template(adapter.place, loaded.model)
            service.names.add(Served(name, name, template, own_name(str(adapter.folder)), base.name))
        for name, weights in blends.items():
            service.names.check_free(name)
            service.names.add_blend(name, weights)
        return service

    # --- what is served

    def models(self) -> list[dict[str, Any]]:
        """Return OpenAI's list of models."""
        return [self._model_data(each) for each in self.names.all()]

    def model(self, name: str) -> dict[str, Any]:
        """Return one of them; raise :class:`RefusedError` for a name that is not served."""
        return self._model_data(self.names.find(name))

    def _model_data(self, served: Served) -> dict[str, Any]:
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "tunesmith",
            "root": served.root,
            "parent": served.parent,
            "max_model_len": self.engine.context,
        }

    def load_adapter(self, asked: LoadAdapterRequest) -> Served:
        """Load an adapter from an allowed folder, or name a blend, while others are answered."""
        with self._changing:
            self.names.check_free(asked.lora_name, "lora_name")
            if asked.blend is not None:
                return self.names.add_blend(asked.lora_name, asked.blend)
            assert asked.lora_path is not None
            folder = allowed_folder(asked.lora_path, self.limits.adapter_folders)
            try:
                adapter = read_adapter(str(folder))
                check_lora(adapter, asked.lora_name)
                check_adapters_on(self._base_path, [adapter])
                template = load_template(adapter.place, self._model)
                self.engine.load_adapter(asked.lora_name, adapter.folder)
            except UserError as error:
                raise refusal(error, "lora_path") from None
            served = Served(asked.lora_name, asked.lora_name, template, own_name(str(folder)), self.names.base.name)
            self.names.add(served)
            return served

    def unload_adapter(self, name: str) -> None:
        """Serve the adapter or blend *name* no more; what it is writing is written to its end."""
        with self._changing:
            served = self.names.remove(name)
            if isinstance(served.adapter, str):
                self.engine.unload_adapter(name)

    # --- answers

    def chat(self, asked: ChatRequest) -> Exchange:
        """Begin the answer to a dialogue; raise :class:`RefusedError` for what cannot be asked."""
        served, prompt, writers = self._dialogue(asked)
        answer = Answer(served.name, writers, chat=True, tells_usage=asked.includes_usage)
        return self._begun(asked, served, prompt, answer)

    def message(self, asked: MessagesRequest) -> Exchange:
        """Begin the answer to a dialogue as Anthropic's clients ask for it."""
        chat = asked.as_chat()
        served, prompt, (writer,) = self._dialogue(chat)
        return self._begun(chat, served, prompt, MessagesAnswer(served.name, writer, len(prompt.ids) - prompt.forced))

    def _dialogue(self, asked: ChatRequest) -> tuple[Served, Prompt, list[ChatWriter]]:
        served = self.names.find(asked.model)
        prompt = chat_prompt(asked, served.template)
        speller = self._speller(served) if asked.logprobs else None
        writers = [
            ChatWriter(
                index,
                prompt.reader(served.template),
                speller,
                one_call=not asked.parallel_tool_calls,
                before=prompt.before,
                after=prompt.after,
            )
            for index in range(asked.n)
        ]
        return served, prompt, writers

    def _begun(self, asked: ChatRequest, served: Served, prompt: Prompt, answer: Answer | MessagesAnswer) -> Exchange:
        told = (asked.top_logprobs or 0) if asked.logprobs else None
        settings = self._sampling(asked, prompt, told)
        requests = self._requests(asked, served, prompt, settings, keep_control=True)
        handles = self._submit(requests, "messages", prompt.constraint_field if prompt.constraint else None)
        tokens = len(prompt.ids) - prompt.forced
        return Exchange(served, answer, handles, tokens, prompt.forced, asked.stream, self.metrics)

    def complete(self, asked: CompletionRequest) -> Exchange:
        """Begin to go on with a text; raise :class:`RefusedError` for what cannot be asked."""
        served = self.names.find(asked.model)
        token_lists = text_prompts(asked.prompt, served.template, "prompt")
        decode = served.template.tokenizer.decode
        texts = [str(decode(ids, skip_special_tokens=True)) for ids in token_lists]
        prompts = [
            Prompt(tuple(ids), Conversation(text=text), constraint=asked.constraint)
            for ids, text in zip(token_lists, texts, strict=True)
        ]
        # the token that ends an answer is told where log-probabilities are
        told = 0 if asked.logprobs is None and asked.return_token_ids else asked.logprobs
        settings = self._sampling(asked, prompts[0], told)
        speller = self._speller(served) if asked.logprobs is not None else None
        requests = [
            each
            for prompt in prompts
            for each in self._requests(
                asked, served, prompt, settings, keep_control=False, ends_itself=not asked.ignore_eos
            )
        ]
        choices = [each for each in zip(texts, token_lists, strict=True) for _ in range(asked.n)]
        writers = [
            TextWriter(index, speller, text if asked.echo else "", ids if asked.return_token_ids else None)
            for index, (text, ids) in enumerate(choices)
        ]
        answer = Answer(served.name, writers, chat=False, tells_usage=asked.includes_usage)
        handles = self._submit(requests, "prompt", "constraint" if asked.constraint else None)
        return Exchange(served, answer, handles, sum(map(len, token_lists)), 0, asked.stream, self.metrics)

    def tokenize(self, asked: TokenizeRequest) -> dict[str, Any]:
        """Return the tokens that the model would be given, as vLLM does."""
        served = self.names.find(asked.model)
        if asked.messages is not None:
            tools = read_tools(asked.tools or ())
            ids = dialogue_ids(served.template, read_messages(asked.messages), tools, asked.chat_template_kwargs)
        else:
            (ids,) = text_prompts(asked.prompt, served.template, "prompt")
        return {"count": len(ids), "max_model_len": self.engine.context, "tokens": list(ids)}

    def embed(self, asked: EmbeddingRequest) -> dict[str, Any]:
        """Return the mean of the last hidden states over each text."""
        served = self.names.find(asked.model)
        prompts = text_prompts(asked.input, served.template, "input")
        try:
            vectors = self.engine.embed(prompts, served.adapter)
        except UserError as error:
            raise refusal(error, "input") from None
        size = len(vectors[0])
        if asked.dimensions not in (None, size):
            raise RefusedError(f"dimensions: this model has {size}, and they cannot be cut", "dimensions")
        packed = asked.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
            for index, vector in enumerate(vectors)
        ]
        total = sum(map(len, prompts))
        self.metrics.count("tunesmith_prompt_tokens_total", total, model=served.name)
        usage = {"prompt_tokens": total, "total_tokens": total}
        return {"object": "list", "data": data, "model": served.name, "usage": usage}

    def metrics_text(self) -> str:
        """Return what Prometheus reads."""
        return self.metrics.as_text(self.engine.stats())

    def close(self) -> None:
        """Finish what was begun, and end the engine."""
        self.engine.close()

    def _sampling(self, asked: Sampling, prompt: Prompt, told: int | None) -> Generation:
        limits = self.limits
        return sampling(asked, prompt, most=limits.max_tokens, preset=limits.preset, log_probabilities=told)

    def _requests(
        self,
        asked: Sampling,
        served: Served,
        prompt: Prompt,
        settings: Generation,
        *,
        keep_control: bool,
        ends_itself: bool = True,
    ) -> list[Request]:
        """Return one request to the engine for each answer; their seeds differ."""
        stop_ids = (*(served.template.stop_ids if ends_itself else ()), *(asked.stop_token_ids or ()))
        return [
            Request(
                prompt.ids,
                settings if settings.seed is None else settings.model_copy(update={"seed": settings.seed + index}),
                stop_ids=stop_ids,
                adapter=served.adapter,
                conversation=prompt.conversation,
                deadline_seconds=self.limits.seconds,
                keep_control=keep_control,
            )
            for index in range(asked.n)
        ]

    def _submit(self, requests: Sequence[Request], prompt_field: str, settings_field: str | None) -> list[Handle]:
        """Hand *requests* to the engine, all or none; raise :class:`RefusedError` for the field that is at fault."""
        handles: list[Handle] = []
        try:
            for request in requests:
                handles.append(self.engine.submit(request))
        except UserError as error:
            for handle in handles:
                handle.cancel()
            field = prompt_field if isinstance(error, ContextTooLongError) else settings_field
            raise refusal(error, field) from None
        return handles

    def _speller(self, served: Served) -> Speller:
        tokenizer = served.template.tokenizer
        return self._spellers.setdefault(id(tokenizer), Speller(tokenizer))


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

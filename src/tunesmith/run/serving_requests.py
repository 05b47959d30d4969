"""What may be asked of the server: OpenAI's requests, field by field.

A field is followed, or its only harmless values are accepted, or it is refused; none is accepted and ignored but those
that do nothing for an answer by their nature (:class:`Bookkeeping`).  ``null`` is the same as leaving a field out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from tunesmith.core.registry import Block
from tunesmith.generation.settings import MOST_ALTERNATIVES

MOST_CHOICES = 16
"""The most answers to one prompt that a request may ask for."""

ShortText = Annotated[str, Field(max_length=1000)]
# levels of lists and objects: what chat templates and our own code walk through by recursion
_DEEPEST = 64
_Weight = Annotated[float, Field(ge=-10, le=10)]
Nothing = Annotated[dict[str, Any] | list[Any], Field(max_length=0)]


def is_text(value: Any) -> str:
    """Return which branch of ``str | list[…]`` a value is meant for."""
    return "list" if isinstance(value, list) else "text"


def by_type(*names: str) -> Discriminator:
    """Return what tells the branches of a union by their ``type``, which is one of *names*."""

    def tell(value: Any) -> Any:
        return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)

    said = f"type should be one of {', '.join(names)}"
    return Discriminator(tell, custom_error_type="unknown_type", custom_error_message=said)


class Asked(Block):
    """A part of a request: types are as JSON has them, no text stands for a number."""

    model_config = ConfigDict(strict=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, value: Any) -> Any:
        return {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else value


class WholeRequest(Asked):
    """The body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_breaks_others(cls, value: Any) -> Any:
        """Refuse text that UTF-8 cannot hold, and groups in groups without end, wherever they stand.

        Tokenizers, templates, and our own answers would fail.
        """
        waiting: list[tuple[str, Any, int]] = [("", value, 0)]
        while waiting:
            place, each, depth = waiting.pop()
            if isinstance(each, dict):
                inner = [(f"{place}.{key}" if _is_unicode(key) else place, item) for key, item in each.items()]
                texts = [*each, *(item for item in each.values() if isinstance(item, str))]
                if not _is_unicode("".join(texts)):
                    place = next(
                        (path for path, item in inner if isinstance(item, str) and not _is_unicode(item)), place
                    )
                    raise _broken("half of a surrogate pair is no character", place)
            elif isinstance(each, list):
                inner = [(f"{place}[{index}]", item) for index, item in enumerate(each)]
                if bad := [path for path, item in inner if isinstance(item, str) and not _is_unicode(item)]:
                    raise _broken("half of a surrogate pair is no character", bad[0])
            else:
                continue
            if depth > _DEEPEST:
                raise _broken(f"groups stand in groups more than {_DEEPEST} deep", place)
            waiting += [(path, item, depth + 1) for path, item in inner if isinstance(item, dict | list)]
        return value


def _broken(message: str, place: str) -> PydanticCustomError:
    return PydanticCustomError("broken_value", message, {"place": place.lstrip(".") or "body"})


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Bookkeeping(WholeRequest):
    """Fields that are about OpenAI's billing, caches and records: they change no answer, here or there."""

    user: ShortText | None = None
    """Who asks; nothing is done with it."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Nothing is stored, this neither."""
    store: Literal[False] | None = None
    """Nothing is stored."""
    service_tier: Literal["auto", "default"] | None = None
    """There is one."""
    safety_identifier: ShortText | None = None
    """Who asks; nothing is done with it."""
    prompt_cache_key: ShortText | None = None
    """Prefixes are found by themselves."""


class StreamOptions(Asked):
    """What a stream tells besides the answer."""

    include_usage: bool = False
    """A last chunk with the counts of tokens."""
    include_obfuscation: Literal[False] | None = None
    """Chunks are not filled up."""


class Sampling(Bookkeeping):
    """What requests for text have in common; what is left out is OpenAI's usual value, or the server's preset's."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """The base, an adapter or a blend: what ``/v1/models`` lists."""
    stream: bool = False
    """Send the answer piece by piece as server-sent events."""
    stream_options: StreamOptions | None = None
    """What a stream tells besides the answer."""
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    """Answers to the prompt."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer; left out, as long as the server allows."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample only from the likeliest tokens that together reach this probability."""
    stop: (
        Annotated[
            Annotated[Annotated[str, Field(min_length=1, max_length=500)], Tag("text")]
            | Annotated[
                Annotated[
                    list[Annotated[str, Field(min_length=1, max_length=500)]], Field(min_length=1, max_length=16)
                ],
                Tag("list"),
            ],
            Discriminator(is_text),
        ]
        | None
    ) = None
    """Texts that end an answer, and are no part of it."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """The same seed writes the same answer."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken off the logits of tokens that are in the answer already."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    """Taken off a token's logit for each time it is in the answer already."""
    logit_bias: Nothing | None = None
    """Not supported: may be empty."""

    preset: Literal["greedy", "precise", "official", "balanced", "creative", "poetry"] | None = None
    """Ours: named values for what is left out."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Ours, as vLLM has it: sample only from so many of the likeliest tokens; 0 and -1 from all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Ours, as vLLM has it: sample only from tokens at least this share as likely as the likeliest one."""
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Ours: sample only from the tokens nearest to the expected surprise that together reach this probability."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    """Ours, as vLLM has it: above 1, tokens of the prompt and the answer get less likely."""
    num_beams: Annotated[int, Field(ge=1, le=16)] | None = None
    """Ours: beams of a search for the likeliest answer."""
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    """Answers to sample for each that is given: the one with the best mean log-probability."""
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=64)] | None = None
    """Ours, as vLLM has it: more tokens that end an answer."""
    constraint: dict[str, Any] | None = None
    """Ours: what the answer must look like, such as ``{"type": "verse", "form": "七绝", "rhyme": "东"}``."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only a stream has options; set stream")
        if self.best_of is not None and self.n > 1 and self.best_of > 1:
            raise ValueError("best_of: give n or best_of, not both")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


def _prompt_tag(value: Any) -> str:
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else ""
    return "tokens" if isinstance(first, int) else "several tokens" if isinstance(first, list) else "texts"


_Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Annotated[list[str], Field(min_length=1, max_length=256)], Tag("texts")]
    | Annotated[_Tokens, Tag("tokens")]
    | Annotated[Annotated[list[_Tokens], Field(max_length=256)], Tag("several tokens")],
    Discriminator(_prompt_tag),
]
"""A text, texts, token ids, or lists of them."""


class CompletionRequest(Sampling):
    """``/v1/completions``."""

    prompt: Texts
    """What the model goes on with, as text or as token ids."""
    echo: bool = False
    """Begin the answer with the prompt."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    """Tell each token's log-probability, and those of so many alternatives."""
    suffix: Literal[""] | None = None
    """Not supported: may be empty."""
    return_token_ids: bool = False
    """Ours, as vLLM has it: tell the ids of the prompt and of the answer, with the token that ended it."""
    ignore_eos: bool = False
    """Ours, as vLLM has it: no token ends an answer but those of ``stop_token_ids``."""

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: the prompt's log-probabilities are not computed; leave echo or logprobs out")
        if self.return_token_ids and self.stream:
            raise ValueError("return_token_ids: a stream tells no ids; leave stream or return_token_ids out")
        return self


class EmbeddingRequest(Bookkeeping):
    """``/v1/embeddings``."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """The base or an adapter."""
    input: Texts
    """What is embedded."""
    encoding_format: Literal["float", "base64"] = "float"
    """Numbers, or their float32 bytes in base64."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Must be the model's own number, if given."""


class LoadAdapterRequest(WholeRequest):
    """``/v1/load_lora_adapter``: an adapter from an allowed folder, or a blend of those that are loaded."""

    lora_name: Annotated[str, Field(min_length=1, max_length=200)]
    """What requests call it as ``model``."""
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Its folder, absolute or below an allowed one; or …"""
    blend: Annotated[dict[str, _Weight], Field(min_length=1, max_length=16)] | None = None
    """… loaded adapters by name, with their weights."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.lora_path is None) == (self.blend is None):
            raise ValueError("lora_path: give it or blend")
        return self


class UnloadAdapterRequest(WholeRequest):
    """``/v1/unload_lora_adapter``."""

    lora_name: Annotated[str, Field(min_length=1, max_length=200)]
    """The adapter or blend."""

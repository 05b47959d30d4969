"""What may be asked of the server about dialogues: messages, tools, forms of answers, with all that OpenAI has."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from tunesmith.generation.settings import MOST_ALTERNATIVES
from tunesmith.run.serving_requests import (
    Asked,
    CompletionRequest,
    EmbeddingRequest,
    LoadAdapterRequest,
    Nothing,
    Sampling,
    ShortText,
    UnloadAdapterRequest,
    WholeRequest,
    by_type,
    is_text,
)


class TextPart(Asked):
    """A part of a message; models here read text only."""

    type: Literal["text", "refusal"]
    """What it is."""
    text: str | None = None
    """The text."""
    refusal: str | None = None
    """The text of a refusal."""

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if (self.text if self.type == "text" else self.refusal) is None:
            raise ValueError(f"a part of the type {self.type} has a {self.type}")
        return self

    @property
    def said(self) -> str:
        """The text, of whatever type."""
        return (self.text if self.type == "text" else self.refusal) or ""


class CalledFunction(Asked):
    """What an earlier answer called."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    """The function."""
    arguments: str | dict[str, Any] = ""
    """Its arguments, as JSON text."""


class EarlierCall(Asked):
    """A tool call of an earlier answer."""

    id: ShortText | None = None
    """What the tool's result refers to."""
    type: Literal["function"] = "function"
    """Always function."""
    function: CalledFunction
    """The function and its arguments."""
    index: int | None = None
    """Its place in a stream, which clients may send back."""


class ChatMessage(Asked):
    """One turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who says it; developer is system."""
    content: (
        Annotated[
            Annotated[str, Tag("text")] | Annotated[Annotated[list[TextPart], Field(max_length=1000)], Tag("list")],
            Discriminator(is_text),
        ]
        | None
    ) = None
    """What is said, as text or as parts of it."""
    name: ShortText | None = None
    """Who says it, for templates that print it."""
    reasoning_content: str | None = None
    """What an earlier answer thought."""
    reasoning: str | None = None
    """The same, as some clients call it."""
    tool_calls: Annotated[list[EarlierCall], Field(max_length=128)] | None = None
    """What an earlier answer called."""
    tool_call_id: ShortText | None = None
    """The call that a tool's message answers."""
    refusal: Literal[""] | None = None
    """Empty: clients send answers back as they got them."""
    annotations: Nothing | None = None
    """Empty: clients send answers back as they got them."""

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        if self.role != "assistant":
            for name in ("tool_calls", "reasoning_content", "reasoning"):
                if getattr(self, name):
                    raise ValueError(f"{name}: only an assistant's message has them")
            if self.content is None:
                raise ValueError(f"content: a message of the role {self.role} needs it")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id: a tool's message says which call it answers")
        if self.role != "tool" and self.tool_call_id is not None:
            raise ValueError("tool_call_id: only a tool's message answers a call")
        return self


class Function(Asked):
    """A function that may be called."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    """Its name."""
    description: str | None = None
    """What it is for."""
    parameters: dict[str, Any] | None = None
    """The JSON schema of its arguments."""
    strict: bool | None = None
    """Hold the arguments to the schema; a call that is asked for by ``tool_choice`` is held to it anyway."""


class Tool(Asked):
    """A tool that may be called."""

    type: Literal["function"]
    """Always function."""
    function: Function
    """The function."""


class NamedFunction(Asked):
    """The name of a function."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    """The name."""


class NamedTool(Asked):
    """The tool that must be called."""

    type: Literal["function"]
    """Always function."""
    function: NamedFunction
    """The function."""


class AnyFormat(Asked):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]
    """Which."""


class Schema(Asked):
    """A JSON schema with a name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    """What clients call it."""
    description: str | None = None
    """What it is for."""
    json_schema: dict[str, Any] = Field(alias="schema")
    """The schema."""
    strict: bool | None = None
    """The answer is held to the schema whatever this says."""


class SchemaFormat(Asked):
    """JSON that obeys a schema."""

    type: Literal["json_schema"]
    """Which."""
    json_schema: Schema
    """The schema."""


ResponseFormat = Annotated[
    Annotated[AnyFormat, Tag("text")]
    | Annotated[AnyFormat, Tag("json_object")]
    | Annotated[SchemaFormat, Tag("json_schema")],
    by_type("text", "json_object", "json_schema"),
]


def _choice_tag(value: Any) -> str:
    return "word" if isinstance(value, str) else "named"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[NamedTool, Tag("named")],
    Discriminator(_choice_tag),
]


class ChatRequest(Sampling):
    """``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    """The dialogue so far."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer, as OpenAI calls it now."""
    logprobs: bool = False
    """Tell each token's log-probability."""
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    """Tell those of so many alternatives, too."""
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    """What may be called."""
    tool_choice: ToolChoice | None = None
    """Whether something is called: auto where there are tools, none, required, or a function by name."""
    parallel_tool_calls: bool = True
    """Whether an answer may call more than once."""
    response_format: ResponseFormat | None = None
    """What the answer must look like."""
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    """Text."""
    functions: Nothing | None = None
    """Not supported: use tools."""
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], Field(max_length=16)] | None = None
    """Ours, as vLLM has it: arguments of the chat template, such as ``{"enable_thinking": false}``."""

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: set logprobs, too")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: it says something else than max_completion_tokens; give one of them")
        if self.tool_choice is not None and self.tool_choice != "none" and not self.tools:
            raise ValueError("tool_choice: there are no tools to choose from")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools: two have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice: no tool is called {self.tool_choice.function.name!r}")
        if self.constraint is not None and self.response_format is not None and self.response_format.type != "text":
            raise ValueError("constraint: give it or response_format, not both")
        return self


class TokenizeRequest(WholeRequest):
    """``/tokenize``, as vLLM has it: what the model would be given."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """The base or an adapter."""
    prompt: str | None = None
    """A text, or …"""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)] | None = None
    """… a dialogue."""
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    """What may be called."""
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], Field(max_length=16)] | None = None
    """Arguments of the chat template."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give it or messages")
        return self


_BODIES: dict[str, type[WholeRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest,
    "/v1/load_lora_adapter": LoadAdapterRequest,
    "/v1/unload_lora_adapter": UnloadAdapterRequest,
}


def known_fields(route: str) -> list[str]:
    """Return the fields of the requests to *route*; none for a route that takes no body."""
    return list(_BODIES[route].model_fields) if route in _BODIES else []

"""A request as what the engine is given: the prompt as training rendered it, how to sample, what the answer must be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest
from tunesmith.data.conversation import Conversation, Message
from tunesmith.generation.settings import Generation
from tunesmith.run.serving_chat_requests import NamedTool, SchemaFormat
from tunesmith.run.serving_errors import RefusedError, from_problems, refusal
from tunesmith.templates.arguments import settable_arguments
from tunesmith.templates.forced_calls import call_texts, find_frame
from tunesmith.templates.replies import open_reasoning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.run.serving_chat_requests import ChatMessage, ChatRequest, Tool
    from tunesmith.run.serving_requests import Sampling
    from tunesmith.templates.chat import ChatTemplate
    from tunesmith.templates.replies import ReplyReader

# what Generation calls a setting -> what the request that was read calls it, where they differ
_ASKED_AS = {"log_probabilities": "logprobs", "max_new_tokens": "max_tokens"}
_PASSED_ON = (
    *("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("num_beams", "best_of", "preset"),
)


@dataclass(frozen=True)
class Prompt:
    """What the model goes on with, and how its answer is read."""

    ids: tuple[int, ...]
    conversation: Conversation
    before: str = ""
    """What the answer begins with, written by us: it stands in ``ids`` already."""
    after: str = ""
    """What it ends with, written by us."""
    constraint: dict[str, Any] | None = None
    """What the model writes in between."""
    constraint_field: str = "constraint"
    """The field that asked for it."""
    tools: tuple[dict[str, Any], ...] = ()
    """What it may call; nothing is read as a call where this is empty."""
    forced: int = 0
    """How many of ``ids`` are the answer's beginning."""

    def reader(self, template: ChatTemplate) -> ReplyReader:
        """Return what takes the answer apart."""
        reader = template.reply_reader(self.ids[: len(self.ids) - self.forced], self.tools)
        return reader if self.tools else replace(reader, form=None)


def chat_prompt(asked: ChatRequest, template: ChatTemplate) -> Prompt:
    """Return the prompt of a dialogue; raise :class:`RefusedError` for what the template or its form cannot do."""
    messages = read_messages(asked.messages)
    choice = asked.tool_choice if asked.tool_choice is not None else "auto"
    tools = read_tools(asked.tools or ()) if choice != "none" else ()
    ids = dialogue_ids(template, messages, tools, asked.chat_template_kwargs)
    prompt = Prompt(tuple(ids), Conversation((*messages, Message("assistant", "")), tools=tools), tools=tools)
    constraint = asked.constraint if asked.constraint is not None else _format_constraint(asked)
    if not tools:
        field = "constraint" if asked.constraint is not None else "response_format"
        return (
            _held(replace(prompt, constraint_field=field), template, constraint) if constraint is not None else prompt
        )
    if constraint is not None:
        what = "constraint" if asked.constraint is not None else "response_format"
        message = f"{what}: an answer of this form cannot call a tool; set tool_choice to none, or leave it out"
        raise RefusedError(message, what)
    if choice == "auto":
        return _free(prompt, asked, template)
    if isinstance(choice, NamedTool):
        tools = tuple(tool for tool in tools if tool["function"]["name"] == choice.function.name)
    return _forced(replace(prompt, tools=tools), template)


def dialogue_ids(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any], arguments: dict[str, Any] | None
) -> list[int]:
    """Return the tokens of a dialogue, by the code that training renders with; raise :class:`RefusedError`."""
    if not template.has_chat:
        raise RefusedError(
            "messages: this model has no chat template (it is a base model); give a text to /v1/completions", "messages"
        )
    if arguments:
        source = template.tokenizer.chat_template
        known = settable_arguments(source) if isinstance(source, str) else set()
        for name in arguments:
            if name not in known:
                there = f"it has {', '.join(sorted(known))}" if known else "it has none, or training has fixed them"
                message = f"the template has no such free argument{suggest(name, known)}; {there}"
                param = f"chat_template_kwargs.{name}"
                raise RefusedError(f"{param}: {message}", param)
    try:
        return template.prompt(messages, tools, arguments)
    except (ValueError, UserError) as error:
        raise RefusedError(f"messages: {error}", "messages") from None


def read_messages(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Return *messages* as training data has them; raise :class:`RefusedError` for calls that cannot be read."""
    found = []
    for index, each in enumerate(messages):
        parts = [part.said for part in each.content] if isinstance(each.content, list) else []
        content = "".join(parts) if isinstance(each.content, list) else each.content or ""
        calls = tuple(call.model_dump(exclude={"index"}, exclude_none=True) for call in each.tool_calls or ())
        try:
            message = Message(
                "system" if each.role == "developer" else each.role,
                content,
                reasoning=each.reasoning_content or each.reasoning,
                tool_calls=calls,
                name=each.name,
                tool_call_id=each.tool_call_id,
                parts=tuple(parts) if len(parts) > 1 else (),
            )
        except ValueError as error:
            place = f"messages[{index}].tool_calls"
            raise RefusedError(f"{place}: {error}", place) from None
        found.append(message)
    return tuple(found)


def read_tools(tools: Sequence[Tool]) -> tuple[dict[str, Any], ...]:
    """Return *tools* as templates are given them; whether a schema is strict is not for the model to know."""
    return tuple(
        {
            "type": "function",
            "function": tool.function.model_dump(exclude={"strict"}, exclude_unset=True, exclude_none=True),
        }
        for tool in tools
    )


def text_prompts(asked: Any, template: ChatTemplate, field: str) -> list[list[int]]:
    """Return the tokens of each text of *asked*, given as text or as tokens; raise :class:`RefusedError`.

    Texts begin as they do in training, and are left open.
    """
    given = asked if isinstance(asked, list) and not isinstance(asked[0], int) else [asked]
    if isinstance(given[0], str):
        end = template.tokenizer.eos_token_id
        prompts = [ids[:-1] if ids and ids[-1] == end else ids for ids in template.encode_texts(given)]
    else:
        size = len(template.tokenizer)
        for number, ids in enumerate(given):
            if wrong := [token for token in ids if token >= size]:
                place = f"{field}[{number}]" if len(given) > 1 else field
                raise RefusedError(f"{place}: there is no token {wrong[0]}; there are {size}", place)
        prompts = [list(ids) for ids in given]
    if not all(prompts):
        raise RefusedError(f"{field}: there is nothing in it", field)
    return prompts


def sampling(
    asked: Sampling, prompt: Prompt, *, most: int, preset: str | None, log_probabilities: int | None
) -> Generation:
    """Return how an answer is sampled: what was asked, over the preset's values, over OpenAI's usual ones.

    *most* tokens are allowed.  Raises :class:`RefusedError` that names the field.
    """
    values = {name: value for name in _PASSED_ON if (value := getattr(asked, name)) is not None}
    given = values.get("preset") or preset
    if given is not None:
        values["preset"] = given
    elif "temperature" not in values:
        values["temperature"] = 0.0 if (asked.num_beams or 1) > 1 else 1.0
    if asked.top_k is not None:
        values["top_k"] = max(0, asked.top_k)
    wanted = getattr(asked, "max_completion_tokens", None) or asked.max_tokens
    if wanted is not None and wanted > most:
        field = "max_tokens" if asked.max_tokens is not None else "max_completion_tokens"
        raise RefusedError(f"{field}: this server allows {most}, found {wanted}", field, code="invalid_value")
    values |= {"max_new_tokens": wanted or most, "stop": asked.stops, "seed": asked.seed}
    values |= {"constraint": prompt.constraint, "log_probabilities": log_probabilities}
    try:
        return Generation(**values)
    except ValidationError as error:
        names = {**_ASKED_AS, "constraint": prompt.constraint_field}
        problems = [_renamed(dict(each), names) for each in error.errors(include_url=False)]
        raise from_problems(problems, asked.model_dump(exclude_unset=True)) from None
    except UserError as error:
        raise refusal(error, prompt.constraint_field if prompt.constraint else None) from None


def _renamed(problem: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a problem of :class:`Generation` at the field of the request that it is about."""
    if not problem["loc"]:
        return problem
    first, *rest = problem["loc"]
    return {**problem, "loc": (names.get(first, first), *rest)}


def _format_constraint(asked: ChatRequest) -> dict[str, Any] | None:
    found = asked.response_format
    if found is None or found.type == "text":
        return None
    if isinstance(found, SchemaFormat):
        return {"type": "json_schema", "json_schema": found.json_schema.json_schema}
    return {"type": "json_schema"}


def _held(prompt: Prompt, template: ChatTemplate, constraint: dict[str, Any]) -> Prompt:
    """Return *prompt* with its answer held to *constraint*: reasoning that the template has opened is closed first."""
    closing = open_reasoning(_end(template, prompt))
    return _begun(replace(prompt, constraint=constraint), template, f"{closing}\n\n" if closing else "", "")


def _forced(prompt: Prompt, template: ChatTemplate) -> Prompt:
    """Return *prompt* with the beginning of a call written into it, and its JSON held to the tools' schemas."""
    frame = find_frame(template, prompt.tools)
    if frame is None:
        raise RefusedError(
            "tool_choice: this model's template does not write calls as JSON, and only those can be made; use auto",
            "tool_choice",
        )
    if not frame.name_key and len(prompt.tools) > 1:
        raise RefusedError(
            "tool_choice: this model's calls need the function's name; give it instead of required", "tool_choice"
        )
    closing = open_reasoning(_end(template, prompt))
    before = frame.before if closing is None or closing in frame.before else f"{closing}\n\n{frame.before}"
    constraint = {"type": "json_schema", "json_schema": frame.schema(prompt.tools)}
    return _begun(replace(prompt, constraint=constraint, constraint_field="tools"), template, before, frame.after)


def _begun(prompt: Prompt, template: ChatTemplate, before: str, after: str) -> Prompt:
    begin = tuple(template.encode([before])[0]) if before else ()
    return replace(prompt, ids=(*prompt.ids, *begin), before=before, after=after, forced=len(begin))


def _end(template: ChatTemplate, prompt: Prompt) -> str:
    return str(template.tokenizer.decode(list(prompt.ids)[-16:], skip_special_tokens=False))


def _free(prompt: Prompt, asked: ChatRequest, template: ChatTemplate) -> Prompt:
    """Return *prompt* for calls that the model makes of itself, held to their schemas where a tool is strict.

    Raises :class:`RefusedError` for what cannot be promised of this model's calls.
    """
    if template.call_form.form is None:
        message = f"tools: this model's template writes no calls that can be read back ({template.call_form.reason})"
        raise RefusedError(message, "tools")
    strict = [index for index, tool in enumerate(asked.tools or ()) if tool.function.strict]
    if not strict:
        return prompt
    calls = call_texts(template, prompt.tools)
    if calls is None:
        place = f"tools[{strict[0]}].function.strict"
        message = "this model's template does not write calls as JSON after a mark of its own; leave strict out"
        raise RefusedError(f"{place}: {message}", place)
    return replace(prompt, constraint={"type": "tool_calls", "calls": calls}, constraint_field="tools")

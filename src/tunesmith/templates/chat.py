"""Conversations to token sequences, exactly as serving will see them.

For each assistant turn the prompt is what generation would be given: the template's render of the messages before it,
with its generation prompt, encoded as one text.  The reply is what the render of the turn adds to that text, through
the token that ends the turn; what the template writes after it belongs to the next prompt.  Where the reply cannot be
told from the two renders the conversation is refused.  Prompt and reply are encoded apart, as they are when the reply
is generated.  If a later turn's prompt begins with the whole earlier sequence, token by token, the two become one
sequence with two trained spans; where a template rewrites history (Qwen3 drops past reasoning) they stay apart, each
exactly as served, and the prefix forest computes their common part once.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta

from tunesmith.core.errors import DataError, UserError
from tunesmith.core.registry import suggest
from tunesmith.data.conversation import Message
from tunesmith.templates.library import read_template
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.conversation import Conversation


# a template is a program of somebody else's: these are the errors it can end in
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


# how a generation prompt ends that opens and closes the reasoning itself: </think>, <channel|>
_CLOSED = re.compile(r"(</[^<>]+>|<[^<>|]+\|>)\s*$")

_PROBE = "so be it"

# what rendering always gives a template, and functions that transformers adds
_GIVEN = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "raise_exception",
    "strftime_now",
    "bos_token",
    "eos_token",
}


@dataclass(frozen=True)
class _Turn:
    """One assistant turn as text: what serving would be given, what the model then has to write."""

    prompt: str
    reply: str
    trained: bool


class ChatTemplate:
    """A tokenizer with the template that training, evaluation, chat and serving all use."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str = "auto", arguments: dict[str, Any] | None = None
    ) -> None:
        """Settle the template; a named one, and *arguments*, are written into *tokenizer*.

        So whoever loads the saved tokenizer renders the same, without knowing of the recipe.
        Raises :class:`UserError` where the tokenizer has no template, or lacks the named template's control tokens.
        """
        self.tokenizer = tokenizer
        self.stop_ids: tuple[int, ...] = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        if name != "auto":
            self._adopt(name)
        if arguments:
            self._fix_arguments(arguments)
        self.has_chat = tokenizer.chat_template is not None
        self.ends_added = 0
        """Answers that the template does not end: the end token was added to them."""
        self.reasoning_dropped = 0
        """Answers whose reasoning the template does not write."""
        self._lead = self._find_lead()
        if self.has_chat:
            self._find_end()

    def _find_lead(self) -> str:
        """Return what must stand before a reply so that its tokens are those of a text that goes on.

        SentencePiece puts a space before whatever it is given; after a line break it puts none.
        """
        lead, alone, together = self.encode(["\n", "a", "\na"])
        return "" if together == lead + alone else "\n"

    def _find_end(self) -> None:
        """Add the token that ends a turn, where it is none of those known: the first that follows an answer."""
        try:
            text = self.render([Message("user", _PROBE), Message("assistant", _PROBE)], prompt=False)
        except ValueError:
            return  # a template with rules of its own; its end is one of the tokens known, or is added
        (tail,) = self.encode([text.rpartition(_PROBE)[2]])
        added = [token for token in tail if token in self.tokenizer.added_tokens_decoder]
        if not set(tail) & set(self.stop_ids) and added and tail.count(added[0]) == 1:
            self.stop_ids = (added[0], *self.stop_ids)

    def _adopt(self, name: str) -> None:
        template = read_template(name)
        tokenizer, stop = self.tokenizer, []
        for token in template.stop:
            if token == "eos" and not self.stop_ids:
                raise UserError(f"template.name: {name} ends turns with the tokenizer's end token, but it has none")
            if token != "eos":
                index = tokenizer.convert_tokens_to_ids(token)
                if index is None or index == tokenizer.unk_token_id:
                    raise UserError(
                        f"template.name: {name} ends turns with {token}, which is no token of this tokenizer; "
                        "use template: alpaca, or a template that fits the model"
                    )
                stop.append(int(index))  # type: ignore[arg-type]  # one token in, one id out
        tokenizer.chat_template = template.jinja
        self.stop_ids = tuple(dict.fromkeys([*stop, *self.stop_ids]))

    def _fix_arguments(self, arguments: dict[str, Any]) -> None:
        template = self.tokenizer.chat_template
        if not isinstance(template, str):
            raise UserError("template.arguments: the tokenizer has no single chat template that they could belong to")
        used = _find_arguments(template)
        for name in arguments:
            if name not in used:
                known = sorted(used - _GIVEN)
                hint = suggest(name, known) or f"; it has {', '.join(known)}" if known else "; it has none"
                raise UserError(f"template.arguments.{name}: the template has no such argument{hint}")
        lines = [
            f"{{%- if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif -%}}"
            for name, value in arguments.items()
        ]
        self.tokenizer.chat_template = "".join(lines) + template

    def add_stop_ids(self, ids: Sequence[int]) -> None:
        """Count more tokens as the end of a turn: those at which the model's generation settings stop."""
        self.stop_ids = tuple(dict.fromkeys([*self.stop_ids, *ids]))

    def render(self, messages: Sequence[Message], *, tools: Sequence[Any] = (), prompt: bool) -> str:
        """Return the text of *messages*, followed by the beginning of an assistant turn where *prompt* is set.

        Raises ``ValueError`` with what the template says against them.
        """
        if not self.has_chat:
            raise UserError(
                "template.name: the tokenizer has no chat template (a base model?); name one, such as template: alpaca"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                [message.as_template_input() for message in messages],
                tools=list(tools) or None,
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except _TEMPLATE_ERRORS as error:
            raise ValueError(f"the template refuses it: {error}") from error
        return str(text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts; the template wrote every special token, so none is added."""
        if not texts:
            return []
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def encode_replies(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts that go on after a prompt, ended by one of the stop tokens."""
        skipped = len(self.encode([self._lead])[0]) if self._lead else 0
        out = []
        for ids in self.encode([self._lead + text for text in texts]):
            ended = ids[-1:] and ids[-1] in self.stop_ids
            self.ends_added += not ended
            out.append(ids[skipped:] if ended else [*ids[skipped:], *self.stop_ids[:1]])
        return out

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of plain texts as the tokenizer begins them, each closed by the end token."""
        if not texts:
            return []
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        encoded = self.tokenizer(list(texts))["input_ids"]
        return [ids if ids[-1:] == end else [*ids, *end] for ids in encoded]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return what generation is given to go on with a dialogue."""
        return self.encode([self.render(messages, prompt=True)])[0]

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Return what generation is given to write each conversation's last assistant turn again."""
        return self.encode([self.render(c.prompt(), tools=c.tools, prompt=True) for c in conversations])

    def sequences(
        self, conversations: Sequence[Conversation], *, train_on_prompt: bool = False
    ) -> list[list[TokenSequence]]:
        """Return the token sequences of each conversation with the weight of every token.

        Raises :class:`DataError` that names the conversations whose trained tokens cannot be told.
        """
        turns, problems = [], []
        for conversation in conversations:
            try:
                turns.append(self._turns(conversation))
            except ValueError as error:
                problems.append(f"{conversation.origin}: {error}")
        if problems:
            shown = "\n".join(problems[:10])
            raise DataError(f"{shown}\n{len(problems)} of {len(conversations)} conversations do not fit the template")
        flat = [turn for each in turns for turn in each]
        prompts = iter(self.encode([turn.prompt for turn in flat]))
        replies = iter(self.encode_replies([turn.reply for turn in flat]))
        return [_merge([(next(prompts), next(replies), t.trained) for t in each], train_on_prompt) for each in turns]

    def _turns(self, conversation: Conversation) -> list[_Turn]:
        messages = conversation.messages
        if not messages:
            raise ValueError("plain text, not a dialogue; use stage: pretrain")
        turns = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self.render(messages[:index], tools=conversation.tools, prompt=True)
            through = self.render(messages[: index + 1], tools=conversation.tools, prompt=False)
            try:
                reply = self._through_end(_reply(prompt, through, message.content.strip()), message)
            except ValueError as error:
                raise ValueError(f"message {index}: {error}") from None
            turns.append(_Turn(prompt, reply, message.trained is not False))
        if not any(turn.trained for turn in turns):
            raise ValueError("no assistant turn to learn")
        return turns

    def _through_end(self, reply: str, message: Message) -> str:
        """Return *reply* through the token that ends its turn; raise ``ValueError`` where it lacks what was said."""
        # reasoning may also stand in the content; templates then change the white space around it
        thought, _, answer = (part.strip() for part in message.content.rpartition("</think>"))
        for part in (thought.removeprefix("<think>").strip(), answer):
            if part not in reply:
                raise ValueError(f"the template does not write the answer {part[:40]!r}")
        self.reasoning_dropped += (message.reasoning or "").strip() not in reply
        said = reply.rfind(answer) + len(answer) if answer else 0
        stops = [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(self.stop_ids))]
        for stop in stops:
            if stop in reply[:said]:
                raise ValueError(f"the answer holds {stop!r}, at which a turn ends")
        ends = [reply.index(stop, said) + len(stop) for stop in stops if stop in reply[said:]]
        return reply[: min(ends, default=None)]


def _reply(prompt: str, through: str, answer: str) -> str:
    """Return what the render *through* the turn adds to *prompt*; raise ``ValueError`` where that cannot be told."""
    if through.startswith(prompt):
        return through[len(prompt) :]
    shared = _count_shared(prompt, through)
    opened, rest = prompt[shared:], through[shared:]
    before = rest[: rest.find(answer)].rstrip() if answer and answer in rest else None
    # history leaves out the empty reasoning that the generation prompt writes (Gemma 4, DeepSeek V3.2)
    if before is not None and _CLOSED.search(opened) and opened.endswith(before):
        return rest[len(before) :]
    advice = "; give the reasoning, or set template.arguments.enable_thinking: false" if "<think>" in opened else ""
    raise ValueError(
        "the template does not write this answer after its own generation prompt, so its trained tokens cannot be "
        f"told: the prompt ends {prompt[-40:]!r}, the whole reads {through[-80:]!r}{advice}"
    )


def _merge(turns: list[tuple[list[int], list[int], bool]], train_on_prompt: bool) -> list[TokenSequence]:
    """Join each turn (prompt, reply, trained) to the one before it where serving would see the same tokens."""
    out: list[tuple[list[int], list[float]]] = []
    for prompt, reply, trained in turns:
        weights = [float(train_on_prompt)] * len(prompt)
        before, learnt = out[-1] if out else ([], [])
        if prompt[: len(before)] == before:
            weights[: len(before)] = learnt
            del out[-1:]
        else:  # what both begin with is learnt once
            shared = _count_shared(prompt, before)
            weights[:shared] = [0.0] * shared
        out.append((prompt + reply, weights + [float(trained)] * len(reply)))
    return [TokenSequence.of(tokens, weights) for tokens, weights in out if any(weights[1:])]


def _count_shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how long the beginning is that both have."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _find_arguments(template: str) -> set[str]:
    """Return the names that a template is given; raise :class:`UserError` where it is no template."""
    # transformers adds these two tags to Jinja; they name nothing
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"template: line {error.lineno} of it cannot be read: {error.message}") from None
    return jinja2.meta.find_undeclared_variables(tree)


def _literal(value: Any) -> str:
    """Write a value of a recipe as Jinja does."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def special_token_counts(sequences: Sequence[TokenSequence], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return how many sequences begin with the begin token twice, or end with the end token twice."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return {
        "duplicated_begin": sum(
            len(s) > 1 and begin is not None and bool((s.tokens[:2] == begin).all()) for s in sequences
        ),
        "duplicated_end": sum(len(s) > 1 and end is not None and bool((s.tokens[-2:] == end).all()) for s in sequences),
    }

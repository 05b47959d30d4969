"""The chat template of a tokenizer: what training, evaluation, chat and serving render and encode with.

For each assistant turn the prompt is what generation would be given: the template's render of the messages before it,
with its generation prompt, encoded as one text.  The reply is what the render of the turn adds to that text, through
the token that ends the turn; what the template writes after it belongs to the next prompt.  Prompt and reply are
encoded apart, as they are when the reply is generated.  If a later turn's prompt begins with the whole earlier
sequence, token by token, the two become one sequence with two trained spans; where a template rewrites history (Qwen3
drops past reasoning) they stay apart, each exactly as served, and the prefix forest computes their common part once.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import jinja2

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Conversation, Message, call_as_text
from tunesmith.templates.arguments import fix_arguments, free_arguments
from tunesmith.templates.call_form import CallInput, FoundForm, find_form
from tunesmith.templates.encode import Encoder
from tunesmith.templates.learning import ALL_ANSWERS, Learning
from tunesmith.templates.library import read_template
from tunesmith.templates.lost import missing_calls
from tunesmith.templates.replies import ReplyReader
from tunesmith.templates.sequences import make_sequences
from tunesmith.templates.turns import SWITCHES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from tunesmith.templates.tokens import TokenSequence


# a template is a program of somebody else's: these are the errors it can end in
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)

_PROBE = "so be it"


class ChatTemplate:
    """A tokenizer with the template that training, evaluation, chat and serving all use."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "auto",
        arguments: dict[str, Any] | None = None,
        lost: Literal["refuse", "warn"] = "warn",
    ) -> None:
        """Settle the template; a named one, and *arguments*, are written into *tokenizer*.

        So whoever loads the saved tokenizer renders the same, without knowing of the recipe.  *lost* says what becomes
        of conversations of which the template leaves something out.
        Raises :class:`UserError` where the tokenizer has no template, or lacks the named template's control tokens.
        """
        self.tokenizer = tokenizer
        self.lost = lost
        self.stop_ids: tuple[int, ...] = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        if name != "auto":
            self._adopt(name)
        if arguments:
            if not isinstance(tokenizer.chat_template, str):
                raise UserError(
                    "template.arguments: the tokenizer has no single chat template that they could belong to"
                )
            tokenizer.chat_template = fix_arguments(tokenizer.chat_template, arguments)
        self.has_chat = tokenizer.chat_template is not None
        self.notes: Counter[str] = Counter()
        """What making sequences met with, and how often; :mod:`tunesmith.templates.notes` says it in words."""
        self.encoder = Encoder(tokenizer, self.stop_ids)
        if self.has_chat:
            self._find_end()

    def _find_end(self) -> None:
        """Add the token that ends a turn, where it is none of those known: the first that follows an answer.

        Where that stands there more than once (Kimi), it is the one that the turn ends with.
        """
        try:
            text = self.render([Message("user", _PROBE), Message("assistant", _PROBE)], prompt=False)
        except ValueError:
            return  # a template with rules of its own; its end is one of the tokens known, or is added
        (tail,) = self.encode([text.rpartition(_PROBE)[2]])
        added = [token for token in tail if token in self.tokenizer.added_tokens_decoder]
        if set(tail) & set(self.stop_ids):
            return
        for token in (*added[:1], *tail[-1:]):
            if token in added and tail.count(token) == 1:
                self._settle_stops((token, *self.stop_ids))
                return

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

    def add_stop_ids(self, ids: Sequence[int]) -> None:
        """Count more tokens as the end of a turn: those at which the model's generation settings stop."""
        self._settle_stops(tuple(dict.fromkeys([*self.stop_ids, *ids])))

    def _settle_stops(self, ids: tuple[int, ...]) -> None:
        if ids != self.stop_ids:
            self.stop_ids = ids
            self.encoder = Encoder(self.tokenizer, ids)

    @property
    def stops(self) -> list[str]:
        """The tokens that end a turn."""
        return self.encoder.stops

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] = (),
        prompt: bool,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of *messages*, followed by the beginning of an assistant turn where *prompt* is set.

        Raises ``ValueError`` with what the template says against them.
        """
        if not self.has_chat:
            raise UserError(
                "template.name: the tokenizer has no chat template (a base model?); name one, such as template: alpaca"
            )
        written = [self._write(message) for message in messages]
        return str(self._apply(written, tools=tools, prompt=prompt, **(arguments or {})))

    def render_all(self, dialogues: Sequence[Sequence[Message]], *, prompt: bool) -> list[str]:
        """Return what :meth:`render` returns for each of *dialogues* without tools, faster than one by one.

        Raises ``ValueError`` where the template refuses one of them.
        """
        if not dialogues or not self.has_chat or any(not messages for messages in dialogues):
            return [self.render(messages, prompt=prompt) for messages in dialogues]
        written = [[self._write(message) for message in messages] for messages in dialogues]
        return list(self._apply(written, tools=(), prompt=prompt))

    def _write(self, message: Message) -> dict[str, Any]:
        """Return *message* as this template wants it."""
        written = message.as_template_input()
        if self.content_form == "parts":
            written["content"] = _as_parts(message.parts or (message.content,))
        elif message.parts and self.content_form == "either":
            written["content"] = _as_parts(message.parts)
        if message.reasoning is not None:
            written["thinking"] = message.reasoning  # as gpt-oss calls it; transformers adds it, too, since 5.20
        return self._call_input.adapt(written) if message.tool_calls else written

    def _apply(self, messages: list[Any], *, tools: Sequence[Any], prompt: bool, **arguments: Any) -> Any:
        """Return the text of *messages*, or those of several dialogues."""
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, add_generation_prompt=prompt, tokenize=False, **arguments
            )
        except _TEMPLATE_ERRORS as error:
            raise ValueError(f"the template refuses it: {error}") from error
        return text

    @cached_property
    def content_form(self) -> Literal["text", "parts", "either"]:
        """Whether the template takes contents as text, as lists of parts, or as either; told by rendering some."""
        if self._writes(_PROBE, _PROBE):
            return "either" if self._writes(_as_parts((_PROBE, _PROBE[::-1])), _PROBE, _PROBE[::-1]) else "text"
        return "parts" if self._writes(_as_parts((_PROBE,)), _PROBE) else "text"

    def _writes(self, content: Any, *said: str) -> bool:
        try:
            text = self._apply([{"role": "user", "content": content}], tools=(), prompt=True)
        except ValueError:
            return False
        return all(each in text for each in said) and "'type'" not in text

    @cached_property
    def thinking_switch(self) -> str | None:
        """The argument by which the template turns reasoning on and off, unless it is fixed; None if it has none."""
        template = self.tokenizer.chat_template
        free = free_arguments(template) if isinstance(template, str) else set()
        return next((name for name in SWITCHES if name in free), None)

    @cached_property
    def call_form(self) -> FoundForm:
        """The form in which this template writes tool calls, found by rendering one; how it takes calls, too."""
        if not self.has_chat:
            return FoundForm(None, CallInput(), "the tokenizer has no chat template")
        return find_form(self._apply, self.stops)

    @cached_property
    def _call_input(self) -> CallInput:
        """How the template takes calls, whether or not there is a form that reads them back."""
        if self.call_form.form is not None:
            return self.call_form.input
        call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": _PROBE}}, "id": "abcdef123"}
        probe = Message("assistant", "", tool_calls=(call,))
        found: dict[CallInput, str] = {}
        for flat, none, text in product((False, True), repeat=3):
            form = CallInput(text, none, flat)
            messages = [{"role": "user", "content": _PROBE[::-1]}, form.adapt(probe.as_template_input())]
            try:
                written = self._apply(messages, tools=(), prompt=False)
            except ValueError:
                continue
            if not missing_calls(probe, written):
                found[form] = written
        # the shortest: gpt-oss writes an empty message before the call unless there is no content at all
        return min(found, key=lambda form: len(found[form]), default=CallInput())

    def reply_reader(self, prompt: Sequence[int], tools: Sequence[Mapping[str, Any]] = ()) -> ReplyReader:
        """Return what takes the answer to *prompt* apart; it wants the answer's text with all control tokens in it."""
        control = [str(token) for token in self.tokenizer.all_special_tokens]
        control += map(str, self.tokenizer.convert_ids_to_tokens(list(self.stop_ids)))
        opened = self.tokenizer.decode(list(prompt)[-16:], skip_special_tokens=False)
        return ReplyReader(self.call_form.form, tools, str(opened), control)

    def calls_as_text(self, tools: Sequence[Mapping[str, Any]], prompt: Sequence[int], written: Sequence[int]) -> str:
        """Return an answer with tool calls as its content and one line of JSON a call; nothing where it has none."""
        if not tools or self.call_form.form is None:
            return ""
        reader = self.reply_reader(prompt, tools)
        reader.feed(str(self.tokenizer.decode(list(written), skip_special_tokens=False)))
        reader.finish()
        reply = reader.reply
        calls = [call_as_text(call.as_message_part()) for call in reply.calls]
        return "\n".join([*([reply.content] if reply.content else []), *calls]) if calls else ""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts; the template wrote every special token, so none is added."""
        return self.encoder.encode(texts)

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of plain texts as the tokenizer begins them, each closed by the end token."""
        if not texts:
            return []
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        encoded = self.tokenizer(list(texts))["input_ids"]
        return [ids if ids[-1:] == end else [*ids, *end] for ids in encoded]

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), arguments: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Return what generation is given to go on with a dialogue; *arguments* are the template's own."""
        return self.prompts([Conversation((*messages, Message("assistant", "")), tools=tuple(tools))], arguments)[0]

    def prompts(
        self, conversations: Sequence[Conversation], arguments: Mapping[str, Any] | None = None
    ) -> list[list[int]]:
        """Return what generation is given to write each conversation's last assistant turn again."""
        marked = self.encoder.mark(conversations)
        texts = [self.render(each.prompt(), tools=each.tools, prompt=True, arguments=arguments) for each in marked]
        return self.encode(texts)

    def sequences(
        self, conversations: Sequence[Conversation], learning: Learning = ALL_ANSWERS
    ) -> list[list[TokenSequence]]:
        """Return the token sequences of each conversation with the weight of every token.

        Raises :class:`DataError` that names the conversations whose trained tokens cannot be told.
        """
        return make_sequences(self, conversations, learning)


def _as_parts(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def special_token_counts(sequences: Sequence[TokenSequence], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return how many sequences begin with the begin token twice, or end with the end token twice."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return {
        "duplicated_begin": sum(
            len(s) > 1 and begin is not None and bool((s.tokens[:2] == begin).all()) for s in sequences
        ),
        "duplicated_end": sum(len(s) > 1 and end is not None and bool((s.tokens[-2:] == end).all()) for s in sequences),
    }

"""Conversations to token sequences, exactly as serving will see them.

For each assistant turn the prompt is what generation would be given: the template's render of the messages before it,
with its generation prompt, encoded as one text.  The reply is what the render of the turn adds to that text.  Where
the prompt is not a prefix of that render nothing can be known, and the conversation is refused.  Prompt and reply are
encoded apart, as they are when the reply is generated.  If a later turn's prompt begins with the whole earlier
sequence, token by token, the two become one sequence with two trained spans; where a template rewrites history (Qwen3
drops past reasoning) they stay apart, each exactly as served, and the prefix forest computes their common part once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from tunesmith.core.errors import DataError, UserError
from tunesmith.templates.library import read_template
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.conversation import Conversation, Message


# a template is a program of somebody else's: these are the errors it can end in
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


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
        """Settle the template; a named one is written into *tokenizer*, so that every later tool renders the same.

        Raises :class:`UserError` where the tokenizer has no template, or lacks the named template's control tokens.
        """
        self.tokenizer, self.arguments = tokenizer, arguments or {}
        self.stop_ids: tuple[int, ...] = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
        if name != "auto":
            self._adopt(name)
        self.has_chat = tokenizer.chat_template is not None
        self.ends_added = 0

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
                **self.arguments,
            )
        except _TEMPLATE_ERRORS as error:
            raise ValueError(f"the template refuses it: {error}") from error
        return str(text)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts; the template wrote every special token, so none is added."""
        if not texts:
            return []
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of plain texts as the tokenizer begins them, each closed by the end token."""
        if not texts:
            return []
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        encoded = self.tokenizer(list(texts))["input_ids"]
        return [ids if ids[-1:] == end else [*ids, *end] for ids in encoded]

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Return what generation is given to answer each conversation's last turn; plain texts are given none."""
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
        texts = [text for each in turns for turn in each for text in (turn.prompt, turn.reply)]
        ids = iter(self.encode(texts))
        return [self._merge([(next(ids), next(ids), turn.trained) for turn in each], train_on_prompt) for each in turns]

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
            if not through.startswith(prompt):
                raise ValueError(
                    f"message {index}: the template does not write this answer after its own generation prompt, so its "
                    f"trained tokens cannot be told: prompt ends {prompt[-40:]!r}, the whole reads {through[-80:]!r}"
                )
            if message.content.strip() and message.content.strip() not in through[len(prompt) :]:
                raise ValueError(f"message {index}: the template does not write the answer {message.content[:40]!r}")
            turns.append(_Turn(prompt, through[len(prompt) :], message.trained is not False))
        if not any(turn.trained for turn in turns):
            raise ValueError("no assistant turn to learn")
        return turns

    def _merge(self, turns: list[tuple[list[int], list[int], bool]], train_on_prompt: bool) -> list[TokenSequence]:
        """Join each turn to the one before it where serving would see the same tokens."""
        out: list[tuple[list[int], list[float]]] = []
        for prompt, reply, trained in turns:
            ended = self._ended(reply)
            weights = [float(train_on_prompt)] * len(prompt)
            if out and prompt[: len(out[-1][0])] == out[-1][0]:
                _, before = out.pop()
                weights[: len(before)] = before
            out.append((prompt + ended, weights + [float(trained)] * len(ended)))
        return [TokenSequence.of(tokens, weights) for tokens, weights in out if any(weights[1:])]

    def _ended(self, reply: list[int]) -> list[int]:
        """Return *reply* through its first end-of-turn token; one is added where the template wrote none."""
        for index, token in enumerate(reply):
            if token in self.stop_ids:
                return reply[: index + 1]
        self.ends_added += 1
        return [*reply, *self.stop_ids[:1]]


def special_token_counts(sequences: Sequence[TokenSequence], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return how many sequences begin with the begin token twice, or end with the end token twice."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return {
        "duplicated_begin": sum(
            len(s) > 1 and begin is not None and bool((s.tokens[:2] == begin).all()) for s in sequences
        ),
        "duplicated_end": sum(len(s) > 1 and end is not None and bool((s.tokens[-2:] == end).all()) for s in sequences),
    }

"""Turns to token sequences: prompt and reply encoded apart, turns joined where serving sees the same tokens."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tunesmith.core.errors import DataError
from tunesmith.templates.learning import choose, find_turns
from tunesmith.templates.lost import find_lost
from tunesmith.templates.tokens import TokenSequence
from tunesmith.templates.turns import count_shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.data.conversation import Conversation
    from tunesmith.templates.chat import ChatTemplate
    from tunesmith.templates.learning import Learning
    from tunesmith.templates.turns import Turn

_Encoded = tuple[list[int], list[float], list[int], list[float]]
"""A turn's prompt and reply: ids and weights of each."""


def make_sequences(
    template: ChatTemplate, conversations: Sequence[Conversation], learning: Learning
) -> list[list[TokenSequence]]:
    """Return the token sequences of each conversation with the weight of every token.

    Raises :class:`DataError` that names the conversations whose trained tokens cannot be told.
    """
    marked = template.encoder.mark(conversations)
    rendered = _render_ahead(template, marked, learning)
    found: list[list[Turn]] = []
    problems = []
    for number, conversation in enumerate(marked):
        try:
            choice = choose(conversation, learning)
            turns = find_turns(template, conversation, learning, choice, rendered.get(number, {}))
            _account(template, conversation, turns)
        except ValueError as error:
            problems.append(f"{conversation.origin}: {template.encoder.unmark(str(error))}")
        else:
            found.append(turns)
    if problems:
        shown = "\n".join(problems[:10])
        raise DataError(f"{shown}\n{len(problems)} of {len(conversations)} conversations do not fit the template")
    encoded = iter(_encode(template, [turn for turns in found for turn in turns], learning))
    return [_merge([next(encoded) for _ in turns]) for turns in found]


def _render_ahead(
    template: ChatTemplate, conversations: Sequence[Conversation], learning: Learning
) -> dict[int, dict[int, tuple[str, str]]]:
    """Return both renders of each answer of plain conversations: at once, which is faster; none if one cannot be."""
    wanted = []
    for number, conversation in enumerate(conversations):
        if not conversation.tools:
            with suppress(ValueError):  # whoever asks again is told why
                wanted += [(number, index) for index, _ in choose(conversation, learning).answers]
    before = [conversations[number].messages[:index] for number, index in wanted]
    through = [conversations[number].messages[: index + 1] for number, index in wanted]
    try:
        prompts, wholes = template.render_all(before, prompt=True), template.render_all(through, prompt=False)
    except ValueError:
        return {}
    rendered: dict[int, dict[int, tuple[str, str]]] = {}
    for (number, index), prompt, whole in zip(wanted, prompts, wholes, strict=True):
        rendered.setdefault(number, {})[index] = (prompt, whole)
    return rendered


def _account(template: ChatTemplate, conversation: Conversation, turns: Sequence[Turn]) -> None:
    """Count what the template lost and how turns were told.

    Raises ``ValueError`` where losses are refused, and where a control token cannot be read as text.
    """
    lost = find_lost(template, conversation, turns)
    if lost and template.lost == "refuse":
        words = ", ".join(words for _, words in lost)
        raise ValueError(f"the template does not write {words}; template.lost: warn goes on without")
    template.notes.update(f"lost_{kind}" for kind, _ in lost)
    for turn in turns:
        template.encoder.check_spelling(turn.prompt)
        template.encoder.check_spelling(turn.reply)
        template.notes[turn.how] += 1


def _encode(template: ChatTemplate, turns: Sequence[Turn], learning: Learning) -> list[_Encoded]:
    encoder = template.encoder
    prompts = encoder.encode([turn.prompt for turn in turns])
    replies = encoder.encode_after([turn.reply for turn in turns])
    end = template.stop_ids[:1]
    out: list[_Encoded] = []
    for turn, prompt, ids in zip(turns, prompts, replies, strict=True):
        reply = ids
        if turn.is_answer and not (ids and ids[-1] in template.stop_ids):
            template.notes["ends_added"] += 1
            reply = [*ids, *end]
        weights = [learning.prompt_weight] * len(prompt)
        learnt = [turn.weight] * len(reply)
        if turn.marks:
            before = len(turn.prompt)
            _set_marked(weights, encoder.starts(turn.prompt, after=False), turn, 0)
            _set_marked(learnt, encoder.starts(turn.reply, after=True), turn, before)
        out.append((prompt, weights, reply, learnt))
    if encoder.is_lossless:
        _check_texts(template, turns, [(prompt, ids) for (prompt, *_), ids in zip(out, replies, strict=True)])
    return out


def _check_texts(template: ChatTemplate, turns: Sequence[Turn], encoded: Sequence[tuple[list[int], list[int]]]) -> None:
    """Count the turns whose tokens do not stand for their text: of a letter that the tokenizer does not know."""
    texts = [turn.prompt + turn.reply for turn in turns]
    # a turn that the next one's prompt repeats is looked at there
    last = [at for at, text in enumerate(texts) if not (at + 1 < len(turns) and turns[at + 1].prompt.startswith(text))]
    decoded = template.encoder.decode([encoded[at][0] + encoded[at][1] for at in last])
    for at, text in zip(last, decoded, strict=True):
        template.notes["misspelt"] += text != texts[at] and text != template.encoder.unmark(texts[at])


def _set_marked(weights: list[float], starts: Sequence[int], turn: Turn, offset: int) -> None:
    """Give each token the weight of the marked part in which it begins; the text begins at *offset* in the turn."""
    for index, start in enumerate(starts):
        for begin, end, weight in turn.marks:
            if begin <= start + offset < end:
                weights[index] = weight


def _merge(turns: Sequence[_Encoded]) -> list[TokenSequence]:
    """Join each turn to the one before it where serving would see the same tokens."""
    out: list[tuple[list[int], list[float]]] = []
    for prompt, prompt_weights, reply, reply_weights in turns:
        weights = prompt_weights
        before, learnt = out[-1] if out else ([], [])
        if prompt[: len(before)] == before:
            weights[: len(before)] = learnt
            del out[-1:]
        else:  # what both begin with is learnt once
            shared = count_shared(prompt, before)
            weights[:shared] = [0.0] * shared
        out.append((prompt + reply, weights + reply_weights))
    return [TokenSequence.of(tokens, weights) for tokens, weights in out if any(weights[1:])]

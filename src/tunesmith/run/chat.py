"""Chat: a dialogue with a model, rendered exactly as training rendered it."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import ValidationError

from tunesmith.core.errors import UserError
from tunesmith.core.files import writing
from tunesmith.core.registry import suggest
from tunesmith.data.conversation import Conversation, Message
from tunesmith.generation.presets import PRESETS
from tunesmith.generation.remote import RemoteModel, is_address
from tunesmith.generation.settings import Generation
from tunesmith.run.adapters import check_adapters_on, load_beside, read_adapter
from tunesmith.run.evaluate import Contestant, load_contestant, load_template
from tunesmith.templates.replies import TextDelta, read_reply

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from tunesmith.generation.requests import Piece
    from tunesmith.templates.chat import ChatTemplate
    from tunesmith.templates.replies import ReplyReader


@dataclass
class Speed:
    """How fast an answer was written."""

    tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.tokens / max(self.seconds, 1e-9):.1f} a second"


@dataclass
class Talk:
    """A model, what was said so far, and the adapters that may answer: all are in memory beside one base."""

    contestant: Contestant | None
    """None where the model is behind an address."""
    system: str | None
    generation: Generation
    said: list[Message] = field(default_factory=list)
    """Questions and answers in turn, as they were written."""
    adapters: dict[str, ChatTemplate] = field(default_factory=dict)
    """Name -> the template that this adapter was trained with."""
    active: str | None = None
    """The adapter that answers; None is the model as it was named."""
    remote: RemoteModel | None = None
    speed: Speed | None = None
    """Of the last answer, where its tokens can be counted."""

    @classmethod
    def load(
        cls,
        model: str,
        system: str | None,
        generation: Generation,
        device: str,
        adapters: Sequence[str] = (),
    ) -> Self:
        """Load *model* and *adapters* on it, each ``name=path`` or a path; the first of them answers.

        *model* may be an OpenAI-compatible address, ``URL#NAME``.  Raises :class:`UserError` for what cannot be
        loaded, and for adapters of another base.
        """
        if is_address(model):
            if adapters:
                raise UserError("--adapter: an address keeps its own adapters; name one of its models as URL#NAME")
            return cls(None, system, generation, remote=RemoteModel.find(model))
        named = _named(adapters)
        found = {name: read_adapter(path) for name, path in named.items()}
        if found:
            check_adapters_on(model, list(found.values()))
        contestant = load_contestant(model, device, merge=bool(found))
        if not found:
            contestant.model.eval()
            return cls(contestant, system, generation)
        # peft keeps them as attributes of modules, which not every name can be
        keys = {f"adapter_{number}": each.folder for number, each in enumerate(found.values())}
        wrapped = load_beside(contestant.model, keys).eval()
        templates = {name: load_template(each.place, wrapped) for name, each in found.items()}
        talk = cls(Contestant(wrapped, contestant.template), system, generation, adapters=templates)
        talk.switch(next(iter(found)))
        return talk

    def switch(self, name: str | None) -> None:
        """Let the adapter *name* answer from now on, or none of them; the dialogue goes on."""
        if name is not None:
            if name not in self.adapters:
                there = (
                    f"there are {', '.join(self.adapters)} and none" if self.adapters else "give some with --adapter"
                )
                raise UserError(f"no adapter called {name!r}{suggest(name, list(self.adapters))}; {there}")
            assert self.contestant is not None
            self.contestant.model.set_adapter(f"adapter_{list(self.adapters).index(name)}")
        self.active = name

    def use(self, preset: str) -> None:
        """Sample as the preset says from now on; raise :class:`UserError` where there is none."""
        self.generation = sampling(self.generation.max_new_tokens, None, preset)

    def change(self, setting: str) -> None:
        """Set ``name=value`` of the sampling; raise :class:`UserError` for what cannot be."""
        name, equals, value = setting.partition("=")
        name = name.strip()
        if not equals or name not in Generation.model_fields:
            names = ", ".join(Generation.model_fields)
            raise UserError(
                f"no setting {name!r}{suggest(name, Generation.model_fields)}; write NAME=VALUE, of {names}"
            )
        try:
            found = yaml.safe_load(value)
        except yaml.YAMLError:
            found = value
        self.generation = _generation({**self.generation.model_dump(exclude_unset=True), name: found})

    def forget(self) -> None:
        """Begin a new dialogue."""
        self.said.clear()

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer to *text* piece by piece, and remember both; raise :class:`UserError` for an empty one."""
        if not text.strip():
            raise UserError("the prompt is empty")
        question = Message("user", text)
        answer = yield from self._answer([*self.said, question])
        self.said += [question, Message("assistant", answer)]

    def again(self) -> Iterator[str]:
        """Yield another answer to the last question, and remember it instead; raise :class:`UserError` without one."""
        answer = yield from self._answer([*self.said[:-2], self._last_question()])
        self.said[-1] = Message("assistant", answer)

    def edit(self, text: str) -> Iterator[str]:
        """Yield the answer to *text* in the place of the last question; raise :class:`UserError` without one."""
        self._last_question()
        if not text.strip():
            raise UserError(f"write the question anew, as in /edit QUESTION; it was: {self._last_question().content}")
        question = Message("user", text)
        answer = yield from self._answer([*self.said[:-2], question])
        self.said[-2:] = [question, Message("assistant", answer)]

    def save(self, path: Path) -> None:
        """Append the dialogue to *path* as a line of ``messages`` that can be trained on.

        Reasoning and tool calls are told apart from what was said.  Raises :class:`UserError` where nothing was said,
        and for a file that is no .jsonl.
        """
        if not self.said:
            raise UserError("nothing was said yet")
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: a talk is saved as lines of JSON; name a .jsonl file")
        messages = [*self._opening(), *map(self._as_data, self.said)]
        row = {"messages": [message.as_template_input() for message in messages]}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _last_question(self) -> Message:
        if not self.said:
            raise UserError("nothing was asked yet")
        return self.said[-2]

    def _opening(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def _as_data(self, message: Message) -> Message:
        """Return an answer as its content, reasoning and calls."""
        if message.role != "assistant" or self._template is None:
            return message
        reply = read_reply(message.content, self._template.call_form.form)
        calls = tuple(call.as_message_part() for call in reply.calls)
        return Message("assistant", reply.content, reasoning=reply.reasoning, tool_calls=calls)

    @property
    def _template(self) -> ChatTemplate | None:
        if self.contestant is None:
            return None
        return self.contestant.template if self.active is None else self.adapters[self.active]

    def _answer(self, dialogue: Sequence[Message]) -> Generator[str, None, str]:
        """Yield the answer to *dialogue*, and return it as it was written."""
        self.speed = None
        if self.remote is not None:
            return (yield from _joined(self.remote.stream([*self._opening(), *dialogue], self.generation)))
        from tunesmith.generation.sample import stream_answer

        template = self._template
        assert template is not None
        assert self.contestant is not None
        if template.has_chat:
            prompt = template.prompt([*self._opening(), *dialogue])
        else:  # a base model without a template goes on with the text
            prompt = template.encode([dialogue[-1].content])[0]
        model = self.contestant.model
        reads_calls = template.call_form.form is not None
        speed, start = Speed(), time.monotonic()

        def count(piece: Piece) -> None:
            speed.tokens += len(piece.tokens)
            speed.seconds = time.monotonic() - start

        with model.disable_adapter() if self.adapters and self.active is None else nullcontext():
            pieces = stream_answer(
                model,
                template.tokenizer,
                prompt,
                self.generation,
                stop_ids=template.stop_ids,
                keep_control=reads_calls,
                told=count,
                conversation=Conversation(tuple(dialogue)),
            )
            stops = map(str, template.tokenizer.convert_ids_to_tokens(list(template.stop_ids)))
            shown = _readable(pieces, template.reply_reader(prompt), list(stops)) if reads_calls else _joined(pieces)
            answer = yield from shown
        self.speed = speed
        return answer


def sampling(max_new_tokens: int, temperature: float | None, preset: str | None) -> Generation:
    """Return how to sample: as the preset says, but at *temperature* where it is given.

    Raises :class:`UserError` for a preset that there is not.
    """
    if preset is not None and preset not in PRESETS:
        raise UserError(f"no preset called {preset!r}{suggest(preset, PRESETS)}; there are {', '.join(PRESETS)}")
    given = {"preset": preset, "temperature": temperature}
    return _generation({"max_new_tokens": max_new_tokens} | {k: v for k, v in given.items() if v is not None})


def _generation(values: dict[str, Any]) -> Generation:
    """Return the settings; raise :class:`UserError` in one line for what is wrong with them."""
    try:
        return Generation.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")) from None


def _joined(pieces: Iterable[str]) -> Generator[str, None, str]:
    """Yield the pieces and return them as one text."""
    answer = []
    for piece in pieces:
        answer.append(piece)
        yield piece
    return "".join(answer)


def _readable(pieces: Iterable[str], reader: ReplyReader, stops: Sequence[str]) -> Generator[str, None, str]:
    """Yield an answer with its tool calls as one reads them; return it as it was written, to go on from."""
    written, shown = [], ""
    for piece in chain(pieces, (None,)):
        if piece is not None:
            written.append(piece)
        for delta in reader.finish() if piece is None else reader.feed(piece):
            kind = delta.kind if isinstance(delta, TextDelta) else "call"
            text = delta.text if isinstance(delta, TextDelta) else f"→ {delta.call}"
            yield _between(shown, kind) + text
            shown = kind
    if shown == "reasoning":
        yield "\n</think>"
    answer = "".join(written)
    # the marks of calls may be control tokens: they are what the template writes into history
    for token in stops if reader.reply.calls else reader.control:
        answer = answer.replace(token, "")
    return answer


def _between(before: str, now: str) -> str:
    """Return what is written between two parts of an answer."""
    if before == now:
        return "\n" if now == "call" else ""
    opened = "<think>\n" if now == "reasoning" else ""
    if before == "reasoning":
        return "\n</think>\n\n" + opened
    return ("\n" if before else "") + opened


def _named(adapters: Sequence[str]) -> dict[str, str]:
    """Return name -> path of ``name=path`` words; a path alone is called as its folder."""
    named: dict[str, str] = {}
    for word in adapters:
        name, equals, path = word.partition("=")
        if not equals:
            folder = Path(word)
            name, path = (folder.parent if folder.name == "weights" else folder).name, word
        if not name or not path or name == "none":
            raise UserError(f"--adapter: {word!r} has no name; write name=PATH, and none is the base's")
        if name in named:
            raise UserError(f"--adapter: two are called {name!r}; write name=PATH")
        named[name] = path
    return named

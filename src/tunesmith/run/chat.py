"""Chat: a dialogue with a model, rendered exactly as training rendered it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest
from tunesmith.data.conversation import Message
from tunesmith.generation.settings import Generation
from tunesmith.run.adapters import check_adapters_on, load_beside, read_adapter
from tunesmith.run.evaluate import Contestant, load_contestant, load_template
from tunesmith.templates.replies import TextDelta

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from tunesmith.templates.chat import ChatTemplate
    from tunesmith.templates.replies import ReplyReader


@dataclass
class Talk:
    """A model, what was said so far, and the adapters that may answer: all are in memory beside one base."""

    contestant: Contestant
    system: str | None
    generation: Generation
    said: list[Message] = field(default_factory=list)
    adapters: dict[str, ChatTemplate] = field(default_factory=dict)
    """Name -> the template that this adapter was trained with."""
    active: str | None = None
    """The adapter that answers; None is the model as it was named."""

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

        Raises :class:`UserError` for what cannot be loaded, and for adapters of another base.
        """
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
            self.contestant.model.set_adapter(f"adapter_{list(self.adapters).index(name)}")
        self.active = name

    def forget(self) -> None:
        """Begin a new dialogue."""
        self.said.clear()

    def ask(self, text: str) -> Iterator[str]:
        """Yield the answer to *text* piece by piece, and remember both; raise :class:`UserError` for an empty one."""
        if not text.strip():
            raise UserError("the prompt is empty")
        from tunesmith.generation.sample import stream_answer

        template = self.contestant.template if self.active is None else self.adapters[self.active]
        question = Message("user", text)
        if template.has_chat:
            opening = [Message("system", self.system)] if self.system else []
            prompt = template.prompt([*opening, *self.said, question])
        else:  # a base model without a template goes on with the text
            prompt = template.encode([text])[0]
        model = self.contestant.model
        reads_calls = template.call_form.form is not None
        with model.disable_adapter() if self.adapters and self.active is None else nullcontext():
            pieces = stream_answer(
                model,
                template.tokenizer,
                prompt,
                self.generation,
                stop_ids=template.stop_ids,
                keep_control=reads_calls,
            )
            stops = map(str, template.tokenizer.convert_ids_to_tokens(list(template.stop_ids)))
            shown = _readable(pieces, template.reply_reader(prompt), list(stops)) if reads_calls else _joined(pieces)
            answer = yield from shown
        self.said += [question, Message("assistant", answer)]


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

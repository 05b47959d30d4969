"""Chat: a dialogue with a model, rendered exactly as training rendered it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest
from tunesmith.data.conversation import Message
from tunesmith.generation.settings import Generation
from tunesmith.run.adapters import check_adapters_on, load_beside, read_adapter
from tunesmith.run.evaluate import Contestant, load_contestant, load_template

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tunesmith.templates.chat import ChatTemplate


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
        answer = []
        model = self.contestant.model
        with model.disable_adapter() if self.adapters and self.active is None else nullcontext():
            for piece in stream_answer(model, template.tokenizer, prompt, self.generation, stop_ids=template.stop_ids):
                answer.append(piece)
                yield piece
        self.said += [question, Message("assistant", "".join(answer))]


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

"""Verse that keeps its form: regulated poems, ci, couplets and patterns of one's own, exact in tone and rhyme."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from tunesmith.core.errors import Problem, UserError
from tunesmith.core.registry import suggest
from tunesmith.generation.constraints._base import Constraint, Walk
from tunesmith.generation.constraints._verse_characters import Script, characters_of
from tunesmith.generation.constraints._verse_forms import (
    Graph,
    RegulatedPlan,
    patterned,
    regulated,
    upper_graph,
)
from tunesmith.generation.constraints._verse_rhyme import find_groups
from tunesmith.generation.constraints._verse_tokens import VerseTokens, is_mark
from tunesmith.generation.constraints._verse_walk import Form, allow_space, start_lower_line, start_verse
from tunesmith.prosody.books import CILIN, PINGSHUI, find_book
from tunesmith.prosody.ci import find_tune, tunes
from tunesmith.prosody.forms import COUPLET, FORMS
from tunesmith.prosody.pattern import Pattern
from tunesmith.prosody.readings import BOTH
from tunesmith.prosody.text import is_han
from tunesmith.scoring._asked import form_in, read_form_name, upper_line

if TYPE_CHECKING:
    from tunesmith.data.conversation import Conversation
    from tunesmith.generation.vocabulary import Vocabulary

_AUTO, _FREE, _DRAWN = "auto", "free", "drawn"
_USUAL_LONG = 10
_MOST_FORMS = 64
_LINE_ENDS, _COUPLET_ENDS = ("，", "。"), ("；", "。")
_STOPS = tuple("，。；、！？,.;!?")


class Verse(Constraint):
    """Lets a model write only what keeps a form: every answer passes ``tunesmith verse check`` without a finding.

    Where the form binds a tone, only characters may stand whose every reading has it; a rhyme word is of one group in
    every reading, and is not used twice.
    """

    form: str = _AUTO
    """七绝, 五律, 七言排律 …, 对联, a ci tune or a pattern (中仄平平仄，平平仄仄平韵); auto: what each prompt names."""

    rhyme: str = _FREE
    """Rhyme group, or a character of it, one for each rhyme (东); free: the first rhyme word decides; drawn: chance."""

    book: str | None = None
    """Rhyme book: 平水韵, 词林正韵, 中华新韵 or 中华通韵; left out, 词林正韵 for ci and 平水韵 for all else."""

    second_tone: Literal["平", "仄"] | None = None
    """Tone of the second character of a regulated poem (平起 or 仄起); left out, either."""

    first_line_rhymes: bool | None = None
    """Whether the first line of a regulated poem rhymes; left out, it may."""

    lines: Annotated[int | None, Field(ge=10, le=40)] = None
    """Lines of a 排律, an even number; left out, 10."""

    variant: Annotated[int, Field(ge=1)] = 1
    """Which form of a ci tune, the commonest first."""

    upper: str | None = None
    """Upper line that a couplet answers; left out, what the prompt's last line quotes, or has after a colon."""

    lengths: list[int] | None = None
    """Write both lines of a couplet, with clauses of so many characters, 1 to 30: [7], or [4, 7]."""

    line_ends: list[str] | None = None
    """What stands after the lines, in turn, such as ["，", "。\\n"]; left out, the form's usual marks."""

    script: Script = "either"
    """Leave characters out that only the other script has: simplified, traditional, or either."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        kind = self._kind()
        find_book(self._book())
        for name, kinds in _BELONGS.items():
            if getattr(self, name) != type(self).model_fields[name].default and kind not in kinds:
                raise ValueError(f"{name}: belongs to {' and '.join(kinds)}, not to form: {self.form}")
        self._check_values(kind)
        if self.line_ends is not None:
            self._check_ends(self.line_ends)
        if kind == "any form":
            if self.rhyme not in (_FREE, _DRAWN):
                raise ValueError(f"rhyme: {self.rhyme!r} needs a form; with form: auto it is {_FREE} or {_DRAWN}")
        elif kind != "couplets":
            self._rhyme_bits(self._graph())
        return self

    def _check_values(self, kind: str) -> None:
        if self.lines is not None and (self.lines % 2 or FORMS[self.form].lines):
            raise ValueError("lines: an even number, for 五言排律 and 七言排律 only")
        if self.lengths is not None and not (self.lengths and all(1 <= length <= 30 for length in self.lengths)):
            raise ValueError(f"lengths: each from 1 to 30, found {self.lengths}")
        if self.upper is not None and self.lengths is not None:
            raise ValueError("upper and lengths: with an upper line only the lower one is written; leave lengths out")
        if kind == "ci tunes" and self.variant > (count := len(find_tune(self.form))):
            raise ValueError(f"variant: {self.form} has {count} forms")

    def _check_ends(self, ends: list[str]) -> None:
        if not ends or any(not end or not all(map(is_mark, end)) for end in ends):
            raise ValueError("line_ends: marks and line breaks, at least one after each line")
        if self._kind() == "couplets" and len(ends) != 2:
            raise ValueError("line_ends: a couplet has two, after the upper and after the lower line")

    # --- what is asked for

    def _kind(self) -> str:
        if self.form == _AUTO:
            return "any form"
        if self.form in FORMS:
            return "regulated poems"
        if self.form == COUPLET:
            return "couplets"
        near = suggest(self.form, [*FORMS, COUPLET])
        if near and self.form not in tunes():
            raise ValueError(f"form: {self.form!r} is not known{near}")
        return "patterns" if isinstance(read_form_name(self.form), Pattern) else "ci tunes"

    def _book(self) -> str:
        return self.book or (CILIN if self._kind() == "ci tunes" else PINGSHUI).name

    def _graph(self) -> Graph:
        """Return the form as a graph, of anything but the lower line of a couplet."""
        kind = self._kind()
        if kind == "couplets":
            return upper_graph(self.lengths or (), self.line_ends or _COUPLET_ENDS)
        if kind == "regulated poems":
            form = FORMS[self.form]
            lines = form.lines or self.lines or _USUAL_LONG
            plan = RegulatedPlan(form.length, lines, self.second_tone or BOTH, self.first_line_rhymes)
            return regulated(plan, self.line_ends or _LINE_ENDS)
        found = read_form_name(self.form)
        pattern = found if isinstance(found, Pattern) else find_tune(found)[self.variant - 1]
        return patterned(pattern, self.line_ends or ())

    def _rhyme_bits(self, graph: Graph) -> list[int]:
        """Return the groups that each rhyme may be of, as bits; raise ``ValueError`` for names that mean none."""
        words, book = graph.rhymes(), find_book(self._book())
        names = [] if self.rhyme in (_FREE, _DRAWN) else re.split(r"[\s,，、]+", self.rhyme.strip())
        if len(names) > len(words):
            raise ValueError(f"rhyme: {self.rhyme!r} names {len(names)}, and the form has {len(words)}")
        names += [""] * (len(words) - len(names))
        return [find_groups(name, book, set(tones)) for name, tones in zip(names, words.values(), strict=True)]

    # --- writing

    def start_form(self, vocabulary: Vocabulary) -> Form:
        """Return the form in *vocabulary*, made once; raise :class:`UserError` where that cannot write it."""
        tokens = self._tokens(vocabulary)
        forms: dict[str, Form] = vocabulary.caches.setdefault("verse forms", {})
        key = self.model_dump_json()
        known = forms.get(key)
        if known is None:
            graph = self._graph()
            allow_space(graph, tokens)
            end = (self.line_ends or _COUPLET_ENDS)[1] if self.lengths else ""
            known = Form(graph, tokens, upper_lengths=tuple(self.lengths or ()), end=end.rstrip())
            known.check()
            bits = [] if self.lengths else self._rhyme_bits(graph)
            known.groups = tuple(known.rich_groups(number, among) for number, among in enumerate(bits))
            if len(forms) >= _MOST_FORMS:  # a server may be asked for any number
                forms.clear()
            forms[key] = known
        return known

    def _tokens(self, vocabulary: Vocabulary) -> VerseTokens:
        key = ("verse tokens", self._book(), self.script)
        known: VerseTokens | None = vocabulary.caches.get(key)
        if known is None:
            known = vocabulary.caches[key] = VerseTokens(vocabulary, characters_of(self._book(), self.script))
        return known

    def start(self, vocabulary: Vocabulary, conversation: Conversation | None = None, seed: int = 0) -> Walk:
        if self.form == _AUTO:
            return self._as_asked(conversation).start(vocabulary, conversation, seed)
        if self._kind() == "couplets" and self.lengths is None:
            upper, shown = (self.upper, self.upper) if self.upper is not None else _upper_line(conversation)
            # as the upper line ends with a mark or without
            end = _COUPLET_ENDS[1] if shown.endswith(_STOPS) else ""
            if self.line_ends is not None:
                end = self.line_ends[-1].rstrip()
            return start_lower_line(self._tokens(vocabulary), upper, end, begins=True)
        form = self.start_form(vocabulary)
        return start_verse(form, _draw(form, random.Random(seed)) if self.rhyme == _DRAWN else form.groups)

    def _as_asked(self, conversation: Conversation | None) -> Verse:
        """Return the constraint with the form that a prompt names; raise :class:`UserError` where it names none."""
        form = form_in(_question(conversation))
        if not form:
            raise UserError(
                f"verse, form: auto: the prompt{_at(conversation)} names no form such as 七绝, 对联 or a ci tune; "
                "name it there, or set form"
            )
        values = {**self.model_dump(), "form": form}
        del values["type"]
        try:
            return Verse.model_validate(values)
        except ValidationError as error:
            raise UserError(f"verse, for the prompt{_at(conversation)}: {error.errors()[0]['msg']}") from None

    def check_vocabulary(self, vocabulary: Vocabulary, max_new_tokens: int) -> Iterable[Problem]:
        if self.form == _AUTO or (self._kind() == "couplets" and self.lengths is None and self.upper is None):
            return  # what is asked shows in the prompts
        try:
            longest = self.start(vocabulary).longest
        except UserError as error:
            yield Problem("", str(error), hint="choose another form or rhyme, or a model whose tokenizer knows more")
            return
        if longest is not None and longest > max_new_tokens:
            yield Problem(
                "",
                f"answers end after {max_new_tokens} tokens, and this form may take {longest} with this tokenizer",
                hint=f"set max_new_tokens: {longest} or more; answers end by themselves when their form is complete",
            )


_BELONGS = {
    "second_tone": ("regulated poems",),
    "first_line_rhymes": ("regulated poems",),
    "lines": ("regulated poems",),
    "variant": ("ci tunes",),
    "upper": ("couplets",),
    "lengths": ("couplets",),
    "rhyme": ("regulated poems", "ci tunes", "patterns", "any form"),
}


def _draw(form: Form, chance: random.Random) -> list[int]:
    """Return one group for each rhyme, as bits: another for each, large ones more often than small ones."""
    drawn: list[int] = []
    for number, bits in enumerate(form.groups):
        tone = form.graph.rhymes()[number][0]
        left = [1 << group for group in range(bits.bit_length()) if bits >> group & 1 and 1 << group not in drawn]
        left = left or [bits]
        drawn += chance.choices(left, [form.tokens.count_in(bit, tone) for bit in left])
    return drawn


def _question(conversation: Conversation | None) -> str:
    """Return what the user asked last: before the answer that data has, or at the end of a dialogue."""
    messages = conversation.messages if conversation is not None else ()
    if conversation is not None and messages and messages[-1].role == "assistant":
        messages = conversation.prompt()
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


def _at(conversation: Conversation | None) -> str:
    return f" of {conversation.origin}" if conversation is not None else ""


def _upper_line(conversation: Conversation | None) -> tuple[str, str]:
    """Return the upper line that a prompt gives, and the same with the mark after it; :class:`UserError` for none."""
    question = _question(conversation).strip()
    upper = upper_line(question)
    if not upper and all(is_han(character) or character in _STOPS for character in question):
        upper = question  # the prompt is the line itself
    if not any(map(is_han, upper)):
        raise UserError(
            f"the lower line of a couplet is written to an upper one, and the prompt{_at(conversation)} gives none; "
            "write it after 上联：or on the last line, or set upper, or lengths to write both lines"
        )
    return upper, question[: question.find(upper) + len(upper) + 1]

"""What making sequences met with, in words: each thing is told once, with how often."""

from collections.abc import Mapping

_NOTES = {
    "ends_added": "the template does not end {} answers: the end token was added, so that the model learns to stop",
    "lost_tools": "the template does not write the declared tools of {} conversations",
    "lost_calls": "the template does not write the tool calls of {} earlier turns",
    "lost_messages": "the template does not write {} messages",
    "lost_reasoning": "the template does not write the reasoning of {} answers: it is not learnt",
    "switched": "{} answers are learnt after the prompt that the template's switch for reasoning gives, set as they "
    "have reasoning or not: serve them so, or set it in template.arguments",
    "opened": "the template nowhere writes the reasoning of {} answers, although its prompt opens it: they are learnt "
    "as the prompt asks for them, reasoning first",
    "joined": "{} turns are several answers in a row, which the template writes as one",
    "placed": "the template does not write {} answers after its own generation prompt: they are learnt where it writes "
    "them, but generation begins otherwise",
    "pairs": "{} rows are pairs: their chosen answers are learnt; stage: dpo learns the preference, too",
    "misspelt": "{} answers are not what their tokens stand for: the tokenizer changes a letter, or does not know it",
}


def describe_notes(notes: Mapping[str, int]) -> list[str]:
    """Return the sentences for what *notes* counts."""
    return [text.format(notes[kind]) for kind, text in _NOTES.items() if notes.get(kind)]

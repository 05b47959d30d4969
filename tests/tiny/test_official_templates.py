"""Official templates train what they serve, or refuse: judged from texts alone, where a sample of them is there."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from test_templates import OFFICIAL, byte_tokenizer, replies, spans
from transformers import PreTrainedTokenizerFast

from tunesmith.core.errors import DataError
from tunesmith.data.conversation import Conversation, Message
from tunesmith.templates.chat import ChatTemplate

pytestmark = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="../shared/templates is not here")

# it asks a model to judge a dialogue that it quotes: no answer in it was ever generated
JUDGES = {"B__qwen3guard__Qwen3Guard-Gen-4B__b4230b55"}

SWITCHES = ("enable_thinking", "thinking")


def official(entry: dict) -> PreTrainedTokenizerFast:
    """Bytes, with the control tokens that stand in an official template."""
    source = (OFFICIAL / f"{entry['id']}.jinja").read_text("utf-8")
    control = r"<\|[^|<>\n{}' ]{1,40}\|>|<｜[^｜\n{}]{1,40}｜>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>"
    control += r"|\[/?INST\]|\[\|[a-z]+\|\]"
    named = {
        key: entry["special_tokens"].get(key) or None for key in ("bos_token", "eos_token", "pad_token", "unk_token")
    }
    special = sorted(set(re.findall(control, source)) - set(named.values()))
    return byte_tokenizer(source, special, **named)


def as_conversation(found: dict) -> Conversation:
    messages = [
        Message(
            each["role"],
            each.get("content") or "",
            each.get("reasoning_content"),
            tuple(each.get("tool_calls") or ()),
            None,
            each.get("name"),
            each.get("tool_call_id"),
        )
        for each in found["messages"]
    ]
    return Conversation(tuple(messages), tools=tuple(found["tools"] or ()))


def official_conversations() -> list[Conversation]:
    found = json.loads((OFFICIAL / "conversations.json").read_text("utf-8"))
    return [as_conversation(each) for each in found if "train" in each["tags"] and "image" not in each["tags"]]


def test_official_templates_are_never_trained_wrongly():
    """Of all pairs with a right answer hardly one is refused, and none is trained otherwise than served."""
    counts: Counter[str] = Counter()
    refused = []
    for entry in json.loads((OFFICIAL / "index.json").read_text("utf-8")):
        template = ChatTemplate(official(entry))
        for conversation in official_conversations():
            template.notes.clear()
            try:
                (sequences,) = template.sequences([conversation])
            except DataError as error:
                reason = no_answer(template, conversation) or ("it judges" if entry["id"] in JUDGES else "")
                counts[f"refused: {reason or 'although there is an answer'}"] += 1
                refused += [] if reason else [f"{entry['id']}: {error}"]
            else:
                told = next((how for how in WAYS if template.notes[how]), "follows")
                counts[f"{told}, {'one sequence' if len(sequences) == 1 else 'several'}"] += 1
                assert wrong(template, conversation, sequences) == [], entry["id"]

    print(json.dumps(counts, indent=1), *refused, sep="\n")
    answered = sum(count for kind, count in counts.items() if not kind.startswith("refused: ") or "although" in kind)
    assert len(refused) <= 0.005 * answered, "\n".join(refused)


WAYS = ("placed", "joined", "rewritten", "opened", "switched", "closed")


def no_answer(template: ChatTemplate, conversation: Conversation) -> str:
    """Say why nothing can be right, from renders of the whole; nothing where something may be."""

    def render(messages) -> str:
        return template.render(messages, tools=conversation.tools, prompt=False)

    calls = [call["function"] for message in conversation.messages for call in message.tool_calls]
    try:
        written = render(conversation.messages)
    except ValueError:
        return "the template refuses calls" if calls else "the template refuses these roles"
    try:
        without = render([replace(message, tool_calls=()) for message in conversation.messages])
    except ValueError:
        without = "\n".join(message.content for message in conversation.messages)
    parts = Counter(part for call in calls for part in (call["name"], *map(str, call["arguments"].values())))
    if any(written.count(part) < without.count(part) + count for part, count in parts.items()):
        return "the template does not write all calls"
    return ""


def served(template: ChatTemplate, conversation: Conversation) -> list[set[tuple[int, ...]]]:
    """Return what chat would feed for each assistant turn, with reasoning switched as the template can."""
    out = []
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant":
            before = template.encoder.mark_messages(conversation.messages[:index])
            texts = [
                template.render(before, tools=conversation.tools, prompt=True, arguments=arguments)
                for arguments in ({}, *({name: value} for name in SWITCHES for value in (True, False)))
            ]
            out.append({tuple(ids) for ids in template.encode(texts)})
    return out


def wrong(template: ChatTemplate, conversation: Conversation, sequences) -> list[str]:
    """Say what is wrong with a mask, from the texts alone: not from the renders that it was made of."""
    said = [message for message in conversation.messages if message.role == "assistant"]
    asked = [m.content for m in conversation.messages if m.role != "assistant" and len(m.content) > 3]
    found = replies(template, sequences)
    prompts = [tuple(s.tokens[:begin].tolist()) for s in sequences for begin, _ in spans(template, s)]
    right = served(template, conversation)
    if len(found) == 1 and len(said) == 2 and said[0].content in found[0]:  # two in a row are one turn
        said, right = said[1:], right[:1]
    out = [] if len(found) == len(said) else [f"{len(found)} spans for {len(said)} turns"]
    for message, text, prompt, expected in zip(said, found, prompts, right, strict=False):
        out += [f"{message.content!r} not in {text!r}"] * (message.content.strip() not in text)
        out += [
            f"question {question!r} in {text!r}"
            for question in asked
            if question in text and question not in message.content
        ]
        for call in message.tool_calls:
            parts = [call["function"]["name"], *map(str, call["function"]["arguments"].values())]
            out += [f"{part!r} of a call not in {text!r}" for part in parts if part not in text]
        control = [token for token in template.tokenizer.all_special_tokens if token in text]
        out += [f"no end in {text!r}"] * (not any(text.endswith(token) for token in control))
        after = text.rpartition(message.content.strip())[2] if message.content.strip() else ""
        out += [f"goes on after its end: {text!r}"] * ("assistant" in after and not message.tool_calls)
        if prompt not in expected:
            # then it is what the template writes before the answer, and ends as prompts do but for the reasoning
            whole = template.render(
                conversation.messages[: conversation.messages.index(message) + 1],
                tools=conversation.tools,
                prompt=False,
            )
            before = template.tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            stands = whole.startswith(before) and whole[len(before) :].strip().startswith(
                (message.content.strip()[:20], "<", "[")
            )
            heading = re.search(r"assistant\W*$|<\|assistant\|>\W*$", before)
            out += [f"a prompt that serving does not see: {before[-80:]!r}"] * (not stands or not heading)
    return out

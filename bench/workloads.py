"""The benchmark's data: five workloads made from a seed, the same for every peer. Needs nothing but Python."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

Messages = list[dict[str, str]]
Row = dict[str, Any]
"""``messages`` (all of them, the answers included) or, for pairs, ``prompt``, ``chosen`` and ``rejected``."""

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 6000)]
COUPLET = "请根据给出的上联写出下联，要求对仗工整、平仄协调、意境相合，只写下联，不要解释。"
REWRITE = "请把下面这段文字改写成典雅的文言风格，保留全部原意，不要增删内容，也不要解释。"
SYSTEM = "你是一位博学而耐心的诗词老师，回答简明准确，先说结论，再举一两个例子；不知道的就说不知道，不编造出处。"


@dataclass(frozen=True)
class Case:
    """One thing to measure: a workload, how much of it, and what trains on it."""

    workload: str = "couplets"
    examples: int = 384
    length: int = 0
    """Characters of a ``long`` document; 0 draws 512 to 1,024."""
    method: str = "lora"
    vocabulary: int = 32768
    """Rows of the embedding; the tokenizer itself is smaller, as padded vocabularies are."""
    shape: str = "30M"
    most_steps: int = 0
    """Stop after so many optimizer steps; 0 trains one epoch."""
    seed: int = 0

    @property
    def name(self) -> str:
        """Return a short name that tells the case from every other one."""
        plain = Case(self.workload)
        parts = {
            "": self.method if self.method != plain.method else None,
            "vocabulary": self.vocabulary if self.vocabulary != plain.vocabulary else None,
            "length": self.length or None,
            "shape": self.shape if self.shape != plain.shape else None,
            "examples": self.examples if self.most_steps else None,
        }
        return "-".join([self.workload, *(f"{key}{value}" for key, value in parts.items() if value)])

    def first(self, examples: int) -> "Case":
        """Return the case over its first *examples* alone, for one optimizer step."""
        return replace(self, examples=examples, most_steps=0)

    def as_data(self) -> dict[str, Any]:
        """Return the case as JSON-ready data."""
        return {**asdict(self), "name": self.name}


def _text(random_source: random.Random, shortest: int, longest: int) -> str:
    return "".join(random_source.choices(CHARACTERS, k=random_source.randint(shortest, longest)))


def _turn(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _couplet(draw: random.Random, _: Case) -> Row:
    length = draw.choice([5, 5, 7, 7, 7, 7, 9, 11, 13])
    return {"messages": _turn(f"{COUPLET}\n{_text(draw, length, length)}", _text(draw, length, length))}


def _style(draw: random.Random, _: Case) -> Row:
    passage = _text(draw, 60, 200)
    length = len(passage)
    return {"messages": _turn(f"{REWRITE}\n{passage}", _text(draw, length * 3 // 4, length))}


def _chat(draw: random.Random, _: Case) -> Row:
    messages: Messages = [{"role": "system", "content": SYSTEM}]
    for _turns in range(draw.randint(2, 5)):
        messages += _turn(_text(draw, 8, 40), _text(draw, 20, 80))
    return {"messages": messages}


def _document(draw: random.Random, case: Case) -> Row:
    length = case.length or draw.randint(512, 1008)  # the template's own tokens keep it below 1,024
    title = _text(draw, 16, 48) if length > 64 else _text(draw, 8, 8)
    return {"messages": _turn(title, _text(draw, length - len(title), length - len(title)))}


def _pair(draw: random.Random, case: Case) -> Row:
    question, chosen = _couplet(draw, case)["messages"]
    rejected = {"role": "assistant", "content": _text(draw, len(chosen["content"]), len(chosen["content"]))}
    return {"prompt": [question], "chosen": [chosen], "rejected": [rejected]}


WORKLOADS: dict[str, Callable[[random.Random, Case], Row]] = {
    "couplets": _couplet,
    "style": _style,
    "chats": _chat,
    "long": _document,
    "dpo": _pair,
}
SAID = {
    "couplets": "one instruction for all, a line of 5–13 characters, its answer",
    "style": "one instruction, a passage of 60–200 tokens, its rewriting",
    "chats": "one system prompt, 2–5 turns, every answer learnt",
    "long": "documents of 512–1,024 tokens, nothing shared",
    "dpo": "couplets with a chosen and a rejected answer",
}


def make_rows(case: Case) -> list[Row]:
    """Return the case's rows; the same seed gives the same rows, and fewer examples give the first of them."""
    draw = random.Random(f"{case.workload} {case.seed}")
    return [WORKLOADS[case.workload](draw, case) for _ in range(case.examples)]


def write_rows(case: Case, folder: Path) -> None:
    """Write the case to *folder* as each peer reads it: Alpaca or messages, prompt and completion, and LLaMA-Factory's
    ``dataset_info.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = make_rows(case)
    _write_lines(folder / "messages.jsonl", rows)
    described: dict[str, Any] = {"file_name": "messages.jsonl", "formatting": "sharegpt", "columns": {}}
    described["tags"] = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    if case.workload == "dpo":
        flat = ({"messages": r["prompt"], "chosen": r["chosen"][0], "rejected": r["rejected"][0]} for r in rows)
        _write_lines(folder / "pairs.jsonl", flat)
        described["file_name"], described["ranking"] = "pairs.jsonl", True
        described["columns"] = {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
    elif case.workload == "chats":
        described["columns"] = {"messages": "messages"}
    else:
        described = {"file_name": "alpaca.json"}
        (folder / "alpaca.json").write_text(json.dumps([_alpaca(r) for r in rows], ensure_ascii=False), "utf-8")
        halves = ({"prompt": r["messages"][:1], "completion": r["messages"][1:]} for r in rows)
        _write_lines(folder / "prompt_completion.jsonl", halves)
    (folder / "dataset_info.json").write_text(json.dumps({"bench": described}), "utf-8")


def _alpaca(row: Row) -> dict[str, str]:
    question, answer = (message["content"] for message in row["messages"])
    instruction, _, passage = question.partition("\n")
    return {"instruction": instruction, "input": passage, "output": answer}


def _write_lines(path: Path, rows: "Iterator[Row] | list[Row]") -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def read_rows(folder: Path) -> list[Row]:
    """Return the rows that :func:`write_rows` wrote, as they were made."""
    return [json.loads(line) for line in (folder / "messages.jsonl").read_text("utf-8").splitlines()]


# No line break after a turn: libraries differ in whether they train it, and counts must agree.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else -%}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def encode(tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool]]:
    """Return the token ids of *messages* and which of them are learnt, as a user of transformers gets them."""
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(encoded["input_ids"]), [bool(learnt) for learnt in encoded["assistant_masks"]]

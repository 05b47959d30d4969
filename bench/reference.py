"""The model that all peers train, and what any engine has to compute for a case; run as a program it writes both."""

import json
import sys
from pathlib import Path
from typing import Any

from workloads import CHARACTERS, COUPLET, REWRITE, SYSTEM, TEMPLATE, Case, encode, read_rows, write_rows

BATCH = 32
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 192, "heads": (4, 2, 16)},
    "30M": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536, "heads": (8, 4, 64)},
    "0.6B": {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "heads": (16, 8, 128)},
    "1.7B": {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "heads": (16, 8, 128)},
    "8B": {"hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "heads": (32, 8, 128)},
}


def body_parameters(shape: str) -> int:
    """Return the parameters of the linear layers between embedding and output head."""
    sizes = SHAPES[shape]
    hidden, (heads, groups, width) = sizes["hidden_size"], sizes["heads"]
    layer = hidden * width * 2 * (heads + groups) + 3 * hidden * sizes["intermediate_size"]
    return int(layer * sizes["num_hidden_layers"])


def useful_flops(case: Case, batches: list[list[tuple[list[int], list[bool]]]]) -> float:
    """Return the FLOP no engine can do without: each distinct prefix of a batch computed once, no padding, the output
    head only where a token is learnt. The adapters' own, below a tenth, are left out.
    """
    sizes = SHAPES[case.shape]
    heads, _, width = sizes["heads"]
    nodes, depths, predicting = 0, 0, 0
    for batch in batches:
        seen: set[tuple[int, int]] = set()
        heads_seen: set[int] = set()
        for tokens, learnt in batch:
            prefix = 0
            for index, token in enumerate(tokens):
                if learnt[index]:
                    heads_seen.add(prefix)
                step = (prefix, token)
                prefix = hash(step)
                if step not in seen:
                    seen.add(step)
                    depths += index + 1
        nodes += len(seen)
        predicting += len(heads_seen)
    linear = 2 * (body_parameters(case.shape) * nodes + sizes["hidden_size"] * case.vocabulary * predicting)
    attention = 4 * heads * width * sizes["num_hidden_layers"] * depths
    # backward: twice the forward; a frozen weight needs no gradient of its own, which saves one of the two
    return float((2 if case.method == "lora" else 3) * linear + 3 * attention)


def count(case: Case, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Return what is in the case's rows: tokens, learnt tokens, the longest, and the FLOP they need."""
    sequences = [
        encode(tokenizer, messages)
        for row in read_rows(folder)
        for messages in (
            [row["messages"]] if "messages" in row else [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]
        )
    ]
    opening = sequences[0][0][:2]
    assert all(tokens[:2] == opening for tokens, _ in sequences)
    assert all(_occurrences(tokens, opening) == 1 for tokens, _ in sequences)
    batches = [sequences[at : at + BATCH] for at in range(0, len(sequences), BATCH)]
    return {
        "samples": len(sequences),
        "tokens": sum(len(tokens) for tokens, _ in sequences),
        "trained_tokens": sum(sum(learnt) for _, learnt in sequences),
        "longest": max(len(tokens) for tokens, _ in sequences),
        "opening": opening,
        "padding": tokenizer.pad_token_id,
        "useful_flops": None if case.workload == "dpo" else useful_flops(case, batches),
    }


def _occurrences(tokens: list[int], opening: list[int]) -> int:
    return sum(tokens[at : at + 2] == opening for at in range(len(tokens) - 1))


def make_tokenizer() -> Any:
    """Return a tokenizer of one token a character, with the roles' names as one token each, as in real ones."""
    from tunesmith.models.new_tokenizer import make_tokenizer as make
    from tunesmith.models.schema import NewTokenizer

    ascii_characters = [chr(code) for code in range(32, 127)]
    texts = ["".join(CHARACTERS), "".join(ascii_characters) + "\n", COUPLET + REWRITE + SYSTEM]
    tokenizer = make(NewTokenizer(kind="characters", vocabulary_size=8000), texts)
    tokenizer.add_tokens(["system", "user", "assistant"])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_model(case: Case, tokenizer: Any, folder: Path) -> None:
    """Write a Qwen3 model with random weights in bfloat16, as released ones are, unless *folder* holds it already."""
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = dict(SHAPES[case.shape])
    heads, groups, width = sizes.pop("heads")
    config = Qwen3Config(
        **sizes,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=width,
        vocab_size=case.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=case.shape != "8B",
        # larger than usual, so that the loss depends on what each token may see and a wrong mask shows in step 1
        initializer_range=0.05 if case.shape in ("tiny", "30M") else 0.02,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Write rows and model of the case in the JSON file of the first argument; print what is in the rows."""
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    tokenizer = make_tokenizer()
    write_model(Case(**job["case"]), tokenizer, Path(job["model"]))
    counts = {}
    for mode, examples in (("measure", job["case"]["examples"]), ("check", BATCH)):
        case, folder = Case(**{**job["case"], "examples": examples}), Path(job["rows"]) / mode
        write_rows(case, folder)
        counts[mode] = count(case, tokenizer, folder)
    Path(job["result"]).write_text(json.dumps(counts), "utf-8")


if __name__ == "__main__":
    main()

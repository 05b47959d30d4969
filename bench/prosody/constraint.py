"""What the constraint ``verse`` promises: exact forms with real tokenizers, and what they cost.

``exact``: random logits under the mask, a thousand quatrains and couplets for each tokenizer of
``../shared/tokenizers`` that is named (and one of characters), a hundred of other forms; ``tunesmith.prosody.check`` is
the judge.  ``speed``: tokens a second of a small random model with and without the constraint, in turn.

    python bench/prosody/constraint.py exact --tokenizers qwen3,gpt2 --count 1000
    python bench/prosody/constraint.py speed
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.conversation import Conversation, Message
from tunesmith.generation.constraints.verse import Verse
from tunesmith.generation.vocabulary import Vocabulary
from tunesmith.prosody import Pattern, check

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENIZERS = Path(__file__).resolve().parents[3] / "shared" / "tokenizers"
REAL = ("qwen3", "llama2-spm", "gpt2", "gemma4", "mistral-tekken", "chatglm3")
PATTERN = "中仄平平仄，平平仄仄平韵。中平平仄换，中仄仄平仄韵。"
# clauses of one, two and several; characters that return
UPPER = (
    "春风吹绿柳",
    "海内存知己",
    "明月松间照",
    "水水山山处处",
    "落霞与孤鹜齐飞，秋水共长天一色",
    "不知明镜里，何处得秋霜，白发三千丈",
    "昨夜星辰昨夜风起",
)
LOGITS = 64


def load(name: str) -> Any:
    """Return the tokenizer of a folder, or one of characters."""
    from transformers import AutoTokenizer

    if name != "characters":
        return AutoTokenizer.from_pretrained(TOKENIZERS / name)
    from tunesmith.models.new_tokenizer import make_tokenizer
    from tunesmith.models.schema import NewTokenizer

    # the common characters of GB 2312, each once
    common = bytes(byte for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF) for byte in (high, low))
    return make_tokenizer(NewTokenizer(vocabulary_size=5000), [common.decode("gb2312", "ignore") + "，。；、\n" * 9])


class Sampler:
    """Random logits, drawn from a few rows so that a thousand poems take seconds."""

    def __init__(self, size: int, seed: int) -> None:
        self.weights = np.exp(np.random.default_rng(seed).standard_normal((LOGITS, size), dtype=np.float32) * 2)
        self.chance = random.Random(seed)

    def choose(self, allowed: np.ndarray) -> int:
        """Return one of the tokens that are allowed."""
        tokens = np.flatnonzero(allowed)
        reached = np.cumsum(self.weights[self.chance.randrange(LOGITS)][tokens], dtype=np.float64)
        place = np.searchsorted(reached, self.chance.random() * reached[-1])
        return int(tokens[min(int(place), len(tokens) - 1)])


def write(constraint: Verse, tokenizer: Any, sampler: Sampler, conversation: Conversation | None, seed: int) -> Any:
    """Return the text of one answer and its number of tokens."""
    walk, tokens = constraint.start(Vocabulary.of(tokenizer), conversation, seed), []
    longest = walk.longest
    while not walk.finished:
        tokens.append(sampler.choose(walk.allowed()))
        walk = walk.advance(tokens[-1])
    assert not walk.allowed().any()
    assert len(tokens) <= longest, (len(tokens), longest)
    return tokenizer.decode(tokens, skip_special_tokens=True).strip(), len(tokens)


def judge_couplet(upper: str, text: str) -> bool:
    return check(f"{upper}；{text}", "对联").strict


def cases(count: int) -> dict[str, tuple[int, Callable[[int], tuple[Verse, str]], Callable[[str, str], bool]]]:
    """Return what is written: how often, with which settings and upper line, and who judges."""
    quatrains = [
        Verse(form="五绝"),
        Verse(form="七绝"),
        Verse(form="七绝", rhyme="东"),
        Verse(form="五绝", rhyme="drawn"),
    ]
    upper = [Verse(form="对联", upper=line) for line in UPPER]
    both = [Verse(form="对联", lengths=[7]), Verse(form="对联", lengths=[4, 7]), Verse(form="对联")]
    few = max(1, count // 10)

    def couplet(n: int) -> tuple[Verse, str]:
        return (both[n % 2], "") if n % 2 else (both[2], UPPER[n // 2 % len(UPPER)])

    del upper
    return {
        "quatrains": (count, lambda n: (quatrains[n % 4], ""), lambda _, text: check(text).strict),
        "couplets": (count, couplet, lambda up, text: judge_couplet(up, text) if up else check(text, "对联").strict),
        "octaves": (few, lambda n: (Verse(form=("七律", "五律")[n % 2]), ""), lambda _, text: check(text).strict),
        "long": (few, lambda _: (Verse(form="七言排律", lines=16), ""), lambda _, t: check(t, "七言排律").strict),
        **{
            tune: (
                few,
                lambda _, tune=tune: (Verse(form=tune), ""),
                lambda _, text, tune=tune: check(text, tune).strict,
            )
            for tune in ("浣溪沙", "水调歌头", "菩萨蛮", "如梦令")
        },
        "pattern": (
            few,
            lambda _: (Verse(form=PATTERN, book="词林正韵"), ""),
            lambda _, text: check(text, Pattern.parse(PATTERN), book="词林正韵").strict,
        ),
        "new rhymes": (
            few,
            lambda _: (Verse(form="七绝", book="中华新韵"), ""),
            lambda _, text: check(text, "七绝", book="中华新韵").strict,
        ),
        "simplified": (
            few,
            lambda _: (Verse(form="七绝", script="simplified", line_ends=["，", "。\n"]), ""),
            lambda _, text: check(text, "七绝").strict,
        ),
    }


def exact(names: list[str], count: int, only: str) -> None:
    """Print how many answers of each kind the checker passes."""
    for name in names:
        began = time.perf_counter()
        tokenizer = load(name)
        vocabulary = Vocabulary.of(tokenizer)
        print(f"{name}: {vocabulary.size} tokens, read in {time.perf_counter() - began:.1f} s", flush=True)
        sampler = Sampler(vocabulary.size, seed=1)
        for kind, (number, make, judge) in cases(count).items():
            if only and only not in kind:
                continue
            passed, tokens, began, failed = 0, 0, time.perf_counter(), ""
            for index in range(number):
                constraint, upper = make(index)
                asked = Conversation((Message("user", f"对下联：{upper}"),)) if upper else None
                text, taken = write(constraint, tokenizer, sampler, asked, index)
                tokens += taken
                good = judge(upper, text)
                passed += good
                failed = failed or ("" if good else f"{upper} {text}")
            seconds = time.perf_counter() - began
            each = f"{seconds / tokens * 1e6:.0f} µs a token, {tokens / number:.0f} tokens each"
            print(f"  {kind}: {passed} of {number}, {seconds:.1f} s, {each} {failed}", flush=True)
            print(f"    {text!r}", flush=True)


SIZES = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 768, "head_dim": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}


def speed(names: list[str], rounds: int, forms: int) -> None:
    """Print how much longer a token takes under the constraint: the same prompts with and without, in turn."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tunesmith.generation.sample import answer_all
    from tunesmith.generation.settings import Generation

    for name in names:
        tokenizer = load(name)
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **SIZES, **HEADS)).eval()
        prompts = [[5 + n, 6, 7, 8, 9, 10, 11, 12] for n in range(64)]
        usual = Generation(max_new_tokens=256, temperature=0.9, batch_size=32)
        for form in ({"form": "七绝"}, {"form": "对联", "lengths": [7]})[:forms]:
            held = usual.model_copy(update={"constraint": Verse(**form)})
            options = {"stop_ids": [tokenizer.eos_token_id], "tokenizer": tokenizer}

            def run(settings: Generation, stop_ids: dict[str, Any], seed: int) -> tuple[float, float]:
                """Return seconds a token, and tokens an answer."""
                began = time.perf_counter()
                answers = answer_all(model, prompts, settings, seed=seed, **stop_ids)  # noqa: B023
                taken = sum(map(len, answers))
                return (time.perf_counter() - began) / taken, taken / len(answers)

            began = time.perf_counter()
            _, length = run(held, options, 0)
            warm_up = time.perf_counter() - began
            free = usual.model_copy(update={"max_new_tokens": round(length)})
            run(free, {"stop_ids": []}, 0)
            ratios, times = [], []
            for seed in range(1, rounds + 1):
                alone, _ = run(free, {"stop_ids": []}, seed)
                under, _ = run(held, options, seed)
                ratios.append(under / alone)
                times.append((alone, under))
            alone, under = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
            shown = " ".join(f"{value:.2f}" for value in (min(ratios), statistics.median(ratios), max(ratios)))
            print(
                f"{name} {form}: ratio min/median/max {shown}, {alone:.0f} and {under:.0f} µs a token, "
                f"first call {warm_up:.1f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["exact", "speed"])
    parser.add_argument("--tokenizers", default=",".join(["characters", *REAL]))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forms", type=int, default=2, help="of speed: 七绝, couplets")
    asked = parser.parse_args()
    if asked.what == "exact":
        exact(asked.tokenizers.split(","), asked.count, asked.only)
    else:
        speed(asked.tokenizers.split(","), asked.rounds, asked.forms)


if __name__ == "__main__":
    main()

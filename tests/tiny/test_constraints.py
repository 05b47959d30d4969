"""Verse that keeps its form while it is written: any tokenizer, any way of sampling; the checker is the judge."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.data.conversation import Conversation, Message
from tunesmith.generation.constrained import check_constraint, start_walk
from tunesmith.generation.constraints import CONSTRAINTS
from tunesmith.generation.constraints.verse import Verse
from tunesmith.generation.sample import answer_all, stream_answer
from tunesmith.generation.settings import Generation
from tunesmith.generation.vocabulary import Vocabulary
from tunesmith.models.new_tokenizer import END_OF_TEXT, SPECIAL, make_tokenizer
from tunesmith.models.schema import NewTokenizer
from tunesmith.prosody import Pattern, check
from tunesmith.prosody.couplet import check_pair
from tunesmith.prosody.readings import readings_for

REAL = Path(__file__).parents[3] / "shared" / "tokenizers"
# the common characters of GB 2312
COMMON = bytes(byte for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF) for byte in (high, low)).decode(
    "gb2312", "ignore"
)
POEMS = (
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "朝辞白帝彩云间，千里江陵一日还。两岸猿声啼不住，轻舟已过万重山。",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "明月松间照，清泉石上流。竹喧归浣女，莲动下渔舟。",
)
MARKS = "，。、；：\n"
WORDS = ("明月", "春风", "千里", "白日", "江山", "人间", "处处", "流。", "清风，", "。\n", "风，月")
PATTERN = "中仄平平仄，平平仄仄平韵。中平平仄换，中仄仄平仄韵。"
FEW = 5


def byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def wrapped(inner: Tokenizer, *special: str) -> PreTrainedTokenizerFast:
    inner.add_special_tokens([AddedToken(token, special=True) for token in special or SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=special[0] if special else END_OF_TEXT)


def sentencepiece(characters: str, words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are ▁, one before the text; what is no token is bytes."""
    pieces = ["▁", *dict.fromkeys(characters + MARKS)]
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    tokens = dict.fromkeys([*byte_tokens(), *pieces, *("".join(pair) for pair in merges)])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [pair for pair in dict.fromkeys(merges) if pair[0] in vocabulary and pair[1] in vocabulary]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(inner, "</s>")


@cache
def tokenizer_of(kind: str) -> Any:
    """Characters; merged characters; bytes of which some are merged; a few characters and bytes; nothing but bytes."""
    if kind == "characters":
        return make_tokenizer(NewTokenizer(vocabulary_size=4200), [COMMON + MARKS * 9])
    if kind == "byte-level":
        corpus = [COMMON[start : start + 40] for start in range(0, 2000, 40)] + list(POEMS) * 9
        return make_tokenizer(NewTokenizer(kind="bpe", vocabulary_size=900), corpus)
    if kind == "sentencepiece":
        return sentencepiece(COMMON[:900] + "".join(WORDS), WORDS)
    assert kind == "bytes"
    return sentencepiece("", ())


KINDS = ("characters", "byte-level", "sentencepiece", "bytes")
each_kind = pytest.mark.parametrize("kind", KINDS)


def write(constraint: Verse, tokenizer: Any, seed: int, conversation: Conversation | None = None) -> str:
    """Return an answer whose every token is any of those allowed; rare ones come as often as others."""
    chance = random.Random(seed)
    walk = constraint.start(Vocabulary.of(tokenizer), conversation, seed)
    tokens: list[int] = []
    longest = walk.longest
    while not walk.finished:
        tokens.append(chance.choice(np.flatnonzero(walk.allowed()).tolist()))
        walk = walk.advance(tokens[-1])
    assert len(tokens) <= longest
    return tokenizer.decode(tokens).strip()


def couplet(upper: str) -> Conversation:
    return Conversation((Message("user", f"请对出下联。\n上联：{upper}"),))


# --- what tokens write


@each_kind
def test_tokens_join_to_what_the_tokenizer_decodes(kind):
    tokenizer = tokenizer_of(kind)
    vocabulary = Vocabulary.of(tokenizer)

    for text in (*POEMS, "白日 依山", "𠀀 is rare"):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert vocabulary.spell(tokens).decode().strip() == text
    assert vocabulary.special >= set(tokenizer.all_special_ids)
    assert Vocabulary.of(tokenizer) is vocabulary


def test_a_tokenizer_whose_tokens_do_not_join_is_refused():
    """WordPiece writes a space before every word that has no ## before it."""
    pieces = ["[UNK]", "床", "##前", "前", "a", "##b"]
    inner = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()

    with pytest.raises(UserError, match="cannot be held to a form with this tokenizer"):
        Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=inner))


@each_kind
def test_the_trie_finds_what_an_automaton_takes(kind):
    """Of all tokens those whose every byte is even, and no two of them alike."""
    vocabulary = Vocabulary.of(tokenizer_of(kind))
    mask = np.zeros(vocabulary.size, dtype=bool)
    vocabulary.trie.accept(-1, lambda last, byte: None if byte % 2 or byte == last else byte, mask)

    def fits(spelling: bytes) -> bool:
        return all(byte % 2 == 0 for byte in spelling) and all(a != b for a, b in pairwise(spelling))

    wanted = [bool(spelling) and fits(spelling) for spelling in vocabulary.spellings]
    assert mask.tolist() == wanted
    assert any(wanted)


# --- every answer keeps its form

FORMS = {
    "五绝": {"form": "五绝"},
    "七绝": {"form": "七绝", "rhyme": "drawn"},
    "七律": {"form": "七律"},
    "五律": {"form": "五律", "line_ends": ["\n"]},
    "五言排律": {"form": "五言排律", "lines": 12},
    "浣溪沙": {"form": "浣溪沙"},
    "菩萨蛮": {"form": "菩萨蛮", "line_ends": ["，", "。\n"]},
    "对联": {"form": "对联", "lengths": [4, 7]},
}


@each_kind
@pytest.mark.parametrize("form", FORMS)
def test_every_answer_keeps_its_form(kind, form):
    constraint = Verse(**FORMS[form])

    texts = [write(constraint, tokenizer_of(kind), seed) for seed in range(FEW)]

    assert [text for text in texts if not check(text, form).strict] == []
    assert len(set(texts)) == FEW


@each_kind
def test_a_pattern_of_ones_own_keeps_its_tones_and_rhymes(kind):
    constraint = Verse(form=PATTERN, book="词林正韵")

    reports = [
        check(write(constraint, tokenizer_of(kind), seed), Pattern.parse(PATTERN), book="词林正韵")
        for seed in range(FEW)
    ]

    assert all(report.strict for report in reports)
    assert all(len(set(report.rhyme_group.split("、"))) == 2 for report in reports), "a new rhyme is another one"


def test_a_book_of_modern_rhymes_is_kept():
    texts = [write(Verse(form="七绝", book="中华新韵"), tokenizer_of("characters"), seed) for seed in range(FEW)]

    assert all(check(text, "七绝", book="中华新韵").strict for text in texts)


@each_kind
@pytest.mark.parametrize(
    "upper", ["春风吹绿柳", "水水山山处处", "落霞与孤鹜齐飞，秋水共长天一色", "昨夜星辰昨夜风起", "不，春", "仄"]
)
def test_the_lower_line_answers_the_upper_one(kind, upper):
    """Its lengths, marks and repetitions are kept, no character stands against itself, tones face each other."""
    for seed in range(FEW):
        text = write(Verse(form="对联"), tokenizer_of(kind), seed, couplet(upper))
        above, below = upper.split("，"), text.rstrip("。").split("，")
        report = check_pair(above, below, readings_for(upper + text))

        assert [f for f in report.findings if f.line == 2 and f.severity != "note"] == []
        assert [*map(len, below)] == [*map(len, above)]


def test_a_given_upper_line_needs_no_prompt():
    constraint = Verse(form="对联", upper="明月松间照；", line_ends=["；", "！"])

    text = write(constraint, tokenizer_of("characters"), 1)

    assert check(f"明月松间照；{text}", "对联").strict
    assert text.endswith("！")


def test_characters_of_one_script_only():
    """Traditional characters are not in simplified verse; the checker reads it as what it is."""
    characters = "".join(dict.fromkeys("風雲東車馬門龍鳥魚發見長時" + COMMON))
    tokenizer = make_tokenizer(NewTokenizer(vocabulary_size=4300), [characters + MARKS * 9])

    texts = "".join(write(Verse(form="七律", script="simplified"), tokenizer, seed) for seed in range(FEW))

    assert not set(texts) & set("風雲東車馬門龍鳥魚發見")


# --- what the user chooses


@pytest.mark.parametrize(("rhyme", "group"), [("东", "一東"), ("七陽", "七陽"), ("楼", "十一尤")])
def test_the_rhyme_that_was_asked_for(rhyme, group):
    texts = [write(Verse(form="七绝", rhyme=rhyme), tokenizer_of("characters"), seed) for seed in range(FEW)]

    assert {check(text).rhyme_group for text in texts} == {group}


def test_a_drawn_rhyme_follows_from_the_seed():
    def group(seed: int, chance: int) -> str:
        walk = Verse(form="五绝", rhyme="drawn").start(Vocabulary.of(tokenizer_of("characters")), None, seed)
        choose = random.Random(chance)
        tokens = []
        while not walk.finished:
            tokens.append(choose.choice(np.flatnonzero(walk.allowed()).tolist()))
            walk = walk.advance(tokens[-1])
        return check(tokenizer_of("characters").decode(tokens)).rhyme_group

    assert group(1, 1) == group(1, 2) == group(1, 3)
    assert len({group(seed, 1) for seed in range(FEW)}) > 3


@pytest.mark.parametrize("tone", ["平", "仄"])
@pytest.mark.parametrize("rhymes", [True, False])
def test_the_tone_pattern_that_was_asked_for(tone, rhymes):
    constraint = Verse(form="七绝", second_tone=tone, first_line_rhymes=rhymes)

    for seed in range(FEW):
        report = check(write(constraint, tokenizer_of("characters"), seed))
        assert report.lines[0].tones[1] == tone
        assert report.lines[0].rhyme == rhymes


# --- walks


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize(
    "settings", [{"form": "五绝", "rhyme": "东"}, {"form": PATTERN, "book": "词林正韵"}], ids=["quatrain", "pattern"]
)
def test_the_mask_is_what_may_be_written(kind, settings):
    """A token is allowed if and only if the walk can go on with it; what was done before does not change it."""
    constraint = Verse(**settings)
    vocabulary, chance = Vocabulary.of(tokenizer_of(kind)), random.Random(5)
    walk = constraint.start(vocabulary)
    while not walk.finished:
        allowed = walk.allowed().copy()
        can = np.array([advances(walk, token) for token in range(vocabulary.size)])
        assert np.flatnonzero(can != allowed).tolist() == []
        assert (walk.allowed() == allowed).all()
        walk = walk.advance(chance.choice(np.flatnonzero(allowed).tolist()))


def advances(walk: Any, token: int) -> bool:
    try:
        walk.advance(token)
    except ValueError:
        return False
    return True


def test_threads_share_one_constraint():
    """What they write is what one thread writes."""
    tokenizer = sentencepiece(COMMON[:500], WORDS)
    task = partial(write, Verse(form="七绝"), tokenizer)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(task, range(FEW)))

    assert together == [task(seed) for seed in range(FEW)]


# --- real tokenizers


@pytest.mark.parametrize("name", ["gpt2", "llama2-spm"])
def test_real_tokenizers(name):
    if not (REAL / name).exists():
        pytest.skip(f"{REAL / name} is not here")
    tokenizer = AutoTokenizer.from_pretrained(REAL / name)

    assert all(check(write(Verse(form="七绝"), tokenizer, seed)).strict for seed in range(3))
    for seed in range(3):
        assert check(f"海内存知己；{write(Verse(form='对联'), tokenizer, seed, couplet('海内存知己'))}", "对联").strict


# --- wrong settings are refused when they are read


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rhyme": "东"}, "needs a form"),
        ({"second_tone": "平"}, "not to form: auto"),
        ({"form": "七绝体"}, "did you mean '七绝'"),
        ({"form": "沁园冬"}, "perhaps 沁园春"),
        ({"form": "七绝", "rhyme": "送"}, "no words of tone 平"),
        ({"form": "七绝", "rhyme": "七阳阳"}, "七陽"),
        ({"form": "七绝", "rhyme": "东 阳"}, "names 2, and the form has 1"),
        ({"form": "七绝", "book": "广韵"}, "there are 平水韵"),
        ({"form": "菩萨蛮", "second_tone": "平"}, "belongs to regulated poems"),
        ({"form": "对联", "rhyme": "东"}, "rhyme: belongs to"),
        ({"form": "七绝", "lines": 12}, "for 五言排律"),
        ({"form": "五言排律", "lines": 13}, "even number"),
        ({"form": "浣溪沙", "variant": 99}, "has 2 forms"),
        ({"form": "对联", "upper": "春", "lengths": [5]}, "leave lengths out"),
        ({"form": "七绝", "line_ends": ["兮"]}, "marks and line breaks"),
        ({"form": "对联", "line_ends": ["。"]}, "has two"),
        ({"form": "对联", "lengths": [7, 0]}, "each from 1 to 30"),
        ({"form": "平仄x"}, "'平仄x' is not known"),
        ({"form": "韵平仄"}, "must follow the tone that rhymes"),
        ({"form": "平仄韵，平平韵"}, "both level and oblique"),
    ],
)
def test_wrong_settings_are_refused_with_what_would_be_right(settings, said):
    with pytest.raises(ValidationError, match=said):
        CONSTRAINTS.parse({"type": "verse", **settings})


def test_settings_read_back_as_they_were_written():
    """A run's folder keeps them, and chat changes one of them."""
    held = Generation(constraint={"type": "verse", "form": "对联", "lengths": [4, 7]})

    assert Generation.model_validate_json(held.model_dump_json()) == held
    assert Generation.model_validate(held.model_dump(exclude_unset=True)) == held


def test_a_recipe_says_where_its_constraint_is_wrong(make_recipe):
    with pytest.raises(RecipeError) as caught:
        make_recipe(evaluation={"generation": {"constraint": {"type": "verse", "form": "七绝", "rhyme": "xx"}}})

    (problem,) = caught.value.problems
    assert problem.path.startswith("evaluation.generation.constraint")
    assert "'xx' is not known" in problem.message


# --- what a tokenizer cannot write is refused before anything is written


def characters_only(characters: str) -> PreTrainedTokenizerFast:
    """No bytes: other characters cannot be written at all."""
    tokens = ["[UNK]", *dict.fromkeys(characters + MARKS)]
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [], unk_token="[UNK]"))
    inner.decoder = decoders.Fuse()
    return wrapped(inner, "[END]")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "七律", "rhyme": "东"}, "5 words of one rhyme.*write 2 that surely rhyme in 平水韵 一東"),
        ({"form": "对联", "lengths": [7]}, "9 Chinese characters, and the form needs 14"),
        ({"form": "五绝", "line_ends": ["！"]}, "cannot write '！'"),
    ],
)
def test_too_few_characters_are_refused(settings, said):
    tokenizer = characters_only("东风红白日山水月夜")
    held = Generation(constraint={"type": "verse", **settings}, max_new_tokens=500)

    (problem,) = check_constraint(held, tokenizer, "evaluation.generation.constraint")

    assert problem.path == "evaluation.generation.constraint"
    with pytest.raises(UserError, match=said):
        start_walk(held, tokenizer, None, seed=0, most=500)


def test_just_enough_characters_never_end_in_a_dead_end():
    """Three rhyme words for three places: each is used once."""
    tokenizer = characters_only("东红空同白月")

    for seed in range(FEW):
        text = write(Verse(form="七绝", first_line_rhymes=True, rhyme="东"), tokenizer, seed)
        assert check(text).strict


def test_no_room_for_the_end_is_refused():
    held = Generation(constraint={"type": "verse", "form": "七律"}, max_new_tokens=100)

    (problem,) = check_constraint(held, tokenizer_of("bytes"), "here")

    assert "this form may take 177" in problem.message
    assert "max_new_tokens: 177" in problem.hint
    with pytest.raises(UserError, match="set max_new_tokens: 177"):
        start_walk(held, tokenizer_of("bytes"), None, seed=0, most=100)


UPPER = "春风吹绿柳"


@pytest.mark.parametrize("prompt", [UPPER, f"对下联：{UPPER}", f"请对：\n「{UPPER}」", f"为“{UPPER}”对出下联。"])
@pytest.mark.parametrize("answered", [True, False])
def test_the_upper_line_is_found_in_the_prompt(prompt, answered):
    """In data, where the answer follows, and in a dialogue, where others came before."""
    before, after = [Message("user", "对下联：月"), Message("assistant", "星")], [Message("assistant", "流水度青山")]
    question = Message("user", prompt)
    conversation = Conversation((question, *after) if answered else (*before, question))

    text = write(Verse(form="对联"), tokenizer_of("characters"), 1, conversation)

    assert len(text) == 5, "no mark stands after the upper line, and none after this one"
    assert check(f"春风吹绿柳；{text}", "对联").strict


@pytest.mark.parametrize(
    ("prompt", "form"), [("写一首五绝，咏月。", "五绝"), ("用《浣溪沙》填词", "浣溪沙"), (f"对下联：{UPPER}", "对联")]
)
def test_the_form_that_the_prompt_names(prompt, form):
    conversation = Conversation((Message("user", prompt),))

    text = write(Verse(), tokenizer_of("characters"), 1, conversation)

    assert check(f"{UPPER}；{text}" if form == "对联" else text, form).strict


@pytest.mark.parametrize(
    ("prompt", "settings", "said"),
    [
        ("写点什么", {}, "names no form such as 七绝"),
        ("用《西江月》填词", {"book": "平水韵"}, "both level and oblique"),
        ("对下联：月", {"line_ends": ["。"]}, "a couplet has two"),
    ],
)
def test_a_prompt_whose_form_cannot_be_is_refused(prompt, settings, said):
    with pytest.raises(UserError, match=said):
        Verse(**settings).start(Vocabulary.of(tokenizer_of("bytes")), Conversation((Message("user", prompt),)))


@pytest.mark.parametrize("prompt", ["", "write something", "上联："])
def test_a_prompt_without_an_upper_line_is_refused(prompt):
    with pytest.raises(UserError, match="written to an upper one"):
        Verse(form="对联").start(Vocabulary.of(tokenizer_of("bytes")), Conversation((Message("user", prompt),)))


# --- a model that writes


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    # more logits than tokens, as many models have
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer_of("sentencepiece")) + 24, **sizes, **heads)).eval()


SAMPLING = {
    "greedy": {},
    "temperature": {"temperature": 1.3},
    "cut": {"temperature": 1.0, "top_p": 0.5, "top_k": 20, "min_p": 0.01},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 1.0},
    "beams": {"num_beams": 3},
}


@pytest.mark.parametrize("way", SAMPLING)
@pytest.mark.parametrize("stops", [True, False])
def test_models_keep_the_form_however_they_are_sampled(model, way, stops):
    tokenizer = tokenizer_of("sentencepiece")
    held = Generation(constraint={"type": "verse", "form": "五绝"}, max_new_tokens=100, **SAMPLING[way])
    prompts = [[5, 6, 7 + n] for n in range(4)]

    answers = answer_all(model, prompts, held, stop_ids=[tokenizer.eos_token_id] if stops else [], tokenizer=tokenizer)

    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    assert all(check(text, "五绝").strict for text in texts), texts


def test_each_row_has_its_own_upper_line(model):
    tokenizer = tokenizer_of("sentencepiece")
    upper = ["春风吹绿柳", "水水山山处处", "落霞与孤鹜齐飞，秋水共长天一色"]
    held = Generation(constraint={"type": "verse", "form": "对联"}, temperature=1.0)
    options = {"stop_ids": [tokenizer.eos_token_id], "tokenizer": tokenizer}

    answers = answer_all(model, [[5, 6]] * 3, held, conversations=[couplet(line) for line in upper], **options)

    for line, text in zip(upper, tokenizer.batch_decode(answers), strict=True):
        assert check(f"{line}；{text}", "对联").strict


def test_a_stream_keeps_the_form(model):
    tokenizer = tokenizer_of("sentencepiece")
    held = Generation(constraint={"type": "verse", "form": "七绝"}, temperature=1.0, max_new_tokens=200)

    pieces = list(stream_answer(model, tokenizer, [5, 6, 7], held, stop_ids=[tokenizer.eos_token_id]))

    assert check("".join(pieces), "七绝").strict


def test_a_stop_string_ends_an_answer_early(model):
    tokenizer = tokenizer_of("sentencepiece")
    held = Generation(constraint={"type": "verse", "form": "七绝"}, temperature=1.0, max_new_tokens=200, stop="。")

    pieces = stream_answer(model, tokenizer, [5, 6, 7], held, stop_ids=[tokenizer.eos_token_id])

    assert len(check("".join(pieces)).lines) == 2


def test_plan_refuses_what_the_tokenizer_cannot_write(make_recipe, data):
    """The model's tokenizer knows no Chinese: it would write bytes, and there is no room for so many."""
    from tunesmith.run.settle import settle

    recipe = make_recipe(evaluation={"generation": {"constraint": {"type": "verse", "form": "七律"}}})

    with pytest.raises(RecipeError) as caught:
        settle(recipe)

    assert [problem.path for problem in caught.value.problems] == ["evaluation.generation.constraint"]
    assert json.dumps(recipe.model_dump(mode="json")["evaluation"]["generation"]["constraint"], ensure_ascii=False)

"""Scores: values in [0, 1], equal to the libraries they stand on, and plain about why."""

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from tunesmith.core.errors import UnknownNameError
from tunesmith.data.conversation import Conversation, Message
from tunesmith.scoring import SCORERS, Score

COUPLETS = [
    ("大陆对长空", "大陆接长空"),
    ("两岸晓烟杨柳绿，一园春雨杏花红。", "两岸晚烟杨柳碧，一园春雨杏花红。"),
    ("人间清暑殿", "天上广寒宫"),
    ("百年作梦行休去\n九月无衣亦晏如", "九月无衣亦晏如"),
]
ENGLISH = [
    ("The quick brown fox jumps over the lazy dog.", "The quick brown dog jumps on the log."),
    ("Dr. Smith's 3.5 apples, please!", "Smith has 3.5 apples; please."),
    ("yes", "yes"),
    ("What we call the beginning is often the end.", "what we call the end"),
]
EMPTY = [("", ""), ("", "an answer"), ("a reference", ""), (" ", "\n")]
ODD = [("。，！", "。"), ("🙂 天", "天🙂"), ("e\u0301", "é")]
PAIRS = COUPLETS + ENGLISH + EMPTY + ODD


def row(reference: str) -> Conversation:
    return Conversation((Message("user", "?"), Message("assistant", reference)))


def score(name: str, reference: str, answer: str, **settings):
    return SCORERS.get(name)(**settings).score(row(reference), answer)


def summary(name: str, pairs, **settings) -> float:
    return SCORERS.get(name)(**settings).summary([row(r) for r, _ in pairs], [a for _, a in pairs])


@pytest.mark.parametrize("name", ["exact_match", "length_match", "bleu", "chrf", "rouge"])
def test_a_row_without_a_reference_scores_nothing(name):
    assert score(name, "", "春眠不觉晓") == Score(0.0, "there is no reference to compare with")


@pytest.mark.parametrize("name", ["exact_match", "length_match", "bleu", "chrf", "rouge"])
@pytest.mark.parametrize("text", ["两岸晓烟杨柳绿，一园春雨杏花红。", "The quick brown fox jumps over the lazy dog."])
def test_the_reference_itself_scores_one_and_an_empty_answer_nothing(name, text):
    values = (score(name, text, text).value, score(name, text, "").value)

    assert values == (pytest.approx(1.0), 0.0)


@pytest.mark.parametrize("name", ["exact_match", "length_match", "bleu", "chrf", "rouge"])
def test_the_summary_of_nothing_is_zero(name):
    assert summary(name, []) == 0.0


@pytest.mark.parametrize("name", ["exact_match", "length_match", "bleu", "chrf", "rouge"])
def test_answers_and_rows_must_be_as_many(name):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        SCORERS.get(name)().summary([row("天")], ["天", "地"])


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("天上广寒宫", " 天上广寒宫\n", (1.0, "equals the reference")),
        ("café", "cafe\u0301", (1.0, "equals the reference")),
        ("天上广寒宫", "天上水晶宫", (0.0, "character 3 is '水', the reference has '广'")),
        ("天上广寒宫。", "天上广寒宫", (0.0, "ends before the reference's '。'")),
        ("天上广寒宫", "天上广寒宫！", (0.0, "goes on after the reference with '！'")),
        ("天上广寒宫", " ", (0.0, "the answer is empty")),
    ],
)
def test_exact_match_compares_composed_stripped_text(reference, answer, expected):
    assert score("exact_match", reference, answer)[:2] == expected


def test_exact_match_can_ignore_punctuation_and_line_breaks():
    answer = "两岸晓烟杨柳绿\n一园春雨杏花红～"

    assert score("exact_match", "两岸晓烟杨柳绿，一园春雨杏花红。", answer, ignore_punctuation=True).value == 1.0
    assert score("exact_match", "两岸晓烟杨柳绿，一园春雨杏花红。", answer).value == 0.0


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("人间清暑殿", "天上，广寒宫！", (1.0, "5 characters, as the reference")),
        ("人间清暑殿", "广寒宫", (0.0, "3 characters, the reference has 5")),
        ("云", "", (0.0, "0 characters, the reference has 1")),
        ("一□二", "𠮷𠮷𠮷", (1.0, "3 characters, as the reference")),
        ("e\u0301te\u0301", "été", (1.0, "3 characters, as the reference")),
        ("天地", "天~地～", (1.0, "2 characters, as the reference")),
        ("……", "天", (0.0, "there is no reference to compare with")),
    ],
)
def test_length_match_counts_what_a_reader_counts(reference, answer, expected):
    assert score("length_match", reference, answer)[:2] == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("枯藤老树\n\n小桥流水人家", (1.0, "2 lines of the reference's lengths")),
        ("枯藤老树昏鸦\n小桥流水", (0.0, "line 1 has 6 characters, the reference has 4")),
        ("枯藤老树小桥流水人家", (0.0, "1 line, the reference has 2")),
    ],
)
def test_length_match_by_lines_names_the_first_line_that_differs(answer, expected):
    assert score("length_match", "古道西风\n断肠人在天涯", answer, lines=True)[:2] == expected


@pytest.mark.parametrize(("pairs", "tokenizer"), [(COUPLETS, "zh"), (ENGLISH, "13a")])
def test_bleu_is_sacrebleu_with_the_tokenizer_the_text_needs(pairs, tokenizer):
    sentences = [sacrebleu.sentence_bleu(a, [r], tokenize=tokenizer).score / 100 for r, a in pairs]
    corpus = sacrebleu.corpus_bleu([a for _, a in pairs], [[r for r, _ in pairs]], tokenize=tokenizer).score / 100

    assert [score("bleu", r, a).value for r, a in pairs] == pytest.approx(sentences)
    assert summary("bleu", pairs) == pytest.approx(corpus)
    assert corpus > 0


def test_bleu_takes_the_tokenizer_it_is_told():
    reference, answer = COUPLETS[1]
    by_word = sacrebleu.sentence_bleu(answer, [reference], tokenize="13a").score / 100

    assert score("bleu", reference, answer, tokenizer="13a").value == pytest.approx(by_word)
    assert score("bleu", reference, answer).value != pytest.approx(by_word)


def test_bleu_of_equal_texts_is_not_above_one():
    assert score("bleu", "a b c d e f", "a b c d e f").value == 1.0


@pytest.mark.parametrize("pairs", [COUPLETS, ENGLISH])
@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_sacrebleu(pairs, word_order):
    sentences = [sacrebleu.sentence_chrf(a, [r], word_order=word_order).score / 100 for r, a in pairs]
    answers, references = [a for _, a in pairs], [r for r, _ in pairs]
    corpus = sacrebleu.corpus_chrf(answers, [references], word_order=word_order).score / 100

    assert [score("chrf", r, a, word_order=word_order).value for r, a in pairs] == pytest.approx(sentences)
    assert summary("chrf", pairs, word_order=word_order) == pytest.approx(corpus)


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL"])
def test_rouge_of_english_is_rouge_score(variant):
    reference = [RougeScorer([variant]).score(r, a)[variant].fmeasure for r, a in ENGLISH]

    assert [score("rouge", r, a, variant=variant).value for r, a in ENGLISH] == pytest.approx(reference)
    assert summary("rouge", ENGLISH, variant=variant) == pytest.approx(sum(reference) / len(reference))


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL"])
def test_rouge_of_chinese_is_rouge_score_given_one_word_per_character(variant):
    names = {c: f"w{ord(c)}" for r, a in COUPLETS for c in r + a if c not in "，。\n"}
    spelled = [[" ".join(names[c] for c in text if c in names) for text in pair] for pair in COUPLETS]
    reference = [RougeScorer([variant]).score(r, a)[variant].fmeasure for r, a in spelled]

    assert [score("rouge", r, a, variant=variant).value for r, a in COUPLETS] == pytest.approx(reference)
    assert any(reference)


def test_rouge_keeps_words_of_other_alphabets_whole():
    assert score("rouge", "дом у реки", "дом у моря", variant="rouge1").value == pytest.approx(2 / 3)


def test_an_unknown_score_names_its_neighbour():
    with pytest.raises(UnknownNameError, match="did you mean 'rouge'"):
        SCORERS.get("rogue")

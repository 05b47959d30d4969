"""Scores of many answers, of copies, of shapes: what they count, against plain counting and the libraries."""

import random
from types import SimpleNamespace

import pytest
import sacrebleu

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Conversation, Message
from tunesmith.scoring import SCORERS
from tunesmith.scoring._corpus import Corpus

ASKED = Conversation((Message("user", "?"),))


def score(name: str, answer: str, **settings):
    return SCORERS.get(name)(**settings).score(ASKED, answer)


def summary(name: str, answers: list[str], **settings) -> float:
    return SCORERS.get(name)(**settings).summary([ASKED] * len(answers), answers)


def problems_of(scorer) -> list:
    """Return what a recipe that evaluates with *scorer*, as its second score, would be told."""
    scores = [SCORERS.parse("chrf"), scorer]
    return list(scorer.check(SimpleNamespace(evaluation=SimpleNamespace(scores=scores))))


def marked(answer: str, found) -> list[str]:
    return [answer[span.start : span.end] for span in found.spans]


def test_repetition_counts_runs_and_marks_them_as_one():
    answer = "春风春风，春风！"
    found = score("repetition", answer)

    assert found.value == pytest.approx(2 / 5)
    assert marked(answer, found) == ["春风，春风"]


def test_repetition_counts_words_outside_chinese():
    assert score("repetition", "the cat and The cat", n=2).value == pytest.approx(3 / 4)
    assert score("repetition", "the cat", n=4).value == 1.0


def test_distinct_n_counts_all_answers_together():
    answers = ["春风吹柳", "春风吹柳", "夜雨", "花"]

    assert summary("distinct_n", answers) == pytest.approx(4 / 7)
    assert summary("distinct_n", answers, n=1) == pytest.approx(7 / 11)
    assert summary("distinct_n", ["花", ""]) == 0.0


def test_self_bleu_is_sacrebleu_against_the_others():
    answers = ["the cat sat on the mat today", "the cat sat on a mat today", "nobody knows what may come of it"]
    by_library = [
        sacrebleu.sentence_bleu(a, answers[:i] + answers[i + 1 :], tokenize="none").score / 100
        for i, a in enumerate(answers)
    ]

    assert summary("self_bleu", answers) == pytest.approx(1 - sum(by_library) / 3)
    assert summary("self_bleu", ["春眠不觉晓"] * 5) == pytest.approx(0.0)
    assert summary("self_bleu", ["春眠不觉晓"]) == 0.0


def longest_shared(units: str, texts: list[str], start: int) -> int:
    return max(
        (n for n in range(1, len(units) - start + 1) if any(units[start : start + n] in t for t in texts)), default=0
    )


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_those_that_plain_search_finds(seed):
    chance = random.Random(seed)
    texts = ["".join(chance.choices("天地玄黄", k=chance.randrange(1, 30))) for _ in range(8)]
    asked = "".join(chance.choices("天地玄黄宇", k=25))
    size = chance.randrange(1, 6)
    ends = [start + longest_shared(asked, texts, start) for start in range(len(asked))]
    expected: list[tuple[int, int]] = []
    for start, end in enumerate(ends):
        if end - start >= size and (not expected or end > expected[-1][1]):
            expected.append((start, end))

    assert Corpus(texts, size).find_runs(list(asked)) == expected


def test_an_empty_corpus_shares_nothing():
    assert Corpus([], 3).find_runs(list("天地玄黄")) == []
    assert Corpus(["天"], 3).find_runs(list("天")) == []


def test_novelty_marks_what_was_copied_and_lets_short_runs_pass():
    novelty = SCORERS.parse("novelty")
    turns = (Message("user", "请写诗：床前明月光"), Message("assistant", "白日依山尽，黄河入海流。"))
    novelty.prepare([Conversation(turns), Conversation(text="举头望明月")])
    answer = "白日依山看，黄河、入海流！"
    found = novelty.score(ASKED, answer)

    assert found.value == pytest.approx(0.5)
    assert marked(answer, found) == ["黄河、入海流"]
    assert novelty.score(ASKED, "床前明月光").value == 1.0
    assert novelty.score(ASKED, "举头望明月").value == 0.0


def test_novelty_reads_a_corpus_of_its_own(tmp_path):
    (tmp_path / "poems.txt").write_text("白日依山尽\n黄河入海流\n", encoding="utf-8")
    novelty = SCORERS.parse({"type": "novelty", "corpus": str(tmp_path / "poems.txt")})

    assert novelty.score(ASKED, "黄河入海流").value == 0.0
    assert problems_of(novelty) == []
    (problem,) = problems_of(SCORERS.parse({"type": "novelty", "corpus": str(tmp_path / "gone.txt")}))
    assert problem.path.startswith("evaluation.scores.1.corpus.0")


@pytest.mark.parametrize(
    ("where", "answer", "value"),
    [
        ("whole", " 2026年 \n", 1.0),
        ("whole", "今年是2026年", 0.0),
        ("anywhere", "今年是2026年", 1.0),
        ("anywhere", "今年", 0.0),
        ("nowhere", "今年", 1.0),
        ("nowhere", "今年是2026年", 0.0),
    ],
)
def test_a_regular_expression_matches_all_or_a_part_or_nothing(where, answer, value):
    assert score("regular_expression", answer, pattern=r"\d{4}年", where=where).value == value


def test_a_broken_regular_expression_is_refused():
    with pytest.raises(ValueError, match="is no regular expression"):
        SCORERS.parse({"type": "regular_expression", "pattern": "("})


SCHEMA = {
    "type": "object",
    "required": ["year", "title"],
    "properties": {"year": {"type": "integer"}, "title": {"type": "string"}},
}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"year": 2026, "title": "春"}', 1.0),
        ('Here it is:\n```json\n{"year": 2026, "title": "春"}\n```\nBye', 1.0),
        ('{"year": "2026", "title": "春"}', 0.5),
        ('{"year": "2026"}', 0.25),
        ('{"year": 2026, "title": "春"', 0.0),
        ("春", 0.0),
        ("", 0.0),
    ],
)
def test_json_is_held_against_its_schema(answer, value):
    assert score("json_schema", answer, wanted=SCHEMA).value == value


def test_a_schema_may_stand_in_a_file_and_a_wrong_one_is_told(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('{"type": "array"}', encoding="utf-8")
    bad.write_text("[1]", encoding="utf-8")
    made = SCORERS.parse({"type": "json_schema", "wanted": str(good)})

    assert made.score(ASKED, "[]").value == 1.0
    assert SCORERS.parse(made.model_dump()) == made
    with pytest.raises(ValueError, match="a schema is an object"):
        SCORERS.parse({"type": "json_schema", "wanted": str(bad)})
    with pytest.raises(ValueError, match="cannot read"):
        SCORERS.parse({"type": "json_schema", "wanted": str(tmp_path / "gone.json")})
    (problem,) = problems_of(SCORERS.parse({"type": "json_schema", "wanted": {"type": "integr"}}))
    assert problem.path == "evaluation.scores.1.wanted"
    assert "integr" in problem.message


@pytest.mark.parametrize(
    ("settings", "answer", "value"),
    [
        ({"target": 5}, "春眠，不觉晓。", 1.0),
        ({"target": 10}, "春眠不觉晓", 0.5),
        ({"target": 4, "tolerance": 1}, "春眠不觉晓", 1.0),
        ({"target": 2}, "春眠不觉晓。", 0.4),
        ({"target": 3, "unit": "words"}, "one two three", 1.0),
        ({"target": 2, "unit": "lines"}, "one\n\ntwo\n", 1.0),
        ({"target": 5}, "，", 0.0),
    ],
)
def test_length_falls_with_the_distance_from_the_target(settings, answer, value):
    assert score("length", answer, **settings).value == pytest.approx(value)


def test_a_function_is_not_run_before_it_scores(tmp_path):
    file = tmp_path / "rewards.py"
    file.write_text("raise SystemExit('run')\n\ndef good(conversation, answer):\n    return 1\n", encoding="utf-8")
    made = SCORERS.parse({"type": "python_function", "path": f"{file}:good"})

    assert problems_of(made) == []
    with pytest.raises(SystemExit):
        made.score(ASKED, "")


def test_a_function_that_is_not_there_is_told(tmp_path):
    file = tmp_path / "rewards.py"
    file.write_text("def good(conversation, answer):\n    return 1.5\n", encoding="utf-8")

    def problems(path: str) -> list[str]:
        return [each.message for each in problems_of(SCORERS.parse({"type": "python_function", "path": path}))]

    assert problems(f"{file}:bad") == [f"{file} has no bad; it has good"]
    assert problems(f"{tmp_path}/gone.py:good") == [f"no such file: {tmp_path}/gone.py"]
    assert problems("no_such_module_at_all:good") == ["no module no_such_module_at_all"]
    assert problems("math:sqrt") == []
    with pytest.raises(ValueError, match=r"should be module:function or file\.py:function"):
        SCORERS.parse({"type": "python_function", "path": "rewards.py"})
    with pytest.raises(UserError, match=r"good gave '1\.5'; a score is a number from 0 to 1"):
        score("python_function", "", path=f"{file}:good")

"""What every score promises: a number from 0 to 1 with its why, whatever is asked and answered, and marks that fit."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Conversation, Message
from tunesmith.scoring import SCORERS, Score, Scorer, Span, prepare_scores
from tunesmith.scoring._given import as_score

QUATRAIN = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
SHUFFLED = "海欲白千日，一目里上山。层穷依入尽，黄更河楼流。"
CI = """一曲新词酒一杯，去年天气旧亭台。夕阳西下几时回。
无可奈何花落去，似曾相识燕归来。小园香径独徘徊。"""
BROKEN_CI = """一曲新词酒一碗，去年天气旧楼阁。夕阳西下几时暮。
花落去无可奈何，燕归来似曾相识。小园香径独徘徊。"""
SCHEMA = {"type": "object", "required": ["year"], "properties": {"year": {"type": "integer"}}}

# score, with the settings it needs -> question, reference, a good answer, a bad one
EXAMPLES = {
    "exact_match": ({}, "?", "天上广寒宫", "天上广寒宫", "人间清暑殿"),
    "length_match": ({}, "?", "天上广寒宫", "人间清暑殿", "人间"),
    "bleu": ({}, "?", "一园春雨杏花红", "一园春雨杏花红", "两岸晓烟杨柳绿"),
    "chrf": ({}, "?", "一园春雨杏花红", "一园春雨杏花红", "两岸晓烟杨柳绿"),
    "rouge": ({}, "?", "一园春雨杏花红", "一园春雨杏花红", "两岸晓烟杨柳绿"),
    "tool_call_match": ({}, "?", "", "", '{"name": "now", "arguments": {}}'),
    "verse_format": ({}, "写一首五言绝句", "", QUATRAIN, "白日依山尽，黄河流。"),
    "tone_rate": ({}, "写一首五言绝句", "", QUATRAIN, SHUFFLED),
    "metre": ({}, "写一首五言绝句", "", QUATRAIN, SHUFFLED),
    "rhyme": ({}, "写一首五言绝句", "", QUATRAIN, SHUFFLED),
    "parallelism": ({}, "请对出下联。\n两岸晓烟杨柳绿", "", "一园春雨杏花红", "天下何人不识君"),
    "couplet": ({}, "请对出下联。\n两岸晓烟杨柳绿", "", "一园春雨杏花红", "一岸春雨杏柳绿"),
    "ci": ({}, "用词牌《浣溪沙》填一首词", "", CI, BROKEN_CI),
    "repetition": ({}, "?", "", "春眠不觉晓处处闻啼鸟", "春眠春眠春眠春眠"),
    "distinct_n": ({}, "?", "", "春眠不觉晓", "春春春春春"),
    "self_bleu": ({}, "?", "", "春眠不觉晓\n更上一层楼", "春眠不觉晓\n春眠不觉晓"),
    "novelty": ({}, "?", "", "白头宫女在", "黄河入海流"),
    "regular_expression": ({"pattern": r"\d{4}年"}, "?", "", "2026年", "今年"),
    "json_schema": ({"wanted": SCHEMA}, "?", "", '{"year": 2026}', '{"year": "two"}'),
    "length": ({"target": 5}, "?", "", "春眠不觉晓", "春眠"),
    "python_function": ({"path": "{folder}/rewards.py:has_moon"}, "?", "", "床前明月光", "春眠不觉晓"),
    "reward_model": ({"model": "a-model-that-likes-the-moon"}, "?", "", "月", "日"),
    "http": ({"url": "http://127.0.0.1:{port}/score"}, "?", "", "月", "日"),
}
ANSWERS = [
    "",
    " \n ",
    "。，！",
    "□□□□□，□□□□□。□□□□□，□□□□□。",
    "床前明月光",
    QUATRAIN,
    CI,
    "The quick brown fox jumps over the lazy dog.\nAnd again, the quick brown fox.",
    "🙂 e\u0301 \u200b\x00 𠮷𠮷 一",
    "春" * 5000,
    (QUATRAIN + "\n") * 400,
    '{"name": "now", "arguments": {}}',
    "[" * 3000,
]
QUESTIONS = ["", "?", "写一首七律", "请对出下联。\n春风吹绿柳", "填一首《如梦令》词", "写一副春联"]


class Endpoint(BaseHTTPRequestHandler):
    """Gives 1 to answers with a moon; the paths of errors give errors."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        replies = {
            "/score": (200, {"score": float("月" in asked["answer"]), "why": "the moon"}),
            "/words": (200, "good"),
        }
        status, said = replies.get(self.path, (500, {"error": "out of memory"}))
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def port():
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture
def make(tmp_path, port):
    """Return a score by name with the settings that its example needs."""
    (tmp_path / "rewards.py").write_text(
        "def has_moon(conversation, answer):\n    return ('月' in answer, 'looked for the moon')\n", encoding="utf-8"
    )
    places = {"{folder}": str(tmp_path), "{port}": str(port)}

    def fill(value):
        for name, place in places.items():
            value = value.replace(name, place) if isinstance(value, str) else value
        return value

    def scorer(name: str) -> Scorer:
        settings = {key: fill(value) for key, value in EXAMPLES[name][0].items()}
        made = SCORERS.parse({"type": name, **settings})
        prepare_scores([made], lambda: [row("?", QUATRAIN)], lambda model: like_the_moon)
        return made

    return scorer


def like_the_moon(answered) -> list[float]:
    """Stand for a reward model: rewards are any numbers."""
    return [4.0 if "月" in answer else -4.0 for _, answer in answered]


def row(question: str, reference: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", reference)))


def test_every_score_has_an_example():
    assert sorted(EXAMPLES) == SCORERS.names()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_good_answer_beats_a_bad_one(name, make):
    """The good one earns nearly all, the bad one at most half."""
    _, question, reference, good, bad = EXAMPLES[name]
    asked, score = row(question, reference), make(name)
    of_good, of_bad = score.score(asked, good), score.score(asked, bad)

    assert of_good.value >= 0.9
    assert of_bad.value <= 0.5
    assert score.summary([asked, asked], [good, good]) >= (0.0 if name == "self_bleu" else 0.5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_whatever_is_answered_gives_a_number_and_its_why(name, make):
    score = make(name)
    for question in QUESTIONS:
        for reference in ("", QUATRAIN, "a reference"):
            asked = row(question, reference)
            for answer in ANSWERS if reference == "" else ANSWERS[:6]:
                result = score.score(asked, answer)

                assert isinstance(result, Score)
                assert 0.0 <= result.value <= 1.0, (question, reference, answer[:50])
                assert result.why
                assert all(0 <= s.start < s.end <= len(answer) and s.why for s in result.spans), answer[:50]


@pytest.mark.parametrize("name", EXAMPLES)
def test_many_answers_give_one_number_and_none_gives_zero(name, make):
    score = make(name)
    answers = ANSWERS[3:8]
    found = score.summary([row("写一首七绝", QUATRAIN)] * len(answers), answers)

    assert math.isfinite(found)
    assert 0.0 <= found <= 1.0
    assert score.summary([], []) == 0.0


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_answer_scores_the_same_again(name, make):
    _, question, reference, good, bad = EXAMPLES[name]
    score, asked = make(name), row(question, reference)

    assert [score.score(asked, a) for a in (good, bad)] == [score.score(asked, a) for a in (good, bad)]


def test_scores_that_do_not_want_the_training_data_do_not_have_it_read():
    def read():
        raise AssertionError("read")

    prepare_scores([SCORERS.parse("metre"), SCORERS.parse({"type": "novelty", "corpus": "train.json"})], read)


def test_an_older_score_of_value_and_why_goes_on_working():
    assert Score(0.5, "half") == (0.5, "half", ())


@pytest.mark.parametrize("given", [1.5, -0.1, float("nan"), "good", None, {"score": 1}, (2, "why"), [0.5]])
def test_a_score_from_outside_must_be_a_number_from_0_to_1(given):
    with pytest.raises(UserError, match=r"there gave .*; a score is a number from 0 to 1"):
        as_score(given, "there")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1, Score(1.0, "given by there")),
        (True, Score(1.0, "given by there")),
        ([0.5, "half"], Score(0.5, "half")),
        (Score(0.5, "half", (Span(0, 1, "here"),)), Score(0.5, "half", (Span(0, 1, "here"),))),
    ],
)
def test_a_score_from_outside_is_a_number_or_a_number_and_why(given, expected):
    assert as_score(given, "there") == expected


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/gone", 'answered 500 Internal Server Error: {"error": "out of memory"}'),
        ("/words", "gave 'good'; a score is a number from 0 to 1"),
    ],
)
def test_an_endpoint_that_gives_no_score_is_told(path, said, port):
    with pytest.raises(UserError) as error:
        SCORERS.get("http")(url=f"http://127.0.0.1:{port}{path}").score(row("?", ""), "月")

    assert said in str(error.value)


def test_an_endpoint_that_is_not_there_is_told():
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/ cannot be reached"):
        SCORERS.get("http")(url="http://127.0.0.1:9/").score(row("?", ""), "月")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:80", "ftp://a/b", "http://"])
def test_only_http_addresses_are_taken(url):
    with pytest.raises(ValueError, match="should be an address such as"):
        SCORERS.get("http")(url=url)

"""Models behind an OpenAI-compatible address, and the talk with them; the stand-in speaks as vLLM does.

vLLM itself needs a GPU: what is tested here is that we say, and read, what its API has.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tunesmith.apps.cli.talk import talk
from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.read import read_sources
from tunesmith.data.source import Source
from tunesmith.generation.remote import RemoteModel
from tunesmith.generation.settings import Generation
from tunesmith.run.chat import Talk, sampling
from tunesmith.run.evaluate import Questions, compare, make_scores


class StandIn(ThreadingHTTPServer):
    """Answers every question with its number of messages and their last content; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Speaker)
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        self.busy = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Speaker(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [{"id": "qwen"}, {"id": "verse"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        if self.server.busy:
            self.server.busy -= 1
            self.send(429, {"error": {"message": "busy"}}, {"retry-after": "0"})
        elif body["messages"][-1]["content"] == "bad":
            self.send(400, {"error": {"message": "no such thing", "type": "invalid_request_error"}})
        elif body["messages"][-1]["content"] == "secret":
            self.send(401, {"error": {"message": "wrong key"}})
        elif body.get("stream"):
            text = f"{len(body['messages'])}: {body['messages'][-1]['content']}"
            chunks = [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in text]
            chunks.insert(0, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
            chunks.append({"choices": [], "usage": {"completion_tokens": 3}})
            data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ": comment\n\ndata: [DONE]\n\n"
            self.reply(200, data.encode(), "text/event-stream", {})
        else:
            message = {"role": "assistant", "content": f"{len(body['messages'])}: {body['messages'][-1]['content']}"}
            if "tools" in body:
                message["tool_calls"] = [{"type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}]
            self.send(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def send(self, status: int, value: dict, headers: dict[str, str] | None = None) -> None:
        self.reply(status, json.dumps(value).encode(), "application/json", headers or {})

    def reply(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("TUNESMITH_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


HELLO = [Message("user", "moon")]


def test_an_answer_is_asked_for_with_all_that_was_set(server, monkeypatch):
    monkeypatch.setenv("TUNESMITH_API_KEY", "sk-1")
    schema = {"type": "json_schema", "json_schema": '{"type": "object"}'}
    settings = Generation(preset="poetry", top_k=7, seed=3, stop=("。",), max_new_tokens=9, constraint=schema)
    found = RemoteModel.find(f"{server.url}#qwen").answer(HELLO, settings)
    (body,) = server.bodies

    assert found["content"] == "1: moon"
    assert body == {
        "model": "qwen",
        "messages": [{"role": "user", "content": "moon"}],
        "max_tokens": 9,
        "temperature": 0.9,
        "top_p": 0.95,
        "min_p": 0.02,
        "top_k": 7,
        "seed": 3,
        "stop": ["。"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }
    assert server.keys == ["Bearer sk-1"]


def test_what_was_not_set_is_not_sent(server):
    RemoteModel.find(f"{server.url}#qwen").answer(HELLO, Generation())

    assert set(server.bodies[0]) == {"model", "messages", "max_tokens", "temperature"}
    assert server.keys == [None]


def test_a_busy_server_is_asked_again(server):
    server.busy = 2

    assert RemoteModel.find(f"{server.url}#qwen").answer(HELLO, Generation())["content"] == "1: moon"
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", r"which model\? .* has qwen, verse; name one as .*/v1#NAME"),
        ("#qwem", r"has no model 'qwem' \(did you mean 'qwen'\?\); it has qwen, verse"),
    ],
)
def test_a_model_must_be_named_and_there(server, address, said):
    with pytest.raises(UserError, match=said):
        RemoteModel.find(server.url + address)


def test_an_address_where_nobody_answers_is_said():
    with pytest.raises(UserError, match=r"no answer from http://127\.0\.0\.1:9/v1/models"):
        RemoteModel.find("http://127.0.0.1:9/v1#x")


@pytest.mark.parametrize("address", ["http://", "http://[::1", "https:///v1#x"])
def test_what_is_no_address_is_said(address):
    with pytest.raises(UserError, match="is no address; write one such as"):
        RemoteModel.find(address)


def test_a_refusal_says_what_the_server_said_and_never_the_key(server, monkeypatch):
    monkeypatch.setenv("TUNESMITH_API_KEY", "sk-secret")
    remote = RemoteModel.find(f"{server.url}#qwen")
    for text, said in {
        "bad": r"refuses \(400\): no such thing",
        "secret": r"\(401\): wrong key; set TUNESMITH_",
    }.items():
        for ask in (remote.answer, lambda *asked: list(remote.stream(*asked))):
            with pytest.raises(UserError, match=said) as refused:
                ask([Message("user", text)], Generation())
            assert "sk-secret" not in str(refused.value)


def test_settings_that_no_address_has_are_refused(server):
    with pytest.raises(UserError, match="num_beams: an answer from"):
        RemoteModel.find(f"{server.url}#qwen").answer(HELLO, Generation(num_beams=2))


def test_a_model_behind_an_address_is_evaluated_without_a_loss(server):
    tools = ({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},)
    asked = [
        Conversation((Message("user", "moon"), Message("assistant", "1: moon"))),
        Conversation((Message("user", "pine"), Message("assistant", "?")), tools=tools),
    ]
    questions = Questions(conversations=asked, source="", answered=2, generation=Generation(), limit=9)
    report = compare({"far": f"{server.url}#verse"}, questions, make_scores(["exact_match"]))

    assert report["scores"]["exact_match"] == {"far": 0.5}
    assert report["loss"] == {}
    assert report["rows"][1]["answers"]["far"] == '1: pine\n{"arguments": {"at": 1}, "name": "look"}'


# --- the talk


def type_in(monkeypatch, *lines: str) -> None:
    waiting = iter(lines)

    def read(_: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def talked(server, monkeypatch, capsys, *lines: str, system: str | None = None) -> list[str]:
    type_in(monkeypatch, *lines)
    talk(f"{server.url}#qwen", None, system, Generation(), "auto")
    return capsys.readouterr().out.splitlines()


def test_a_talk_goes_on_and_can_be_changed_and_begun_again(server, monkeypatch, capsys):
    said = talked(
        server,
        monkeypatch,
        capsys,
        *("moon", "pine", "/again", "/edit rain", "/history", "/new", "mist"),
        *("/system Be brief.", "hill", "/system", "tree"),
    )

    assert said == [
        *("1: moon", "3: pine", "3: pine", "3: rain"),
        *("> moon", "1: moon", "> rain", "3: rain"),
        *("1: mist", "4: hill", "5: tree"),
    ]


def test_several_lines_can_be_one_question(server, monkeypatch, capsys):
    talked(server, monkeypatch, capsys, "a\\", "b", '"""', "c\\", "", "/quit", '"""', "/quit", "never")

    assert [body["messages"][-1]["content"] for body in server.bodies] == ["a\nb", "c\\\n\n/quit"]


def test_sampling_is_changed_by_command(server, monkeypatch, capsys):
    said = talked(
        server, monkeypatch, capsys, "/set", "/preset official", "/set temperature=0.5", "/set", "/preset", "moon"
    )

    assert said[0] == "nothing was set"
    assert said[1] == "preset=official, max_new_tokens=128, temperature=0.5, top_p=0.9, repetition_penalty=1.1"
    assert said[2].startswith("greedy    always the likeliest token: temperature=0.0")
    assert server.bodies[0]["repetition_penalty"] == 1.1
    assert server.bodies[0]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/sav x", "no such command: /sav (did you mean '/save'?); there are /help, /new"),
        ("/preset poem", "no preset called 'poem' (did you mean 'poetry'?); there are greedy, precise"),
        ("/set temprature=1", "no setting 'temprature' (did you mean 'temperature'?); write NAME=VALUE"),
        ("/set top_p=2", "top_p: Input should be less than or equal to 1"),
        ("/set best_of=2", "best_of: 2 answers at temperature 0 are all the same"),
        ("/again", "nothing was asked yet"),
        ("/edit x", "nothing was asked yet"),
        ("/save", "which file?"),
        ("/save talk.jsonl", "nothing was said yet"),
        ("/adapter moon", "no adapter called 'moon'; give some with --adapter"),
    ],
)
def test_what_is_wrong_with_a_command_is_said_and_the_talk_goes_on(server, monkeypatch, capsys, line, said):
    found = talked(server, monkeypatch, capsys, line, "moon")

    assert found[0].startswith(said)
    assert found[-1] == "1: moon"


def test_help_names_every_command(server, monkeypatch, capsys):
    said = talked(server, monkeypatch, capsys, "/help")

    assert {line.split()[0] for line in said[:-1]} == {
        *("/help", "/new", "/again", "/edit", "/system", "/adapter", "/preset", "/set", "/history", "/save", "/quit")
    }


def test_a_talk_is_saved_as_data_that_can_be_read(server, monkeypatch, capsys, tmp_path):
    path = tmp_path / "talks" / "one.jsonl"
    lines = ["moon", "pine", f"/save {path}", "/new", "春", f"/save {path}", f"/save {tmp_path}/talk.txt"]
    said = talked(server, monkeypatch, capsys, *lines, system="Be kind.")
    conversations = read_sources([Source(path=str(path))], bad_rows="refuse").conversations

    assert [[(m.role, m.content) for m in each.messages] for each in conversations] == [
        [
            ("system", "Be kind."),
            ("user", "moon"),
            ("assistant", "2: moon"),
            ("user", "pine"),
            ("assistant", "4: pine"),
        ],
        [("system", "Be kind."), ("user", "春"), ("assistant", "2: 春")],
    ]
    assert said[-1].endswith("talk.txt: a talk is saved as lines of JSON; name a .jsonl file")


def test_a_question_that_fails_ends_a_program_and_not_a_dialogue(server, monkeypatch, capsys):
    with pytest.raises(UserError, match="no such thing"):
        talked(server, monkeypatch, capsys, "bad", "moon")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    said = talked(server, monkeypatch, capsys, "bad", "moon")

    assert said[-1] == "1: moon"


def test_a_preset_gives_way_to_a_temperature():
    assert sampling(9, None, "poetry").temperature == 0.9
    assert sampling(9, 0.2, "poetry").temperature == 0.2
    assert sampling(9, None, None) == Generation(max_new_tokens=9)
    with pytest.raises(UserError, match="no preset called 'x'"):
        sampling(9, None, "x")


def test_an_address_takes_no_adapters_of_ours(server):
    with pytest.raises(UserError, match="--adapter: an address keeps its own adapters"):
        Talk.load(f"{server.url}#qwen", None, Generation(), "auto", ["x=y"])

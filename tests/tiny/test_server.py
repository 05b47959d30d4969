"""The server, as the clients that people use speak to it: OpenAI's own, LangChain's, and plain HTTP."""

import asyncio
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import peft
import pytest
import torch
import uvicorn
from pydantic import BaseModel
from test_calls import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.apps.server.app import create_app
from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Conversation, Message
from tunesmith.generation.requests import EngineStats, Handle, Piece, QueueFullError, Request
from tunesmith.generation.vocabulary import Vocabulary
from tunesmith.models.load import tokenizer_from
from tunesmith.run.serving import Limits, Service
from tunesmith.run.serving_access import Access, decide_access, listen
from tunesmith.run.serving_keys import KeyFile
from tunesmith.run.serving_models import Names, Served
from tunesmith.run.serving_start import Asked, begin, check_folders
from tunesmith.templates.chat import ChatTemplate

CHATML_WITH_TOOLS = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["上海", "Rome"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
ASKED = [{"role": "user", "content": "How is it?"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes as tokens, ChatML with tools as template."""
    return byte_tokenizer(CHATML_WITH_TOOLS, ["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer) -> Path:
    """A random model ``base``, and random adapters ``adapters/dufu``, ``adapters/sushi`` and ``others/libai`` on it."""
    folder = tmp_path_factory.mktemp("served")
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "qwen3",
        **sizes,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name in ("adapters/dufu", "adapters/sushi", "others/libai"):
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        wrapped = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"]))
        with torch.no_grad():
            for each, parameter in wrapped.named_parameters():
                if "lora_" in each:
                    parameter.normal_(std=0.5)
        wrapped.peft_config["default"].base_model_name_or_path = str(folder / "base")
        wrapped.save_pretrained(folder / name)
    return folder


def make_service(folders: Path, *adapters: str, **limits: Any) -> Service:
    asked = Asked(
        model=str(folders / "base"),
        adapters=adapters,
        device="cpu",
        limits=Limits(adapter_folders=check_folders([folders / "adapters"]), **limits),
    )
    asked.check()
    return begin(asked, lambda _: None)


class Running:
    """An application on a free port of this machine."""

    def __init__(self, app: Any) -> None:
        self.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> "Running":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def running(folders):
    """The base with both adapters and a blend, behind HTTP."""
    base = folders / "adapters"
    service = make_service(
        folders, f"杜甫={base / 'dufu'}", f"sushi={base / 'sushi'}", "mix=0.5*杜甫+0.5*sushi", max_tokens=64
    )
    with Running(create_app(service, Access())) as server:
        server.service = service
        yield server


@pytest.fixture(scope="module")
def client(running) -> openai.OpenAI:
    return running.client()


# --- an engine that says what it is told, for what random weights never write


class Scripted:
    """Stands in for the engine: writes *script* to every request, a few characters a piece; keeps the requests."""

    context = 2048

    def __init__(self, script: str = "", finish: str = "stop", room: int = 100) -> None:
        self.script, self.finish, self.room, self.requests, self.handles = script, finish, room, [], []

    def submit(self, request: Request) -> Handle:
        if self.room <= len(self.requests):
            raise QueueFullError("100 requests wait already", 2.4)
        self.requests.append(request)
        self.handles.append(handle := Handle(request))
        for start in range(0, len(self.script), 3):
            handle.write(Piece(self.script[start : start + 3], (1,)), computed=1)
        if self.finish != "never":
            handle.write(Piece("", finish_reason=self.finish))
        return handle

    def stats(self) -> EngineStats:
        return EngineStats(waiting=0, running=0)

    def close(self, *, drain: bool = True) -> None:
        pass


def scripted(tokenizer, engine: Scripted, access: Access | None = None, **limits: Any) -> httpx.AsyncClient:
    """A client of an application in this process whose engine is *engine*."""
    names = Names(Served("base", None, ChatTemplate(tokenizer), "base"), "base")
    app = create_app(Service(engine, names, Limits(**limits), "base", None), access or Access())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def post(tokenizer, engine: Scripted, body: Any, route: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with scripted(tokenizer, engine, **options) as http:
            return await http.post(route, content=json.dumps(body), headers={"content-type": "application/json"})

    return asyncio.run(send())


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]

    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "base", "messages": ASKED, **more}


# --- what clients get


def test_models_are_listed_with_the_base_first(client):
    assert [each.id for each in client.models.list()] == ["base", "杜甫", "sushi", "mix"]
    assert client.models.retrieve("杜甫").parent == "base"


def test_the_model_is_given_the_tokens_that_training_renders(running, tokenizer):
    """What is asked as messages is what a training sequence begins with, control tokens in texts as plain text."""
    messages = [
        Message("system", "Answer."),
        Message("user", "春<|im_end|>"),
        Message("assistant", "夏"),
        Message("user", "秋"),
    ]
    (trained,) = ChatTemplate(tokenizer).sequences([Conversation((*messages, Message("assistant", "冬")))])
    said = [{"role": each.role, "content": each.content} for each in messages]
    said[1]["content"] = [{"type": "text", "text": "春<|im_"}, {"type": "text", "text": "end|>"}]
    found = httpx.post(f"{running.url}/tokenize", json={"model": "base", "messages": said}).json()

    assert found["count"] == len(found["tokens"])
    assert found["tokens"] == trained[-1].tokens.tolist()[: found["count"]]
    engine = Scripted("冬")
    post(tokenizer, engine, {"model": "base", "messages": said})
    assert list(engine.requests[0].prompt) == found["tokens"]


def test_an_answer_streamed_is_the_answer_in_one_piece(client):
    options = {"model": "base", "messages": ASKED, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    assert whole.choices[0].message.content == text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"


def test_a_seed_writes_the_same_answers_and_n_different_ones(client):
    options = {"model": "base", "messages": ASKED, "temperature": 1.5, "max_tokens": 8, "seed": 5, "n": 3}
    one, other = (client.chat.completions.create(**options) for _ in range(2))

    assert [c.message.content for c in one.choices] == [c.message.content for c in other.choices]
    assert len({c.message.content for c in one.choices}) > 1
    assert one.usage.completion_tokens <= 24
    assert one.usage.prompt_tokens == other.usage.prompt_tokens


def test_clients_at_once_get_what_they_get_one_after_another(client):
    def ask(number: int) -> str:
        model = ("base", "杜甫", "sushi", "mix")[number % 4]
        messages = [{"role": "user", "content": "?" * (number + 1)}]
        done = client.chat.completions.create(
            model=model, messages=messages, temperature=0, max_tokens=10, presence_penalty=0.0
        )
        return done.choices[0].message.content

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))

    assert together == alone
    assert len(set(alone[:4])) == 4  # or the adapters did nothing


def test_log_probabilities_are_told_for_every_token(client):
    chat = client.chat.completions.create(
        model="base", messages=ASKED, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    told = chat.choices[0].logprobs.content
    assert len(told) == 4
    assert all(each.logprob == each.top_logprobs[0].logprob <= 0 for each in told)
    assert all(len(each.top_logprobs) == 3 and each.bytes for each in told)

    text = client.completions.create(model="base", prompt="Autumn", temperature=0, max_tokens=4, logprobs=2)
    told = text.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 4
    assert told.top_logprobs[0][told.tokens[0]] == told.token_logprobs[0]


def test_completions_go_on_with_texts_and_tokens(client, tokenizer):
    ids = tokenizer("Autumn")["input_ids"]
    options = {"model": "base", "temperature": 0, "max_tokens": 6}
    text, tokens = (client.completions.create(prompt=prompt, **options) for prompt in ("Autumn", ids))
    both = client.completions.create(prompt=["Autumn", "Winter"], echo=True, **options)

    assert text.choices[0].text == tokens.choices[0].text
    assert both.choices[0].text == "Autumn" + text.choices[0].text
    assert both.choices[1].text.startswith("Winter")
    assert both.usage.completion_tokens == 12
    assert text.usage.prompt_tokens == len(ids)


def test_embeddings_are_means_of_hidden_states(client, folders, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folders / "base")
    with torch.no_grad():
        states = model.model(torch.tensor([tokenizer("Autumn")["input_ids"]])).last_hidden_state[0].mean(0)
    found = client.embeddings.create(model="base", input=["Winter", "Autumn"])  # the client asks for base64
    other = client.embeddings.create(model="杜甫", input="Autumn", encoding_format="float")

    torch.testing.assert_close(torch.tensor(found.data[1].embedding), states, rtol=1e-4, atol=1e-5)
    assert found.usage.prompt_tokens == 12
    assert other.data[0].embedding != found.data[1].embedding


# --- structured answers


class Poet(BaseModel):
    """What an answer is parsed into."""

    name: Literal["杜甫", "李白"]
    alive: bool


def test_an_answer_is_parsed_into_a_class(client):
    done = client.chat.completions.parse(model="base", messages=ASKED, response_format=Poet, temperature=1)

    assert isinstance(done.choices[0].message.parsed, Poet)
    assert done.choices[0].finish_reason == "stop"


def test_a_choice_of_words_is_held(client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["spring", "autumn"]}}}
    done = client.chat.completions.create(model="base", messages=ASKED, response_format=form, temperature=1.5, seed=1)

    assert json.loads(done.choices[0].message.content) in ("spring", "autumn")
    assert done.choices[0].finish_reason == "stop"


def test_verse_is_asked_for_by_its_form(client):
    extra = {"constraint": {"type": "regex", "pattern": "[春夏秋冬]{5}"}}
    done = client.chat.completions.create(model="base", messages=ASKED, temperature=1, extra_body=extra)

    assert re.fullmatch("[春夏秋冬]{5}", done.choices[0].message.content)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(
            model="base", messages=ASKED, extra_body={"constraint": {"type": "regex", "pattern": "("}}
        )
    assert wrong.value.param == "constraint"


def test_a_tool_is_called_when_it_is_asked_for(client):
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        done = client.chat.completions.create(
            model="base", messages=ASKED, tools=[WEATHER], tool_choice=choice, temperature=1, seed=3
        )
        (call,) = done.choices[0].message.tool_calls
        arguments = json.loads(call.function.arguments)

        assert done.choices[0].finish_reason == "tool_calls"
        assert done.choices[0].message.content is None
        assert call.function.name == "get_weather"
        assert call.id.startswith("call_")
        assert arguments["city"] in ("上海", "Rome")
        assert 0 <= arguments["days"] <= 9


def test_tools_streamed_give_the_calls_that_one_piece_gives(client):
    """The official helper puts the deltas together."""
    options = {"model": "base", "messages": ASKED, "tools": [WEATHER], "temperature": 1, "seed": 3}
    whole = client.chat.completions.create(**options, tool_choice="required")
    with client.chat.completions.stream(**options, tool_choice="required") as stream:
        final = stream.get_final_completion()

    (one,), (other,) = whole.choices[0].message.tool_calls, final.choices[0].message.tool_calls
    assert (one.function.name, one.function.arguments) == (other.function.name, other.function.arguments)
    assert final.choices[0].finish_reason == "tool_calls"


def test_strict_tools_hold_the_calls_that_a_model_makes_of_itself(tokenizer):
    """As OpenAI's helper for pydantic classes asks for; free text is left free."""
    engine = Scripted(CALLED)
    strict = openai.pydantic_function_tool(Poet)
    choice = post(tokenizer, engine, asked(tools=[strict])).json()["choices"][0]
    walk = engine.requests[0].settings.constraint.start(Vocabulary.of(tokenizer))

    def goes_on(text: str) -> bool:
        now = walk
        try:
            for token in tokenizer(text)["input_ids"]:
                now = now.advance(token)
        except ValueError:
            return False
        return True

    assert choice["finish_reason"] == "tool_calls"
    assert goes_on('Hm. <tool_call>\n{"name": "Poet", "arguments": {"name": "杜甫", "alive": false}}\n</tool_call> 好')
    assert not goes_on('<tool_call>\n{"name": "Poem"')
    assert not goes_on('<tool_call>\n{"name": "Poet", "arguments": {"name": 7')


def test_langchain_talks_calls_and_structures(running):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{running.url}/v1", api_key="none", model="base", temperature=0, max_tokens=64)
    said = model.invoke("How is it?")
    assert said.usage_metadata["output_tokens"] <= 64
    assert "".join(chunk.content for chunk in model.stream("How is it?")) == said.content

    called = model.bind_tools([WEATHER], tool_choice="get_weather").invoke("How is it?")
    assert called.tool_calls[0]["name"] == "get_weather"
    assert called.tool_calls[0]["args"]["city"] in ("上海", "Rome")


# --- calls that a model makes of itself

CALLED = 'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'


def test_calls_are_read_out_of_the_answer(tokenizer):
    choice = post(tokenizer, Scripted(CALLED), asked(tools=[WEATHER])).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome", "days": 2}


def test_calls_in_a_stream_come_as_deltas(tokenizer):
    found = events(post(tokenizer, Scripted(CALLED), asked(tools=[WEATHER], stream=True)))
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]

    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    assert calls[0]["id"].startswith("call_")
    assert calls[0]["function"]["name"] == "get_weather"
    assert json.loads("".join(c["function"]["arguments"] for c in calls)) == {"city": "Rome", "days": 2}
    assert found[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}


def test_without_tools_nothing_is_read_as_a_call(tokenizer):
    for more in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        choice = post(tokenizer, Scripted(CALLED), asked(**more)).json()["choices"][0]

        assert choice["message"]["content"] == CALLED
        assert choice["finish_reason"] == "stop"


def test_one_call_is_the_end_where_one_is_asked_for(tokenizer):
    engine = Scripted(f"{CALLED}\n{CALLED}")
    body = asked(tools=[WEATHER], parallel_tool_calls=False)
    choice = post(tokenizer, engine, body).json()["choices"][0]

    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    assert len(post(tokenizer, engine, asked(tools=[WEATHER])).json()["choices"][0]["message"]["tool_calls"]) == 2


def test_reasoning_is_told_apart(tokenizer):
    script = "<think>\nHm.\n</think>\n\nFine."
    message = post(tokenizer, Scripted(script), asked()).json()["choices"][0]["message"]
    deltas = [c["choices"][0]["delta"] for c in events(post(tokenizer, Scripted(script), asked(stream=True)))]

    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Fine.")
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    engine = Scripted("Fine.")
    post(tokenizer, engine, asked(chat_template_kwargs={"enable_thinking": False}))
    assert tokenizer.decode(engine.requests[0].prompt).endswith("<think>\n\n</think>\n\n")


def test_an_answer_comes_back_as_history(tokenizer):
    """Clients send messages as they got them, with all their empty fields."""
    message = post(tokenizer, Scripted(CALLED), asked(tools=[WEATHER])).json()["choices"][0]["message"]
    message |= {"annotations": [], "audio": None, "function_call": None}
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "22 °C"}
    engine = Scripted("Warm.")
    response = post(tokenizer, engine, {"model": "base", "messages": [*ASKED, message, result], "tools": [WEATHER]})

    assert response.status_code == 200, response.text
    assert '{"name": "get_weather", "arguments": {"city": "Rome"' in tokenizer.decode(engine.requests[0].prompt)


# --- Anthropic's form

TOOL = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}


def test_messages_are_answered_in_blocks_and_in_events(tokenizer):
    body = {"model": "base", "max_tokens": 50, "system": "Be brief.", "messages": ASKED, "tools": [TOOL]}
    engine = Scripted(f"<think>\nHm.\n</think>\n\n{CALLED}")
    whole = post(tokenizer, engine, body, "/v1/messages").json()
    stream = post(tokenizer, engine, {**body, "stream": True}, "/v1/messages").text
    found = [json.loads(line.partition("\ndata: ")[2]) for line in stream.split("\n\n") if line]
    blocks: list[dict[str, Any]] = []
    for event in found:
        if event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "json": ""})
        if event["type"] == "content_block_delta":
            kind = event["delta"].pop("type")
            for name, text in event["delta"].items():
                blocks[-1]["json" if kind == "input_json_delta" else name] += text
    for block in blocks:
        block["input" if block["type"] == "tool_use" else "x"] = json.loads(block.pop("json") or "0")

    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
    assert whole["content"][2]["input"] == blocks[2]["input"] == {"city": "Rome", "days": 2}
    assert [block.get("text", block.get("thinking")) for block in blocks] == ["Hm.", "Let me see.", None]
    assert (whole["stop_reason"], found[-2]["delta"]["stop_reason"]) == ("tool_use", "tool_use")
    assert whole["usage"] == found[-2]["usage"]
    assert [event["type"] for event in found[:1] + found[-1:]] == ["message_start", "message_stop"]
    assert "Be brief." in tokenizer.decode(engine.requests[0].prompt)


def test_messages_with_results_of_tools_go_on(tokenizer):
    said = post(
        tokenizer,
        Scripted(CALLED),
        {"model": "base", "max_tokens": 9, "messages": ASKED, "tools": [TOOL]},
        "/v1/messages",
    ).json()
    result = {"type": "tool_result", "tool_use_id": said["content"][1]["id"], "content": "22 °C"}
    turns = [*ASKED, {"role": "assistant", "content": said["content"]}, {"role": "user", "content": [result]}]
    engine = Scripted("Warm.")
    response = post(tokenizer, engine, {"model": "base", "max_tokens": 9, "messages": turns}, "/v1/messages")
    wrong = post(tokenizer, engine, {"model": "base", "messages": turns}, "/v1/messages")

    assert response.json()["content"] == [{"type": "text", "text": "Warm."}]
    assert response.json()["stop_reason"] == "end_turn"
    assert "<|im_start|>tool\n22 °C" in tokenizer.decode(engine.requests[0].prompt)
    assert wrong.status_code == 400
    assert wrong.json()["error"] == {"type": "invalid_request_error", "message": "max_tokens: is missing"}


# --- what is refused


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"temperature": 3}, "temperature", "found 3"),
        ({"n": 0}, "n", "found 0"),
        ({"max_tokens": 0}, "max_tokens", "found 0"),
        ({"max_tokens": 3000}, "max_tokens", "allows 2048"),
        ({"logit_bias": {"5": 1}}, "logit_bias", ""),
        ({"functions": [{"name": "f"}]}, "functions", ""),
        ({"store": True}, "store", ""),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"stream_options": {}}, "stream_options", "stream"),
        ({"messages": []}, "messages", ""),
        ({"messages": [{"role": "user"}]}, "messages[0].content", ""),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages[0].content", "surrogate"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "text",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", ""),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format", "call"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"constraint": {"type": "vers"}}, "constraint", "did you mean 'verse'"),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking", "enable_thinking"),
        ({"preset": "wild"}, "preset", ""),
        ({"best_of": 4, "temperature": 0}, "best_of", ""),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_followed_is_refused_by_name(tokenizer, more, param, says):
    response = post(tokenizer, Scripted("x"), asked(**more))
    error = response.json()["error"]

    assert (response.status_code, error["type"]) == (400, "invalid_request_error"), response.text
    assert error["param"] == param, error
    assert says in error["message"]


def test_clients_raise_their_own_errors(running, client):
    with pytest.raises(openai.NotFoundError, match="did you mean 'sushi'") as unknown:
        client.chat.completions.create(model="shushi", messages=ASKED)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "x" * 3000}])
    assert too_long.value.code == "context_length_exceeded"
    assert too_long.value.param == "messages"
    for body in (b"{", b"[" * 100_000, b"\xff", b"{}x", b"1", b'"x"', b'{"temperature": NaN}'):
        response = httpx.post(
            f"{running.url}/v1/completions", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400, (body[:9], response.text)
        assert response.json()["error"]["message"]
    assert httpx.post(f"{running.url}/v1/completions", content=b"{}").status_code == 415
    assert httpx.get(f"{running.url}/v1/chat/completions").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{running.url}/nowhere").status_code == 404


def test_a_full_queue_says_when_to_come_back(tokenizer):
    response = post(tokenizer, Scripted("x", room=1), asked(n=2))

    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_what_was_begun_for_a_refused_request_is_cancelled(tokenizer):
    engine = Scripted("x", "never", room=1)
    post(tokenizer, engine, asked(n=2))

    assert [handle.cancelled for handle in engine.handles] == [True]


def test_an_answer_cut_off_is_an_error_in_one_piece_and_in_a_stream(tokenizer):
    whole = post(tokenizer, Scripted("abc", "timeout"), asked())
    stream = post(tokenizer, Scripted("abc", "timeout"), asked(stream=True))

    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "timeout"
    assert json.loads(stream.text.rpartition("data: ")[2])["error"]["code"] == "timeout"


def test_large_requests_are_not_read(tokenizer):
    big = asked(messages=[{"role": "user", "content": "x" * 2000}])
    response = post(tokenizer, Scripted("x"), big, access=Access(most_bytes=1024))

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"

    async def in_parts():
        async def parts():
            for _ in range(20):
                yield b"x" * 100

        async with scripted(tokenizer, Scripted("x"), Access(most_bytes=1024)) as http:
            return await http.post("/v1/completions", content=parts(), headers={"content-type": "application/json"})

    assert asyncio.run(in_parts()).status_code == 413


def test_whoever_leaves_is_computed_for_no_more(running):
    """Both a stream that is closed and a request that is dropped free their place in the batch."""
    url, body = f"{running.url}/v1/chat/completions", {"model": "base", "messages": ASKED, "max_tokens": 64}
    slow = {**body, "constraint": {"type": "regex", "pattern": "[a-z]{60,}"}}
    with httpx.stream("POST", url, json={**slow, "stream": True}) as response:
        next(response.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={**slow, "n": 8}, timeout=0.02)
    until = time.monotonic() + 5
    while (stats := running.service.engine.stats()).running + stats.waiting and time.monotonic() < until:
        time.sleep(0.01)

    assert stats.running + stats.waiting == 0
    assert stats.finished.get("cancelled", 0) >= 1


# --- adapters


def test_adapters_come_and_go_while_serving(running, client, folders):
    def call(route: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{running.url}/v1/{route}", json=body)

    def say(model: str) -> str:
        done = client.chat.completions.create(model=model, messages=ASKED, temperature=0, max_tokens=8)
        return done.choices[0].message.content

    assert call("load_lora_adapter", lora_name="again", lora_path="dufu").json()["parent"] == "base"
    assert say("again") == say("杜甫")
    assert call("load_lora_adapter", lora_name="half", blend={"again": 0.5}).status_code == 200
    assert call("unload_lora_adapter", lora_name="again").status_code == 409  # half is made of it
    assert call("load_lora_adapter", lora_name="again", lora_path="sushi").status_code == 400  # the name is taken
    for name in ("half", "again"):
        assert call("unload_lora_adapter", lora_name=name).json()["deleted"]
        assert call("unload_lora_adapter", lora_name=name).status_code == 404
    assert call("unload_lora_adapter", lora_name="base").status_code == 400
    with pytest.raises(openai.NotFoundError):
        say("again")


def test_adapters_come_from_allowed_folders_only(running, folders):
    (folders / "adapters" / "link").symlink_to(folders / "others" / "libai")
    (folders / "adapters" / "pickled").mkdir()
    (folders / "adapters" / "pickled" / "adapter_config.json").write_text("{}")
    (folders / "adapters" / "pickled" / "adapter_model.bin").write_bytes(b"")
    outside = ("../others/libai", str(folders / "others/libai"), "link", "/etc", "nowhere", ".", "..", "pickled", "\0")
    answers = set()
    for path in outside:
        body = {"lora_name": "x", "lora_path": path}
        response = httpx.post(f"{running.url}/v1/load_lora_adapter", json=body)
        answers.add((response.status_code, response.json()["error"]["message"].replace(repr(path), "PATH")))

    assert len(answers) == 1
    assert answers.pop()[0] == 404


def test_a_blend_is_the_weighted_sum(running, client):
    def say(model: str) -> str:
        done = client.chat.completions.create(model=model, messages=ASKED, temperature=0, max_tokens=8)
        return done.choices[0].message.content

    body = {"lora_name": "all of it", "blend": {"杜甫": 1.0, "sushi": 0.0}}
    assert httpx.post(f"{running.url}/v1/load_lora_adapter", json=body).status_code == 200
    assert say("all of it") == say("杜甫")
    assert say("mix") not in (say("杜甫"), say("base"))
    body = {"lora_name": "y", "blend": {"base": 1.0}}
    assert httpx.post(f"{running.url}/v1/load_lora_adapter", json=body).json()["error"]["param"] == "blend"


def test_a_run_alone_is_served_beside_its_base(folders):
    asked_for = Asked(model=str(folders / "adapters" / "dufu"), device="cpu")
    service = begin(asked_for, lambda _: None)
    try:
        assert [each["id"] for each in service.models()] == ["dufu", "base"]
    finally:
        service.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("dufu",), "name=PATH"),
        (("base=adapters/dufu",), "as the model itself"),
        (("x=adapters/nowhere",), "nowhere"),
        (("mix=0.5*dufu+0.5*x", "dufu=adapters/dufu"), "'x' is no adapter"),
    ],
)
def test_wrong_adapters_end_the_command(folders, monkeypatch, words, says):
    monkeypatch.chdir(folders)
    with pytest.raises(UserError, match=re.escape(says)):
        make_service(folders, *words)


def test_the_next_turn_of_a_talk_reads_only_what_is_new_and_gets_the_same_answer(folders):
    """What the command line asks for reaches the engine; with ``--keep-tokens 0`` everything is read again."""
    answers, reused = [], []
    for kept_tokens in (4096, 0):
        service = begin(Asked(model=str(folders / "base"), device="cpu", kept_tokens=kept_tokens), lambda _: None)
        said: list[dict[str, str]] = []
        with Running(create_app(service, Access(), lambda _: None)) as server:
            for question in ("mist over the hill", "and the moon?"):
                said.append({"role": "user", "content": question})
                asked = {"model": "base", "messages": said, "max_tokens": 8, "temperature": 0}
                done = server.client().chat.completions.create(**asked)
                said.append({"role": "assistant", "content": done.choices[0].message.content or "…"})
        service.close()
        answers.append(said)
        reused.append(service.engine.stats().reused_tokens)

    assert answers[0] == answers[1]
    assert reused[0] > len("mist over the hill")
    assert reused[1] == 0


def test_answers_are_not_held_back_until_their_head_was_received():
    """Nagle's algorithm with delayed receipts costs every answer 40 ms."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- who may use it


def test_others_reach_it_with_a_key_only(tmp_path):
    keys = KeyFile(tmp_path / "keys.json")
    with pytest.raises(UserError, match="--no-key-i-understand"):
        decide_access("0.0.0.0", keys, without_key=False, most_bytes=1000)
    assert decide_access("0.0.0.0", keys, without_key=True, most_bytes=1000).check_key("") is None
    assert decide_access("127.0.0.1", keys, without_key=False, most_bytes=1000).check_key("") is None
    keys.add("laptop")
    access = decide_access("0.0.0.0", keys, without_key=False, most_bytes=1000)
    keys.remove("laptop")
    with pytest.raises(UserError, match="API key is needed"):
        access.check_key("")  # removing the last key lets nobody in


def test_keys_are_hashed_and_taken_back_while_serving(tokenizer, tmp_path):
    keys, lines = KeyFile(tmp_path / "keys.json"), []
    key, other = keys.add("laptop"), keys.add("phone")
    access = decide_access("127.0.0.1", keys, without_key=False, most_bytes=10_000)
    names = Names(Served("base", None, ChatTemplate(tokenizer), "base"), "base")
    app = create_app(Service(Scripted("x"), names, Limits(), "base", None), access, lines.append)

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.1") as http:
            found = [(await http.get(f"/v1/models?key={other}", headers=h)).status_code for h in headers]
            return [*found, (await http.get("/health")).status_code]

    headers = [{}, {"authorization": f"Bearer {key}"}, {"authorization": f"Bearer {key}x"}, {"x-api-key": other}]
    assert asyncio.run(statuses()) == [401, 200, 401, 200, 200]
    KeyFile(keys.path).remove("laptop")
    assert asyncio.run(statuses()) == [401, 401, 401, 200, 200]
    assert key not in keys.path.read_text()
    assert not keys.path.stat().st_mode & 0o077
    assert "(laptop)" in lines[1]
    assert not any(secret in line for line in lines for secret in (key, other))


def test_web_pages_do_not_reach_a_server_without_keys(tokenizer, tmp_path):
    """By name neither (DNS rebinding) nor across origins."""
    access = decide_access("127.0.0.1", KeyFile(tmp_path / "none.json"), without_key=False, most_bytes=1000)

    async def get(**headers: str) -> httpx.Response:
        async with scripted(tokenizer, Scripted("x"), access) as http:
            return await http.get("/v1/models", headers=headers)

    assert asyncio.run(get(host="evil.example")).status_code == 403
    assert asyncio.run(get(host="localhost:8000")).status_code == 200
    assert "access-control-allow-origin" not in asyncio.run(get(origin="https://evil.example")).headers


def test_metrics_and_log_tell_counts_and_no_contents(tokenizer):
    lines: list[str] = []
    names = Names(Served("base", None, ChatTemplate(tokenizer), "base"), "base")
    app = create_app(Service(Scripted("secret answer"), names, Limits(), "base", None), Access(), lines.append)

    async def use() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
            await http.post("/v1/chat/completions", json=asked())
            await http.get("/v1/models/x%0Aforged")
            return (await http.get("/metrics")).text

    text = asyncio.run(use())
    assert 'tunesmith_http_requests_total{route="/v1/chat/completions",status="200"} 1' in text
    assert 'tunesmith_finished_total{model="base",reason="stop"} 1' in text
    assert 'tunesmith_request_seconds_bucket{le="+Inf"} 1' in text
    assert not any("secret" in line or "How is it" in line or "\n" in line for line in lines)
    assert re.search(
        r"POST /v1/chat/completions 200 \d+\.\d+s model=base prompt_tokens=\d+ completion_tokens=5", lines[0]
    )


def test_a_tokenizer_of_the_base_is_the_one_that_is_served(running, folders, tokenizer):
    assert tokenizer_from(str(folders / "base")).chat_template == tokenizer.chat_template


def test_keys_are_made_and_removed_on_the_command_line(tmp_path):
    from typer.testing import CliRunner

    from tunesmith.apps.cli.serve import keys_app

    def run(*words: str) -> str:
        done = CliRunner().invoke(keys_app, [*words, "--keys", str(tmp_path / "keys.json")], catch_exceptions=False)
        return done.stdout.strip()

    key = run("add", "laptop")
    assert KeyFile(tmp_path / "keys.json").find(key) == "laptop"
    assert run("list").startswith("laptop\tadded 2")
    run("remove", "laptop")
    assert run("list") == ""

"""The parity certificate, what goes with an export, and sending it: other forms are the model, or it is said loudly."""

import json
import shutil
import socket
import threading

import pytest
import uvicorn
from safetensors.torch import load_file, save_file
from test_calls import byte_tokenizer
from typer.testing import CliRunner

from tunesmith.apps.cli.main import app
from tunesmith.apps.server.app import create_app
from tunesmith.core.errors import UserError
from tunesmith.data.conversation import Message
from tunesmith.generation.remote import RemoteModel
from tunesmith.run.evaluate import load_contestant
from tunesmith.run.export import export
from tunesmith.run.modelfile import find_around, write_modelfile
from tunesmith.run.probes import PROBES
from tunesmith.run.report import write_report
from tunesmith.run.serving_access import Access
from tunesmith.run.serving_start import Asked, begin
from tunesmith.run.train import train
from tunesmith.run.upload import make_parcel, send
from tunesmith.run.verify import ApiForm, Reference, verify
from tunesmith.templates.chat import ChatTemplate
from tunesmith.templates.library import read_template


@pytest.fixture(scope="module")
def run(make_recipe_in, tmp_path_factory):
    """The folder of a small LoRA run."""
    fast = {"steps": 8, "batch_size": 8, "learning_rate": 2e-2}
    recipe = make_recipe_in(tmp_path_factory.mktemp("run"), schedule=fast, evaluation={"every": 8})
    train(recipe)
    return recipe.output


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The run as a folder."""
    return export(str(run), tmp_path_factory.mktemp("export") / "model")


def test_a_gguf_file_of_a_run_is_that_run(run, tmp_path):
    pytest.importorskip("gguf")
    told = []
    written = export(str(run), tmp_path / "poet.gguf", quantization="f32", listener=told.append)
    (found,) = verify(str(run), [str(written)])

    assert (found.passed, found.kind, found.same) == (True, "exact", found.tokens)
    assert {"poet.gguf", "poet.json", "poet.Modelfile"} == {path.name for path in tmp_path.iterdir()}
    assert "FROM ./poet.gguf" in (tmp_path / "poet.Modelfile").read_text("utf-8")
    assert "poet.gguf is this model" in write_report(run).read_text("utf-8")


def test_a_gguf_file_in_fewer_bits_says_what_that_changed(run, tmp_path):
    pytest.importorskip("gguf")
    told = []
    written = export(str(run), tmp_path / "poet.gguf", quantization="q8_0", listener=told.append)
    (parity,) = json.loads(written.with_suffix(".json").read_text("utf-8"))["parity"]

    assert (parity["kind"], parity["prompts"]) == ("quantized", len(PROBES))
    assert parity["mean_difference"] > 0
    assert any("the weights were rounded to q8_0" in event["text"] for event in told)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("x.gguf", {"quantization": "q4_k_m"}, "GGUF files are written as f32, f16, bf16, q8_0 here, not q4_k_m"),
        ("x.gguf", {"quantization": "f16", "dtype": "float16"}, "of a GGUF file --quantization says the type"),
    ],
)
def test_what_gguf_cannot_be_is_refused_first(target, options, message, run, tmp_path):
    with pytest.raises(UserError, match=message):
        export(str(run), tmp_path / target, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_is_not_written_is_refused_with_the_way_on(saved_model, tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(UserError, match="models of the type gpt2 are not written as GGUF here; llama, mistral, qwen2"):
        export(str(saved_model("gpt2")), tmp_path / "x.gguf")


def test_another_model_is_said_to_be_another(run, exported, tmp_path):
    """One tensor that lost its sign is enough; the command ends with code 1, and the report says it."""
    wrong = tmp_path / "wrong"
    shutil.copytree(exported, wrong)
    weights = load_file(wrong / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= -1
    save_file(weights, wrong / "model.safetensors", metadata={"format": "pt"})
    right, other = verify(str(run), [str(exported), str(wrong)])
    done = CliRunner().invoke(app, ["verify", str(run), str(wrong), "--json"])

    assert (right.passed, right.kind, right.same) == (True, "exact", right.tokens)
    assert "log-probabilities differ by" in other.why
    assert (done.exit_code, json.loads(done.stdout)[0]["passed"]) == (1, False)
    assert "wrong is NOT this model any more" in (run / "report.html").read_text("utf-8")


class Api(RemoteModel):
    """An API that answers as a model does, with log-probabilities that are off by *off*."""

    def __new__(cls, reference, off):
        made = object.__new__(cls)
        object.__setattr__(made, "said", (reference, off))
        return made

    def __init__(self, reference, off):
        object.__setattr__(self, "url", "http://stand-in/v1")
        object.__setattr__(self, "name", "stand-in")

    def reply(self, messages, settings, tools=(), **more):
        reference, off = self.said
        index = PROBES.index(messages[0].content)
        tokenizer, ends = reference.template.tokenizer, reference.template.stop_ids
        own = list(reference.written[index])
        own = own[: next((at for at, token in enumerate(own) if token in ends), len(own))]
        content = [
            {"token": tokenizer.decode([token]), "logprob": said + off}
            for token, said in zip(own, reference.log_probabilities[index], strict=False)
        ]
        message = {"content": tokenizer.decode(own)}
        usage = {"prompt_tokens": len(reference.prompts[index])}
        return {"choices": [{"message": message, "logprobs": {"content": content}}], "usage": usage}


@pytest.mark.parametrize(("off", "passed"), [(0.01, True), (0.2, False)])
def test_an_api_is_held_against_the_run_by_what_it_tells(off, passed, run):
    reference = Reference.ask("run", load_contestant(str(run), "cpu"))
    found = ApiForm(Api(reference, off)).compare("api", reference)

    assert (found.passed, found.prompts, found.same) == (passed, len(PROBES), found.tokens) or not found.tokens
    assert found.mean_difference == pytest.approx(off, abs=1e-6)


def test_the_certificate_of_a_run_through_all_its_forms(run, exported, tmp_path):
    """Merged, rounded to 8 and to 4 bits, as GGUF, and behind our own server: prompts are the same in all of them."""
    pytest.importorskip("gguf")
    forms = [str(exported), str(export(str(run), tmp_path / "m.gguf"))]
    forms += [str(export(str(run), tmp_path / bits, quantization=bits)) for bits in ("int8", "nf4")]
    service = begin(Asked(model=str(run), device="cpu"), lambda event: None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(service, Access()), log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            found = verify(str(run), [*forms, f"http://127.0.0.1:{listening.getsockname()[1]}/v1#run"])
        finally:
            server.should_exit = True
            thread.join()

    assert [each.kind for each in found] == ["exact", "exact", "quantized", "quantized", "rounded"]
    assert [len(PROBES)] * 5 == [each.prompts for each in found]
    assert [each.why for each in found if each.kind != "quantized"] == ["", "", ""]
    assert found[4].mean_difference < 1e-3
    assert all(each.mean_difference < 0.5 for each in found)


def test_the_card_tells_data_settings_and_licence_and_no_path(run, exported):
    card = (exported / "README.md").read_text("utf-8")

    assert all(heading in card for heading in ("## Data", "## Settings", "## Evaluation", "## Licence", "vllm serve"))
    assert str(run.parent) not in card
    assert json.loads((exported / "tunesmith.json").read_text("utf-8"))["parity"][0]["passed"]


def test_a_template_that_only_surrounds_messages_is_translated(tokenizer):
    template = ChatTemplate(tokenizer)
    around = find_around(template)
    dialogue = [Message("system", "be brief"), Message("user", "hi"), Message("assistant", "yes"), Message("user", "?")]

    assert template.render(dialogue, prompt=True) == around.render(dialogue)
    assert around.user == ("<|im_start|>user\n", "<|im_end|>\n")
    text = write_modelfile(template, "./x.gguf", begins=False)
    assert (
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n{{ else if eq .Role "user" }}' in text
    )
    assert 'PARAMETER stop "<|im_end|>"' in text


@pytest.mark.parametrize(("name", "joined"), [("gemma3", True), ("llama3", False), ("qwen1_5", False)])
def test_other_templates_that_surround_messages_are_found(name, joined):
    """Gemma's system prompt stands in the first turn of the user, Llama's in a turn of its own; Qwen's is there anyway.

    Where text begins with a token, Ollama puts it there.
    """
    named = read_template(name)
    special = [token for token in named.stop if token != "eos"]
    template = ChatTemplate(byte_tokenizer(named.jinja, [*special, "<s>"], bos_token="<s>", eos_token=special[0]))
    around = find_around(template)
    dialogue = [Message("system", "be brief"), Message("user", "hi"), Message("assistant", "yes"), Message("user", "?")]

    assert template.render(dialogue, prompt=True) == around.render(dialogue)
    assert template.render(dialogue[1:], prompt=True) == around.render(dialogue[1:])
    assert joined == around.joined
    assert "<s>" not in write_modelfile(template, ".", begins=True)


def test_a_template_with_rules_of_its_own_is_not_translated(tokenizer):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ (m.content | upper if loop.index > 3 else m.content) }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    with pytest.raises(UserError, match="does more than put text around messages"):
        find_around(ChatTemplate(other))


def test_nothing_is_sent_but_what_was_listed(exported, monkeypatch):
    """A stand-in for the Hub; whoever has no token, or is refused, is told so without it."""
    import huggingface_hub

    sent = []

    class Hub:
        def __init__(self, token):
            assert token == "hf_secret"

        def create_repo(self, name, **options):
            if name == "me/taken":
                raise ValueError("403 for hf_secret")
            sent.append((name, options["private"]))

        def upload_folder(self, **options):
            sent.append(options["allow_patterns"])

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    parcel = make_parcel(exported, "hub:me/poet")
    listed = CliRunner().invoke(app, ["upload", str(exported), "--to", "hub:me/poet"])

    assert "would send" in listed.stdout
    assert sent == []
    assert send(parcel) == "https://huggingface.co/me/poet"
    assert [("me/poet", True), list(parcel.files)] == sent
    assert "tunesmith.json" in parcel.left
    assert "model.safetensors" in parcel.files
    with pytest.raises(UserError, match="was not sent: 403 for …"):
        send(make_parcel(exported, "hub:me/taken"))


def test_a_run_is_not_sent(run, exported):
    with pytest.raises(UserError, match="is a run: it holds data and paths of yours"):
        make_parcel(run, "hub:me/poet")
    with pytest.raises(UserError, match="a folder of this machine, as its base; write the base's name on the hub"):
        make_parcel(run / "weights", "hub:me/poet")
    with pytest.raises(UserError, match="write hub:OWNER/NAME or modelscope:OWNER/NAME"):
        make_parcel(exported, "me/poet")

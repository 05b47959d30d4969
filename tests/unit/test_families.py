"""The table of families: names resolve, architectures and templates exist, models come from where it is asked."""

import json
import sys
from types import ModuleType

import pytest

from tunesmith.core.errors import UserError
from tunesmith.models import hub
from tunesmith.models.families import families, family_of, hub_name, short_names, size_of
from tunesmith.models.hub import locate, modelscope_name, name_notices
from tunesmith.models.known_shapes import known_shapes
from tunesmith.models.schema import Model
from tunesmith.run.catalogue import catalogue
from tunesmith.templates.library import template_names

MODELS = [(family, model) for family in families() for model in family.models]
# ModelScope calls these otherwise than by another owner
RENAMED = {"Llama 2", "Yuan 2"}


def test_there_are_enough():
    assert len(families()) >= 120


def test_names_stand_once():
    names = [model for _, model in MODELS]
    short = [model.rpartition("/")[2].lower() for model in names]

    assert len(set(names)) == len(names)
    assert len(set(short)) == len(short)
    assert len({family.name for family in families()}) == len(families())


def test_names_are_those_of_repositories():
    assert [model for _, model in MODELS if model.count("/") != 1 or " " in model] == []


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_family_is_whole(family):
    assert family.models
    assert not family.base or family.template, "base models need a template"
    assert not family.template or family.base, "models that chat have a template"
    assert family.template in ("", *template_names())
    assert family.context is None or family.context >= 1024
    for name in family.modelscope:
        owners = {model.partition("/")[0] for model in family.models}
        assert name in owners or name in family.models


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_modelscope_has_the_same_model(family):
    """A table of names copied together easily names another model: two of our sources do."""
    for model in family.models:
        there = family.on_modelscope(model)
        if there and family.name not in RENAMED:
            assert there.partition("/")[2].lower() == model.partition("/")[2].lower()


def test_architectures_are_those_of_the_installed_transformers():
    """An older version lacks some of the newest."""
    from transformers import CONFIG_MAPPING, __version__

    if tuple(map(int, __version__.split(".")[:2])) < (5, 23):
        pytest.skip(f"the table is for transformers from 5.23 on, this is {__version__}")

    missing = [f.name for f in families() if not f.remote_code and f.model_type not in CONFIG_MAPPING]
    known = [f.name for f in families() if f.remote_code and f.model_type in CONFIG_MAPPING]

    assert missing == []
    assert known == []


def test_known_shapes_are_those_of_known_models():
    for name, shape in known_shapes().items():
        family = family_of(name) or family_of(f"{name}-hf")
        if family is not None:
            assert family.model_type == shape["model_type"], name


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B-Base"),
        ("llama-3.1-8b-instruct", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("gemma-3-4b-it", "google/gemma-3-4b-it"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("owner/qwen3-0.6b", "owner/qwen3-0.6b"),
        ("nothing-7b", "nothing-7b"),
    ],
)
def test_a_short_name_stands_for_a_name_on_the_hub(short, full):
    assert hub_name(short) == full


def test_a_folder_comes_before_a_short_name(tmp_path, monkeypatch):
    (tmp_path / "qwen3-0.6b").mkdir()
    monkeypatch.chdir(tmp_path)

    assert hub_name("qwen3-0.6b") == "qwen3-0.6b"
    assert list(name_notices("qwen3-0.6b", "auto")) == []


def test_a_short_name_is_no_problem_and_is_told():
    assert list(Model(path="qwen3-0.6b").check()) == []
    assert list(name_notices("qwen3-0.6b", "huggingface")) == [
        "model: qwen3-0.6b is Qwen/Qwen3-0.6B, of the family Qwen3 (`tunesmith list models qwen3-0.6b`)"
    ]


def test_an_unknown_short_name_gets_the_nearest():
    (problem,) = Model(path="qwen3-0.6").check()

    assert problem.path == "model.path"
    assert problem.hint == "did you mean 'qwen3-0.6b'?"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen3-0.6B", "0.6B"),
        ("Qwen/Qwen3-30B-A3B-Base", "30B-A3B"),
        ("Qwen/Qwen1.5-MoE-A2.7B", "A2.7B"),
        ("mistralai/Mixtral-8x22B-v0.1", "8x22B"),
        ("internlm/internlm2-1_8b", "1.8B"),
        ("HuggingFaceTB/SmolLM2-135M", "135M"),
        ("microsoft/Phi-3-mini-4k-instruct", "mini"),
        ("microsoft/phi-2", ""),
    ],
)
def test_a_size_is_what_the_name_says(name, size):
    assert size_of(name) == size


def test_a_folder_called_like_a_model_has_its_family_if_it_has_its_architecture(tmp_path):
    folder = tmp_path / "Qwen2.5-7B"
    folder.mkdir()
    for kind, expected in (("qwen2", "Qwen2.5"), ("llama", None)):
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        found = family_of(str(folder))

        assert (found and found.name) == expected


def test_families_are_known_by_either_hub():
    assert family_of("LLM-Research/Meta-Llama-3-8B").name == "Llama 3"
    assert family_of("meta-llama/meta-llama-3-8b").name == "Llama 3"
    assert family_of("someone/else") is None


def test_the_list_shows_families_and_finds_models():
    whole = catalogue("models")["models"]
    found = catalogue("models", "qwen3-0.6b")["models"]

    assert len(whole) == len(families())
    assert whole["Qwen3"].startswith("0.6B 1.7B 4B 8B 14B 32B; base and chat; qwen3; template for base models: qwen3")
    assert list(found) == ["Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B"]
    assert "ModelScope: LLM-Research/Meta-Llama-3-8B" in catalogue("models", "llama-3-8b")["models"].popitem()[1]


def test_the_list_of_everything_leaves_the_models_out():
    assert "models" not in catalogue()


def test_other_lists_can_be_searched_too():
    assert next(iter(catalogue("templates", "chatml")["templates"])) == "chatml"
    with pytest.raises(UserError, match=r"holds 'qwem3-0\.6b' \(did you mean 'qwen3-0\.6b'\?\)"):
        catalogue("models", "qwem3-0.6b")


@pytest.fixture
def modelscope(monkeypatch):
    """A stand-in for the package, which writes down what it was asked for."""
    asked = []

    class NotExistError(Exception):
        """As the package's."""

    def snapshot_download(name, *, revision, ignore_patterns):
        if name == "someone/nothing":
            raise NotExistError("no such model\nat all")
        asked.append((name, revision, "*.safetensors" in ignore_patterns))
        return f"/cache/{name}"

    package, inner, errors = (ModuleType(n) for n in ("modelscope", "modelscope.hub", "modelscope.hub.errors"))
    package.snapshot_download, errors.NotExistError = snapshot_download, NotExistError
    for module in (package, inner, errors):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    hub._from_modelscope.cache_clear()
    yield asked
    hub._from_modelscope.cache_clear()


def test_models_come_from_modelscope_where_the_recipe_says_so(modelscope):
    assert locate("llama-3-8b", "modelscope", weights=False) == "/cache/LLM-Research/Meta-Llama-3-8B"
    assert locate("meta-llama/Meta-Llama-3-8B", "modelscope", "v1") == "/cache/LLM-Research/Meta-Llama-3-8B"
    assert locate("someone/else", "modelscope") == "/cache/someone/else"
    assert modelscope == [
        ("LLM-Research/Meta-Llama-3-8B", None, True),
        ("LLM-Research/Meta-Llama-3-8B", "v1", False),
        ("someone/else", None, False),
    ]


def test_a_model_is_asked_for_once(modelscope):
    for _ in range(3):
        locate("qwen3-0.6b", "modelscope")

    assert len(modelscope) == 1


def test_models_come_from_modelscope_where_the_environment_says_so(modelscope, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HUB", "modelscope")

    assert locate("qwen3-0.6b") == "/cache/Qwen/Qwen3-0.6B"
    assert locate("qwen3-0.6b", "huggingface") == "Qwen/Qwen3-0.6B"
    assert list(name_notices("Qwen/Qwen3-0.6B", "auto")) == [
        "model: Qwen/Qwen3-0.6B is downloaded from ModelScope as Qwen/Qwen3-0.6B, because TUNESMITH_HUB says so"
    ]


def test_a_hub_that_there_is_not_is_refused(monkeypatch):
    monkeypatch.setenv("TUNESMITH_HUB", "openmind")

    with pytest.raises(UserError, match="TUNESMITH_HUB: there is no hub 'openmind'"):
        locate("qwen3-0.6b")


def test_what_is_not_on_modelscope_is_told(modelscope):
    name = next(model for family, model in MODELS if not family.on_modelscope(model))

    with pytest.raises(UserError, match="is not known to be on ModelScope"):
        modelscope_name(name)
    with pytest.raises(UserError, match=r"cannot download someone/nothing from ModelScope: no such model$"):
        locate("someone/nothing", "modelscope")


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    hub._from_modelscope.cache_clear()

    with pytest.raises(UserError, match="modelscope is not installed; pip install modelscope"):
        locate("qwen3-0.6b", "modelscope")


def test_every_short_name_leads_to_a_model():
    assert set(short_names().values()) == {model for _, model in MODELS}

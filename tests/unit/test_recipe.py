"""A recipe is read as written, changed as asked, and refused with every mistake named where it stands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import RecipeError, UserError
from tunesmith.core.registry import Block
from tunesmith.recipe import Recipe, read_recipe
from tunesmith.recipe.document import Document, read_document, write_values
from tunesmith.recipe.places import Place
from tunesmith.recipe.read import recipe_from_values

GOLDEN = Path(__file__).parent / "golden"
SHIPPED = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
HEAVY = ("torch", "transformers", "peft", "datasets", "pyarrow", "accelerate")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in an empty folder with one data file."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "1+1?", "completion": "2"}\n', encoding="utf-8")
    return tmp_path


def read(text: str, *overrides: str) -> Recipe:
    """Read a recipe with these lines besides the required ones."""
    required = {"model": "owner/name", "data": "{train: rows.jsonl}", "output": "run"}
    lines = [f"{name}: {value}" for name, value in required.items() if f"\n{name}:" not in f"\n{text}"]
    Path("recipe.yaml").write_text("\n".join([text, *lines]), encoding="utf-8")
    return read_recipe(Path("recipe.yaml"), overrides)


def refusal(text: str, *overrides: str) -> str:
    """Return what is said about a recipe that cannot be used."""
    with pytest.raises(UserError) as caught:
        read(text, *overrides)
    return str(caught.value)


def golden_overrides(path: Path) -> list[str]:
    """Return the overrides that the first line of a golden recipe asks for."""
    first = path.read_text("utf-8").partition("\n")[0]
    return first.removeprefix("# overrides: ").split(" | ") if first.startswith("# overrides: ") else []


# --- what is refused, word by word


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bad_recipe_is_explained_word_by_word(path, monkeypatch):
    """To accept changed words: python tests/unit/test_recipe.py, then read the difference."""
    monkeypatch.chdir(GOLDEN)
    with pytest.raises(UserError) as caught:
        read_recipe(Path(path.name), golden_overrides(path))

    assert path.with_suffix(".txt").read_text("utf-8") == f"{caught.value}\n"


def test_every_golden_text_has_its_recipe():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {path.stem for path in GOLDEN.glob("*.yaml")}


def test_problems_are_also_data_for_the_web_doors(here):
    with pytest.raises(RecipeError) as caught:
        read("seed: -1", "schedule.epochs=0")

    assert caught.value.as_data() == [
        {"path": "seed", "message": "should be at least 0, found -1", "where": "recipe.yaml:1", "hint": ""},
        {
            "path": "schedule.epochs",
            "message": "should be more than 0, found 0",
            "where": "override 'schedule.epochs=0'",
            "hint": "",
        },
    ]


@pytest.mark.parametrize("name", sorted(Recipe.model_fields))
@pytest.mark.parametrize("value", [None, 3, -1.5, True, "?", "a: b", [], [1], [[]], {}, {"x": 1}, {"type": 3}, {1: 2}])
def test_no_value_of_any_setting_ends_in_a_traceback(here, name, value):
    values = {"model": "owner/name", "data": {"train": "rows.jsonl"}, "output": "run", name: value}
    problems = []
    try:
        recipe_from_values(values)
    except RecipeError as error:
        problems = error.problems

    assert all(problem.path and problem.message for problem in problems)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: \xff", "recipe.yaml: not UTF-8 text (byte 7); save the recipe as UTF-8"),
        ("model: x".encode("utf-16"), "recipe.yaml: not UTF-8 text (byte 0); save the recipe as UTF-8"),
        (
            b"a: \x07",
            "recipe.yaml:1: not valid YAML: a character (#x0007) that text cannot have",
        ),
        (b"a" * 300_000, "recipe.yaml is too large for a recipe (300,000 bytes); is it a data file?"),
        (b"", "recipe.yaml: is empty; a recipe needs at least model, data and output"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(here, content, expected):
    Path("recipe.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_recipe(Path("recipe.yaml"))

    assert str(caught.value) == expected


def test_a_missing_file_is_refused_with_the_one_that_was_meant(here):
    Path("couplets.yaml").write_text("model: x", encoding="utf-8")
    with pytest.raises(UserError, match=r"no such recipe: couplet\.yml \(did you mean 'couplets\.yaml'\?\)"):
        read_recipe(Path("couplet.yml"))


def test_a_folder_is_refused_and_a_runs_folder_can_be_resumed(here):
    Path("run").mkdir()
    with pytest.raises(UserError, match=r"^run is a folder; give a recipe file$"):
        read_recipe(Path("run"))
    Path("run/plan.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="to go on with this run: tunesmith resume run"):
        read_recipe(Path("run"))


def test_a_file_inside_a_file_is_refused(here):
    with pytest.raises(UserError, match=r"rows\.jsonl/x\.yaml: cannot be read: Not a directory"):
        read_recipe(Path("rows.jsonl/x.yaml"))


def test_a_rule_between_blocks_is_reported_at_its_line(here):
    said = refusal("evaluation:\n  scores:\n  - chrf\n  patience: 3")

    assert said.splitlines()[::2] == [
        "recipe.yaml:2: evaluation.scores: need validation data",
        "recipe.yaml:4: evaluation.patience: needs validation data to watch",
    ]


# --- how YAML is read


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1e-4", 1e-4),
        ("1.5E3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("+3", 3),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0", 0),
        ("0123", "0123"),
        ("1:30", "1:30"),
        ("2025-01-02", "2025-01-02"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("[1, no, 1e-3]", [1, "no", 1e-3]),
        ('{"a": [1, null], b: c}', {"a": [1, None], "b": "c"}),
        ("春风", "春风"),
        ("=", "="),
        ("a=b", "a=b"),
    ],
)
def test_a_value_is_read_as_it_looks_in_file_and_override_alike(here, written, expected):
    in_file = read(f"template: {{arguments: {{x: {written}}}}}").template.arguments["x"]
    in_override = read("", f"template.arguments.x={written}").template.arguments["x"]

    assert (in_file, in_override) == (expected, expected)
    assert (type(in_file), type(in_override)) == (type(expected), type(expected))


@pytest.mark.parametrize("text", ["runs/a #1", "a: b", "- a", "*a", "!a", "@a", "%a", "`a`", "a, b", "|", "a\\nb", "#"])
def test_an_override_is_plain_text_unless_it_begins_with_a_bracket_or_quote(here, text):
    assert read("", f"template.arguments.x={text}").template.arguments["x"] == text


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé春 '\"#:{[-1e"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab:#春", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(json_values)
def test_any_json_can_be_an_override(value):
    document = Document({}, {(): "nowhere"})
    document.apply(f"template.arguments={json.dumps(value, ensure_ascii=False)}")

    assert document.problems == []
    assert document.values == {"template": {"arguments": value}}


def test_anchors_merges_and_aliases_work_and_do_not_share_what_an_override_changes(here):
    recipe = read(
        "data: {train: &rows {path: rows.jsonl, take: 1}, validation: {<<: *rows, take: 2}}", "data.train.0.take=3"
    )

    assert [recipe.data.train[0].take, recipe.data.validation[0].take] == [3, 2]


def test_windows_line_endings_and_a_byte_order_mark_are_read(here):
    text = "model: owner/name\r\ndata:\r\n  train: rows.jsonl\r\noutput: run\r\nseed: 7\r\n"
    Path("recipe.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())

    assert read_recipe(Path("recipe.yaml")).seed == 7


def test_paths_may_have_spaces_and_chinese_characters(here):
    Path("我的 数据.jsonl").write_bytes(Path("rows.jsonl").read_bytes())
    recipe = read("data: {train: 我的 数据.jsonl}\noutput: 结果 1")

    assert (recipe.data.train[0].path, recipe.output) == ("我的 数据.jsonl", Path("结果 1"))


# --- overrides


@pytest.mark.parametrize(
    ("text", "overrides", "place", "expected"),
    [
        ("", ["schedule.epochs=1"], "schedule.epochs", 1.0),
        ("schedule:", ["schedule.epochs=1"], "schedule.epochs", 1.0),
        ("schedule: {epochs: 5, steps: 3}", ["schedule.steps="], "schedule.steps", None),
        ("", ["schedule.epochs=1", "schedule.epochs=2"], "schedule.epochs", 2.0),
        ("", ["method.rank=8"], "method.rank", 8),
        ("method: lora", ["method.rank=8"], "method.rank", 8),
        ("method: {rank: 4, alpha: 7}", ["method.rank=8"], "method.alpha", 7.0),
        ("method: {type: lora, rank: 4}", ["method=freeze", "method.last=1"], "method.last", 1),
        ("method: {type: lora, rank: 4}", ["method={type: freeze, last: 1}"], "method.last", 1),
        ("", ["method.targets.0=q_proj"], "method.targets", ["q_proj"]),
        ("", ["method.targets=[q_proj, v_proj]"], "method.targets", ["q_proj", "v_proj"]),
        (
            "template: chatml",
            ["template.arguments.enable_thinking=false"],
            "template.arguments",
            {"enable_thinking": False},
        ),
        ("template: chatml", ["template.arguments.x=1"], "template.name", "chatml"),
        ("model: {scratch: {}}\nmethod: full", ["model.scratch.sizes.x=32"], "model.scratch.sizes", {"x": 32}),
        ("model: owner/name", ["model.revision=main"], "model.path", "owner/name"),
        ("model: owner/name", ["model.revision=0123456"], "model.revision", "0123456"),
        ("data: {train: rows.jsonl}", ["data.train.0=more.jsonl"], "data.train.0.path", "more.jsonl"),
        ("data: {train: rows.jsonl}", ["data.train.0.take=1"], "data.train.0.take", 1),
        ("data: {train: [rows.jsonl]}", ["data.train.1=more.jsonl"], "data.train.1.path", "more.jsonl"),
        ("data: {train: rows.jsonl}", ["data.validation.0=more.jsonl"], "data.validation.0.path", "more.jsonl"),
        ("data: {train: rows.jsonl}", ["data.train=[more.jsonl, rows.jsonl]"], "data.train.1.path", "rows.jsonl"),
        ("", ["data.validation=more.jsonl", "evaluation.scores=chrf"], "evaluation.scores.0.word_order", 0),
        (
            "data: {train: rows.jsonl, validation: more.jsonl}",
            ["evaluation.scores.0.type=chrf"],
            "evaluation.scores.0.word_order",
            0,
        ),
        ("output: run", [" output = other run "], "output", Path("other run")),
    ],
)
def test_an_override_sets_one_place(here, text, overrides, place, expected):
    Path("more.jsonl").write_bytes(Path("rows.jsonl").read_bytes())
    found = read(text, *overrides)
    for key in place.split("."):
        found = found[int(key)] if key.isdigit() else getattr(found, key)

    assert expected == found


def test_a_mistake_in_what_an_override_replaced_is_gone(here):
    assert read("schedule: {epochs: many}", "schedule={steps: 3}").schedule.steps == 3


def test_a_mistake_beside_an_override_is_still_the_files(here):
    said = refusal("schedule:\n  epochs: many\n  steps: 1", "schedule.steps=2")

    assert said == "recipe.yaml:2: schedule.epochs: should be a number, found 'many'"


def test_a_mistake_inside_what_an_override_replaced_is_the_overrides(here):
    said = refusal("method:\n  type: lora\n  rank: 4", "method={type: lora, rank: x}")

    assert said == "override 'method={type: lora, rank: x}': method.rank: should be a whole number, found 'x'"


# --- the recipe itself


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_fits_the_schema(path):
    """Its data may not be there yet, so only what it says is checked."""
    recipe = Recipe.model_validate(read_document(path).values)

    assert recipe.data.train


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("exclude_defaults", [False, True])
def test_a_recipe_reads_back_as_it_was_written(path, exclude_defaults, here):
    recipe = Recipe.model_validate(read_document(path).values)
    values = recipe.model_dump(mode="json", exclude_defaults=exclude_defaults)
    Path("copy.yaml").write_text(write_values(values), encoding="utf-8")

    assert Recipe.model_validate(json.loads(json.dumps(values))) == recipe
    assert Recipe.model_validate(read_document(Path("copy.yaml")).values) == recipe


words = st.sampled_from(["a", "no", "1e-4", "0123", "null", "true", "a: b", "#", "春风 绿", "2025-01-02", "~", " "])


@settings(max_examples=40, deadline=None)
@given(
    words,
    st.floats(1e-12, 1e12),
    st.integers(0, 2**32 - 1),
    st.dictionaries(words, words | st.integers() | st.booleans()),
)
def test_any_recipe_reads_back_from_yaml(tmp_path_factory, word, number, seed, arguments):
    values = {"model": word, "data": {"train": [word]}, "output": word, "seed": seed % 2**32}
    values |= {"schedule": {"learning_rate": number}, "template": {"arguments": arguments}}
    recipe = Recipe.model_validate(values)
    path = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    text = write_values(recipe.model_dump(mode="json"))
    path.write_text(text, encoding="utf-8")

    assert Recipe.model_validate(read_document(path).values) == recipe
    assert Recipe.model_validate(yaml.safe_load(text)) == recipe


def blocks(place: Place) -> list[type[Block]]:
    """Return every block below *place*, those of all plug-ins included."""
    found = []
    for kind, registry in place.alternatives:
        if registry is not None:
            found += [registry.get(name) for name in registry.names()]
        elif isinstance(kind, type) and issubclass(kind, Block):
            found.append(kind)
        elif place.is_list:
            found += blocks(place.child("0", []))
    inside = [Place(setting.rebuild_annotation()) for block in found for setting in block.model_fields.values()]
    return [*found, *(block for each in inside for block in blocks(each))]


@pytest.mark.parametrize("block", dict.fromkeys(blocks(Place(Recipe))), ids=lambda block: block.__name__)
def test_every_setting_is_described(block):
    undescribed = [
        name
        for name, setting in block.model_fields.items()
        if not (setting.description or any(inner.__doc__ for inner in blocks(Place(setting.rebuild_annotation()))))
    ]

    assert block.__doc__
    assert undescribed == []


@pytest.mark.parametrize("block", dict.fromkeys(blocks(Place(Recipe))), ids=lambda block: block.__name__)
def test_nothing_can_be_written_after_reading(block):
    assert (block.model_config["frozen"], block.model_config["extra"]) == (True, "forbid")


def test_a_group_without_a_type_is_of_the_usual_one(here):
    recipe = read("method: {rank: 4}\noptimizer: {beta2: 0.95}")

    assert recipe.method.type_name() == "lora"
    assert recipe.optimizer.type_name() == "adamw"


def test_a_form_is_checked_as_a_file_is(here):
    with pytest.raises(RecipeError) as caught:
        recipe_from_values({"model": "x/y", "data": {"train": "rows.jsonl"}, "output": "run", "sede": 1}, "the form")

    assert str(caught.value) == "the form: sede: no such setting\n    hint: did you mean 'seed'?"


# --- how long it takes


@pytest.mark.parametrize("name", ["unknown_settings", "cannot_work"])
def test_a_bad_recipe_is_reported_at_once_and_without_heavy_libraries(name):
    code = f"""
import sys
from tunesmith.apps.cli import main
sys.argv = ["tunesmith", "train", "{name}.yaml"]
try:
    main()
except SystemExit as end:
    print(end.code, [library for library in {HEAVY} if library in sys.modules])
"""
    seconds = []
    while not seconds or (min(seconds) >= 1 and len(seconds) < 3):  # a neighbour on the same core makes it slower
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], cwd=GOLDEN, capture_output=True, text=True, check=False)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)

    assert done.stdout == "2 []\n"
    assert done.stderr == "error:\n" + (GOLDEN / f"{name}.txt").read_text("utf-8")
    # seconds of computing, whatever else the machine does: 0.5 where this was written
    assert min(seconds) < 1


def _write_golden() -> None:
    os.chdir(GOLDEN)
    for path in sorted(Path().glob("*.yaml")):
        try:
            read_recipe(path, golden_overrides(path))
        except UserError as error:
            path.with_suffix(".txt").write_text(f"{error}\n", encoding="utf-8")


if __name__ == "__main__":
    _write_golden()

"""Cards and sizes as people write them, defaults with their reasons, and the seeds of failure that numbers show."""

import json

import pytest

from tunesmith.core.errors import UserError
from tunesmith.methods import METHODS
from tunesmith.models.known_shapes import known_name, known_shapes
from tunesmith.recipe.read import recipe_from_values
from tunesmith.run.cards import CARDS, GIB, Size, find_card, nameless_card, read_size
from tunesmith.run.defaults import _MEASURED_RATES, Facts, method_rate, seeds_of_failure, usual_rate


@pytest.fixture
def make_recipe(tmp_path):
    """Return a function from changed blocks to a recipe of a model on the Hub."""
    (tmp_path / "data.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]), "utf-8")
    usual = {"model": "some/model", "data": str(tmp_path / "data.json"), "output": str(tmp_path / "run")}

    def make(**blocks):
        values = {**usual, "data": {"train": usual["data"]}, **blocks}
        if isinstance(values["model"], dict):
            values.setdefault("method", "full")
        return recipe_from_values(values)

    return make


@pytest.mark.parametrize("name", ["4090", "RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", " 4090 "])
def test_a_card_is_found_however_it_is_spelt(name):
    assert find_card(name) is CARDS["4090"]


@pytest.mark.parametrize(("name", "key"), [("A100 80GB", "a100-80"), ("a100_40", "a100-40"), ("Mac 32", "mac-32")])
def test_a_size_belongs_to_the_name(name, key):
    assert find_card(name) is CARDS[key]


@pytest.mark.parametrize("name", ["nvidia", "", "a100", "banana"])
def test_what_is_no_card_is_told_which_there_are(name):
    with pytest.raises(UserError, match=r"--card: no card is called .* have 3090, 4090"):
        find_card(name)


def test_a_card_of_several_sizes_asks_which():
    with pytest.raises(UserError, match="did you mean a100-40 or a100-80"):
        find_card("A100")


@pytest.mark.parametrize(
    ("text", "size", "of_cpu"),
    [
        ("24GB", 24 * GIB, False),
        ("24 gib", 24 * GIB, False),
        ("0.5g", GIB // 2, False),
        ("24GB ram", 24 * GIB, True),
        ("CPU 24 GB", 24 * GIB, True),
        ("ram:512MB", GIB // 2, True),
        ("ram", None, True),
        ("cpu", None, True),
    ],
)
def test_sizes_are_read_as_memory_is_sold(text, size, of_cpu):
    """A size alone may be a card's; the words say that it is the processor's."""
    assert read_size(text) == Size(size, of_cpu=of_cpu)


def test_a_nameless_card_is_one_of_its_size():
    """A program sees a little less than is printed on the box, and nothing is promised about its speed."""
    card, known = nameless_card(24 * GIB), CARDS["3090"]

    assert card.memory_bytes == pytest.approx(known.memory_bytes, rel=0.01)
    assert card.teraflops == min(each.teraflops for each in CARDS.values() if each.device == "cuda")
    assert known.name in card.source


@pytest.mark.parametrize(
    ("text", "wanted"), [("24", "24 of what. write 24GB"), ("banana", "no card"), ("1MB", "less than any run needs")]
)
def test_a_careless_size_is_told_what_would_be_right(text, wanted):
    with pytest.raises(UserError, match=f"--fit: .*{wanted}"):
        read_size(text)


def test_every_card_says_where_its_figures_are_from():
    for card in CARDS.values():
        assert card.source
        assert card.memory_bytes > 0 < card.teraflops


def test_the_rate_follows_method_and_size(make_recipe):
    lora, full = make_recipe(method="lora"), make_recipe(method="full")

    assert usual_rate(lora, 8_000_000_000)[0] == pytest.approx(10 * usual_rate(full, 8_000_000_000)[0])
    assert usual_rate(lora, 70_000_000_000)[0] == usual_rate(lora, 8_000_000_000)[0] / 2
    assert "QLoRA" in usual_rate(lora, 70_000_000_000)[1]


def test_every_method_has_a_sane_rate():
    """Between full fine-tuning's and that of circulant adapters; no rate is for a method that is unknown."""
    rates = {name: method_rate(METHODS.get(name)) for name in METHODS.names()}

    assert set(rates) >= set(_MEASURED_RATES)
    assert all(1e-5 <= rate <= 0.5 for rate in rates.values())
    assert rates["lora"] == pytest.approx(10 * rates["full"])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B"),
        ("google/gemma-2-9b-it", "google/gemma-2-9b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("Qwen/Qwen3-8B-VL", None),
    ],
)
def test_a_known_shape_is_found_by_name(path, name):
    assert known_name(path) == name


def test_known_names_are_known_as_themselves():
    assert [known_name(name) for name in known_shapes()] == list(known_shapes())


def test_weights_from_nothing_learn_faster(make_recipe):
    rate, why = usual_rate(make_recipe(model={"scratch": {}}), 100_000_000)

    assert rate == 6e-4
    assert "nothing" in why


SOUND = Facts(examples=5000, trained_tokens=500_000, steps=900, learning_rate=2e-4, parameters=10**9, trained=10**7)


def test_a_sound_run_is_told_nothing(make_recipe):
    assert list(seeds_of_failure(make_recipe(method="lora"), SOUND)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 1e-2}, "50 times what is usual for lora"),
        ({"trained_tokens": 2000}, "rank 16 is more than so little data supports"),
        ({"trained_tokens": 10**8}, "more than 10,000,000 adapter weights can hold"),
        ({"examples": 100, "steps": 200}, "32 passes over 100 examples"),
        ({"examples": 30, "steps": 6}, "only 6 optimizer steps"),
    ],
)
def test_each_seed_of_failure_is_named(make_recipe, change, told):
    (notice,) = seeds_of_failure(make_recipe(method="lora"), Facts(**{**vars(SOUND), **change}))

    assert told in notice

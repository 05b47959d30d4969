"""What every plug-in promises: a new file is covered the moment it exists."""

import importlib
import json
import re
from importlib.metadata import EntryPoint

import pytest

from tunesmith.core.errors import UnknownNameError, UserError
from tunesmith.core.registry import Registry, Spec
from tunesmith.methods import METHODS, Method
from tunesmith.run.catalogue import REGISTRIES, catalogue, settings

ALL = [(registry, name) for registry in REGISTRIES.values() for name in registry.names()]
every_plugin = pytest.mark.parametrize(("registry", "name"), ALL, ids=[f"{r.kind}-{n}" for r, n in ALL])
every_registry = pytest.mark.parametrize("registry", REGISTRIES.values(), ids=list(REGISTRIES))


def required(plugin: type[Spec]) -> list[str]:
    return [name for name, setting in plugin.model_fields.items() if setting.is_required()]


def subclasses(kind: type) -> list[type]:
    return [each for direct in kind.__subclasses__() for each in (direct, *subclasses(direct))]


@every_plugin
def test_it_is_named_by_its_file(registry, name):
    plugin = registry.get(name)

    assert plugin.type_name() == name
    assert plugin.__module__ == f"{registry.package}.{name}"
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)


@every_plugin
def test_it_is_documented(registry, name):
    """The file says what it is, the class what it does; each in a sentence of its own."""
    plugin = registry.get(name)
    module = importlib.import_module(plugin.__module__)
    about, does = (module.__doc__ or "").partition("\n")[0], (plugin.__dict__.get("__doc__") or "").strip()

    assert re.search(r"[\w)`][.!?]$", about)
    assert does.endswith(".")
    assert about != does


@every_plugin
def test_every_setting_is_described(registry, name):
    fields = registry.get(name).model_fields
    poor = [
        key
        for key, field in fields.items()
        if not re.search(r"^[\W\d]*[A-Z`\w].{8,}[.]$", field.description or "", re.DOTALL)
    ]

    assert poor == []


@every_plugin
def test_it_is_final(registry, name):
    """What two plug-ins share stands in an abstract class in a file of its own."""
    assert [c for c in registry.get(name).__subclasses__() if c.__module__.startswith("tunesmith.")] == []


@every_registry
def test_no_plugin_hides_in_a_file_of_another_name(registry):
    for name in registry.names():
        registry.get(name)
    public = {f"{registry.package}.{name}" for name in registry.names()}
    ours = [kind for kind in subclasses(registry.base) if kind.__module__.startswith(registry.package)]
    others = [kind.__name__ for kind in ours if kind.__module__ not in public]

    assert [name for name in others if not name.startswith("Abstract")] == []


@every_registry
def test_every_file_holds_one_plugin(registry):
    """``get`` fails where a file holds none, or two."""
    assert [registry.get(name).type_name() for name in registry.names()] == registry.names()


@every_plugin
def test_it_is_made_from_its_name_where_it_needs_no_settings(registry, name):
    plugin = registry.get(name)
    if required(plugin):
        pytest.skip(f"needs {', '.join(required(plugin))}")

    assert registry.parse(name) == plugin() == registry.parse({"type": name})


@every_plugin
def test_it_reads_back_as_it_was_written(registry, name):
    plugin = registry.get(name)
    if required(plugin):
        pytest.skip(f"needs {', '.join(required(plugin))}")
    written = json.loads(plugin().model_dump_json())

    assert written["type"] == name
    assert registry.parse(written) == plugin()


@every_plugin
def test_it_has_a_json_schema_with_every_setting(registry, name):
    plugin = registry.get(name)
    schema = plugin.model_json_schema()

    assert set(schema.get("properties", {})) == set(plugin.model_fields)
    assert all(each["description"] for each in schema.get("properties", {}).values())
    assert schema["additionalProperties"] is False
    json.dumps(schema)


@every_plugin
def test_unknown_settings_and_later_changes_are_refused(registry, name):
    plugin = registry.get(name)

    assert (plugin.model_config["extra"], plugin.model_config["frozen"]) == ("forbid", True)


@every_plugin
def test_its_name_can_be_misspelt_and_is_then_suggested(registry, name):
    with pytest.raises(UnknownNameError) as caught:
        registry.get(f"{name}x")

    assert f"unknown {registry.kind} '{name}x' (did you mean " in str(caught.value)
    assert name in str(caught.value).partition("; have ")[2].split(", ")


@every_registry
def test_listing_names_imports_nothing_and_agrees_with_what_is_listed(registry):
    assert list(registry.summaries()) == registry.names()
    assert all(registry.summaries().values())


@every_registry
@pytest.mark.parametrize("value", [3, None, [], 1.5, True])
def test_what_is_neither_name_nor_group_is_left_to_pydantic(registry, value):
    assert registry.parse(value) is value


@pytest.mark.parametrize("value", [{"type": None}, {"type": 3}, {"type": []}])
def test_a_type_that_is_no_name_is_refused(value):
    with pytest.raises(UnknownNameError, match=r"^needs a type, one of adalora, .*freeze, full, .*lora"):
        METHODS.parse(value)


# --- plug-ins of other distributions


class Elsewhere(Method):
    """Train nothing."""


Elsewhere.__module__ = "somebody.elsewhere"


@pytest.fixture
def installed(monkeypatch):
    """Install entry points: name -> object."""

    def install(**objects: object) -> Registry:
        for name, found in objects.items():
            monkeypatch.setattr(EntryPoint, "load", lambda self, found=found: found)
            entry = EntryPoint(name, f"somebody.{name}:Plugin", "tunesmith.method")
            monkeypatch.setattr(Registry, "_entry_points", lambda self, entry=entry: [entry])
        return METHODS

    return install


def test_another_distribution_adds_a_plugin(installed):
    methods = installed(elsewhere=Elsewhere)

    assert "elsewhere" in methods.names()
    assert methods.parse("elsewhere") == Elsewhere()
    assert methods.parse(methods.parse("elsewhere").model_dump()) == Elsewhere()
    assert methods.summaries()["elsewhere"] == "from somebody.elsewhere:Plugin"


@pytest.mark.parametrize(("name", "found"), [("other", Elsewhere), ("elsewhere", str), ("elsewhere", 3)])
def test_an_entry_point_that_is_no_plugin_of_that_name_is_refused(installed, name, found):
    with pytest.raises(UserError, match=f"is no method '{name}': it should be a Method in a module named {name}"):
        installed(**{name: found}).get(name)


# --- the catalogue


def test_the_catalogue_lists_every_kind():
    found = catalogue()

    kinds = ["methods", "stages", "optimizers", "quantizations", "formats", "scores"]
    kinds += ["constraints", "cleaners", "templates", "settings"]

    assert list(found) == kinds
    assert all(text for entries in found.values() for text in entries.values())


@pytest.mark.parametrize(("kind", "meant"), [("method", "methods"), ("Scores", "scores"), ("setings", "settings")])
def test_an_unknown_kind_is_refused(kind, meant):
    with pytest.raises(UserError, match=rf"there is no list of '{kind}' \(did you mean '{meant}'\?\)"):
        catalogue(kind)


def test_settings_say_where_they_are_and_what_they_are_by_default():
    from tunesmith.recipe import Recipe

    found = {path: default for path, _, default in settings(Recipe)}

    assert found["output"] == "required"
    assert found["method"] == "lora"
    assert found["schedule.learning_rate"] == "none"
    assert found["engine.gradient_checkpointing"] == "false"

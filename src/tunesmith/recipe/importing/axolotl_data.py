"""Rules for axolotl's data sets and templates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.recipe.importing.translation import Translation

_TOO_LONG = {"drop": "drop", "truncate": "cut", "raise": "refuse"}
_KNOWN = {
    "path",
    "type",
    "split",
    "name",
    "data_files",
    "ds_type",
    "field_messages",
    "field",
    "message_property_mappings",
    "message_field_role",
    "message_field_content",
    "roles",
    "roles_to_train",
    "train_on_eos",
    "train_on_eot",
    "conversation",
    "chat_template",
    "trust_remote_code",
}


def data(t: Translation) -> None:
    """Translate data sets, their kinds and columns, and what is held out."""
    t.put("data.train", _sources(t, "datasets"), "datasets")
    if t.said("test_datasets"):
        t.put("data.validation", _sources(t, "test_datasets"), "test_datasets")
    size = t.value("val_set_size")
    if size >= 1:
        t.refuse("val_set_size", f"{size:g} of how many is not known", "say which share, as data.validation_share=0.05")
    elif size:
        t.put("data.validation_share", size, "val_set_size")
    asked = t.value("excess_length_strategy")
    if asked in _TOO_LONG:
        t.put("data.too_long", _TOO_LONG[asked], "excess_length_strategy")
    else:
        t.refuse("excess_length_strategy", f"{asked!r} is none", f"one of {', '.join(_TOO_LONG)}")


def _sources(t: Translation, name: str) -> list[Any]:
    asked = t.value(name)
    groups = asked if isinstance(asked, list) else [asked]
    return [_source(t, name, each) for each in groups]


def _source(t: Translation, name: str, asked: Any) -> dict[str, Any]:
    if not isinstance(asked, dict) or not isinstance(asked.get("path"), str):
        t.refuse(name, f"each should be a group with a path, found {asked!r}", fatal=True)
        return {"path": "?"}
    said = {key: value for key, value in asked.items() if value is not None}
    unknown = sorted(set(said) - _KNOWN)
    if unknown:
        t.refuse(name, f"{', '.join(unknown)} of {said['path']} has no equal")
    source: dict[str, Any] = {"path": said["path"]}
    files = said.get("data_files")
    if files and said.get("ds_type"):
        one = str(files[0] if isinstance(files, list) else files)
        source["path"] = one if Path(one).exists() else str(Path(said["path"]) / one)
        if isinstance(files, list) and len(files) > 1:
            t.refuse(name, f"{len(files)} data_files: give each a source of its own")
    if "[" in str(said.get("split", "")):
        t.refuse(name, f"split {said['split']} takes a part; say how many rows: data.train.0.take=1000")
    elif said.get("split", "train") != "train":
        source["split"] = said["split"]
    if "name" in said:
        source["subset"] = said["name"]
    source |= _format(t, name, said)
    return source


def _format(t: Translation, name: str, said: dict[str, Any]) -> dict[str, Any]:
    """Return format and columns; a kind that is a list of prompts or a script is refused."""
    kind = str(said.get("type", "chat_template"))
    if kind == "alpaca":
        return {"format": "alpaca"}
    if kind == "completion":
        field = said.get("field", "text")
        t.put("stage.type", "pretrain", name)
        return {"format": "text", **({} if field == "text" else {"columns": {"text": field}})}
    if kind not in ("chat_template", "sharegpt"):
        t.refuse(name, f"type {kind} has no equal; `tunesmith list formats` says what is read", fatal=True)
        return {}
    roles = said.get("roles_to_train")
    if roles is not None:
        ours = {"gpt": "assistant", "model": "assistant", "human": "user"}
        asked = roles if isinstance(roles, list) else [roles]
        t.put("stage.roles", [ours.get(str(role), role) for role in asked], name)
    if said.get("train_on_eos", "turn") != "turn":
        t.refuse(name, f"train_on_eos {said['train_on_eos']}: the end of each learnt turn is learnt")
    mapping = said.get("message_property_mappings", {})
    if not isinstance(mapping, dict):
        t.refuse(name, f"message_property_mappings should be a group, found {mapping!r}", fatal=True)
        return {}
    role = mapping.get("role", said.get("message_field_role", "from" if kind == "sharegpt" else "role"))
    content = mapping.get("content", said.get("message_field_content", "value" if kind == "sharegpt" else "content"))
    messages = said.get("field_messages", "conversations" if kind == "sharegpt" else "messages")
    if (role, content) == ("role", "content"):
        return {"format": "openai", **({} if messages == "messages" else {"columns": {"messages": messages}})}
    tags = {"role_tag": role, "content_tag": content}
    usual = {"role_tag": "from", "content_tag": "value"}
    found: dict[str, Any] = {"format": "sharegpt" if tags == usual else {"type": "sharegpt", **tags}}
    return found | ({} if messages == "conversations" else {"columns": {"conversations": messages}})


def template(t: Translation) -> None:
    """Translate the template: the model's own is the truth."""
    asked = t.value("chat_template")
    if asked in (None, "tokenizer_default"):
        return
    name = str(asked).removeprefix("tokenizer_default_fallback_")
    text = (
        f"{name}: the model's own template is used, as when it is served (for a base model without one: template=NAME)"
    )
    if str(name).endswith(".jinja"):
        t.put("template.name", name, "chat_template")
    else:
        t.put("template.name", "auto", "chat_template")
        t.explain("chat_template", text, "template.name")

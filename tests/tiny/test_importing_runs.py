"""A LLaMA-Factory file trains as it is, with the losses of the recipe that one would write by hand."""

import dataclasses
import importlib
import json
import sys

import pytest

from tunesmith.apps.cli import main
from tunesmith.core.files import read_jsonl
from tunesmith.recipe.importing.trl import TRL
from tunesmith.recipe.importing.trl_online import DEFAULTS, ONLINE


def run(monkeypatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["tunesmith", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code or 0


def test_a_llamafactory_file_trains_as_the_recipe_written_by_hand(tmp_path, monkeypatch, saved_model, data, capsys):
    """Same weights, data, order, rate and steps: the losses are equal to the last bit."""
    monkeypatch.chdir(tmp_path)
    model, (train, _) = saved_model("qwen3"), data
    (tmp_path / "data").mkdir()
    info = {"poems": {"file_name": train, "columns": {"prompt": "instruction", "query": "input", "response": "output"}}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    (tmp_path / "factory.yaml").write_text(
        f"""\
model_name_or_path: {model}
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
dataset: poems
template: qwen
cutoff_len: 160
max_samples: 20
output_dir: theirs
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1.0e-3
max_steps: 3
lr_scheduler_type: cosine
warmup_ratio: 0.4
disable_gradient_checkpointing: true
use_cpu: true
logging_steps: 1
plot_loss: true
overwrite_output_dir: true
""",
        encoding="utf-8",
    )
    (tmp_path / "recipe.yaml").write_text(
        f"""\
model: {model}
data: {{train: {{path: {train}, format: alpaca, take: 20}}, max_tokens: 160}}
method: {{type: lora, rank: 4, alpha: 8}}
optimizer: {{weight_decay: 0}}
schedule: {{steps: 3, batch_size: 4, learning_rate: 1e-3, warmup: 0.4}}
engine: {{device: cpu}}
seed: 42
output: ours
""",
        encoding="utf-8",
    )

    assert run(monkeypatch, "train", "factory.yaml") == 0
    said = capsys.readouterr().err
    assert run(monkeypatch, "train", "recipe.yaml") == 0
    theirs, ours = (
        [line["loss"] for line in read_jsonl(tmp_path / name / "metrics.jsonl") if line["kind"] == "step"]
        for name in ("theirs", "ours")
    )

    assert "LLaMA-Factory, factory.yaml: 21 arguments: " in said
    assert "template: qwen: the model's own template is used" in said
    assert len(ours) == 3
    assert theirs == ours


def test_every_argument_of_trl_has_an_outcome():
    """Those of its commands' configurations and scripts; one that a new version brings is noticed here."""
    trl = pytest.importorskip("trl")
    parts = [trl.SFTConfig, trl.DPOConfig, trl.RewardConfig, trl.ModelConfig, trl.ScriptArguments]
    parts += [trl.KTOConfig, trl.GRPOConfig, trl.RLOOConfig]
    parts += [importlib.import_module("trl.scripts.grpo").GRPOScriptArguments]
    parts += [importlib.import_module("trl.scripts.rloo").RLOOScriptArguments]
    names = {field.name for part in parts for field in dataclasses.fields(part)}

    assert names - set(TRL.arguments) == set()


def test_the_defaults_of_trls_online_commands_are_those_of_its_configurations():
    """What is copied where nothing is said is what TRL would have taken."""
    trl = pytest.importorskip("trl")
    for stage, configuration in (("grpo", trl.GRPOConfig), ("rloo", trl.RLOOConfig)):
        theirs = {field.name: field.default for field in dataclasses.fields(configuration)}
        theirs["loss_type"] = [theirs.get("loss_type")]
        ours = {name: row.default for name, row in ONLINE.items() if name in theirs} | DEFAULTS[stage]

        assert {name: value for name, value in ours.items() if theirs[name] != value} == {}

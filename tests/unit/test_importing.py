"""Configurations of other programs: every argument has one outcome; what comes out is a recipe that means the same."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from tunesmith.apps.cli import main
from tunesmith.core.errors import RecipeError, UserError
from tunesmith.recipe.document import read_document
from tunesmith.recipe.importing.read import PROGRAMS, import_words, read_recipe_or_import
from tunesmith.recipe.places import Place
from tunesmith.recipe.schema import Recipe

LLAMAFACTORY, TRL, AXOLOTL = PROGRAMS.values()
NAMES = Path(__file__).with_name("llamafactory_arguments.txt").read_text("utf-8").split()
SHARED = Path(__file__).parents[3] / "shared" / "llamafactory_arguments.md"

# what a configuration of each program cannot do without
BASES = {
    "llamafactory": {"model_name_or_path": "x/y", "dataset": "a", "output_dir": "o"},
    "trl": {"model_name_or_path": "x/y", "dataset_name": "a/b", "output_dir": "o"},
    "axolotl": {"base_model": "x/y", "datasets": [{"path": "a/b", "type": "alpaca"}], "output_dir": "o"},
}
# name -> a value that is not the default, where the kind does not give one that fits
VALUES = {
    "pref_loss": "hinge",
    "num_generations": 4,
    "generation_batch_size": 8,
    "steps_per_generation": 1,
    "scale_rewards": "batch",
    "importance_sampling_level": "sequence",
    "multi_objective_aggregation": "normalize_then_sum",
    "reward_funcs": "think_format_reward",
    "reward_weights": [0.5],
    "reward_clip_range": [-1, 1],
    "loss_weights": [0.5],
    "f_divergence_type": "js_divergence",
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "apollo_scale_type": "tensor",
    "badam_switch_mode": "random",
    "completion_only_loss": False,
    "eval_steps": 7,
    "save_steps": 7,
    "plugins": "axolotl.integrations.liger.LigerPlugin",
    "cosine_min_lr_ratio": 0.1,
    "chat_template_path": "file.jinja",
    "dataset": "b",
    "datasets": [{"path": "c/d"}],
    "eval_dataset": "b",
    "eval_strategy": "no",
    "excess_length_strategy": "truncate",
    "finetuning_type": "full",
    "freeze_trainable_modules": "self_attn",
    "label_smoothing_factor": 0.1,
    "lora_alpha_pattern": {"q_proj": 8},
    "lora_rank_pattern": {"q_proj": 8},
    "loss_type": "dft",
    "lora_target_modules": "k_proj",
    "mix_strategy": "interleave_under",
    "lr_scheduler": "linear",
    "lr_scheduler_kwargs": {"num_cycles": 0.25},
    "lr_scheduler_type": "polynomial",
    "new_special_tokens_config": "tokens.yaml",
    "optim": "sgd",
    "optimizer": "sgd",
    "peft_layers_to_transform": [0, 1],
    "quantization_bit": 8,
    "quantization_method": "hqq",
    "quantization_type": "fp4",
    "bnb_4bit_quant_type": "fp4",
    "stage": "pt",
    "test_datasets": [{"path": "c/d", "type": "alpaca"}],
    "top_p": 0.5,
    "template": "alpaca",
    "val_size": 0.1,
    "val_set_size": 0.1,
    "test_split_size": 0.1,
    "warmup_ratio": 0.5,
    "warmup_steps": 7,
    "lora_dropout": 0.3,
    "module_dropout": 0.3,
    "max_length": 99,
    "dataset_dir": "ONLINE",
}
# name -> what else must be said for the argument to do something
COMPANIONS = {
    "f_alpha_divergence_coef": {"f_divergence_type": "alpha_divergence"},
    "discopop_tau": {"loss_type": "discopop"},
    "disable_dropout": {"use_peft": True},
    "adapter_name_or_path": {},
    "create_new_adapter": {"adapter_name_or_path": "a/b"},
    "cosine_min_lr_ratio": {},
    "dataset_test_split": {"eval_strategy": "steps", "eval_steps": 9},
    "eval_steps": {"eval_strategy": "steps"},
    "eval_strategy": {},
    "freeze_trainable_modules": {"freeze_trainable_layers": -2},
    "greater_is_better": {"val_size": 0.1},
    "load_best_model_at_end": {"val_size": 0.1, "test_split_size": 0.1, "val_set_size": 0.1},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine"},
    "mix_strategy": {"dataset": "a,b"},
    "predict_with_generate": {"val_size": 0.1},
    "do_predict": {"do_train": True},
    "quantization_method": {"quantization_bit": 4},
    "use_bias_correction_kl": {"beta": 0.1},
    "reward_model_name_or_path": {"reward_funcs": "think_format_reward"},
    "vllm_structured_outputs_regex": {"use_vllm": True},
    "warmup_ratio": {},
    "temperature": {},
}
BY_KIND = {"text": "other", "whole": 3, "number": 0.25, "flag": True, "names": "q_proj", "group": {"a": 1}, "any": True}


def write(folder: Path, values: dict, name: str = "config.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(values) if name.endswith("yaml") else json.dumps(values), encoding="utf-8")
    return str(path)


def imported(folder: Path, values: dict, program: str = "llamafactory", **options):
    return import_words([write(folder, values, "config.json")], program=program, **options)


def sample(name: str, row) -> object:
    if name in VALUES:
        return VALUES[name]
    if row.kind == "flag":
        return not row.default
    if row.default == "false":
        return True
    value = BY_KIND[row.kind]
    return value if value != row.default else value + 1


def companions(program, name: str, row) -> dict:
    said = {other: value for other, value in COMPANIONS.get(name, {}).items() if other in program.arguments}
    needed, _, values = row.needs.partition("=")
    if needed:
        own = next(own for own, other in program.arguments.items() if (other.name or own) == needed)
        usual = {"adapter": "lora", "quantization_bit": 4, "stage": "sft", "loraplus_lr_ratio": 16.0}
        usual |= {"export_quantization_bit": 4}
        said.setdefault(own, values.partition("|")[0] or usual.get(needed, True))
        said |= companions(program, own, program.arguments[own])
    if said.get("stage") in ("grpo", "rloo") and name != "reward_model_name_or_path":
        said["reward_model_name_or_path"] = "a/r"
    return said


# --- the tables


def test_every_argument_of_llamafactory_has_one_outcome():
    """The committed list is that of LLaMA-Factory's own classes; the table it was made of is read where it is."""
    text = SHARED.read_text("utf-8") if SHARED.exists() else ""
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    inherited = set(re.findall(r"`(\w+)`\*? \(", text.partition("## 8.")[2].partition("## 9.")[0]))

    assert [name for name in NAMES if name not in LLAMAFACTORY.arguments] == []
    assert (rows | inherited) - set(NAMES) == set()
    assert {row.outcome for row in LLAMAFACTORY.arguments.values()} == {"translated", "explained", "refused"}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=list(PROGRAMS))
def test_a_table_names_settings_that_there_are_and_says_why_where_there_are_none(program):
    for name, row in program.arguments.items():
        assert row.to or row.text or row.outcome == "translated", name
        assert row.outcome == "translated" or row.text, name
        place = Place(Recipe)
        for key in row.to.split(".") if row.to else ():
            plugins = [registry.get(each) for _, registry in place.alternatives if registry for each in place.choices()]
            fields = [plugin.model_fields[key] for plugin in plugins if key in plugin.model_fields]
            inner = Place(fields[0].rebuild_annotation()) if fields else place.child(key, {})
            if key != "type" and inner is None:
                assert "dict" in str(place.annotation), f"{name}: {row.to}"
                break
            place = inner


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=list(PROGRAMS))
def test_every_argument_does_what_its_row_says(program, tmp_path, monkeypatch):
    """A value other than the default changes the recipe, is told, or is refused by its name."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"<味>": "taste"}, "tokens.yaml")
    (tmp_path / "file.jinja").write_text("{# mine\nstop: eos #}{{ messages }}", encoding="utf-8")
    usual = BASES[program.name]
    names = [name for name in program.arguments if name not in usual or name in ("dataset", "datasets")]
    found = {name: what_it_does(program, name, tmp_path) for name in names}

    assert {name: did for name, did in found.items() if program.arguments[name].outcome not in did} == {}


def what_it_does(program, name: str, folder: Path) -> tuple[str, ...]:
    """Return the outcomes that a row may have for what importing its argument did."""
    row = program.arguments[name]
    other = {**BASES[program.name], **companions(program, name, row)}
    try:
        found = imported(folder, {**other, name: sample(name, row)}, program.name)
    except RecipeError as error:
        told = {problem.path for problem in error.problems}
        if told & {"stage", row.needs} - {name}:
            return (row.outcome,)  # what it belongs to is not there yet
        return ("refused", *(("translated", "explained") if name in FATAL else ())) if name in told else (str(error),)
    if name in SAID_ANYWAY:
        return (row.outcome,)
    told = json.dumps([found.notes, found.differing, found.remarks], ensure_ascii=False)
    if name in {**found.differing, **found.remarks} or (row.text and row.text in told):
        return ("explained", "translated")
    before = imported(folder, other, program.name)
    return ("translated", "explained") if found.values != before.values else ("nothing",)


# what these samples ask for is no training, or cannot be told from a name of the Hub
FATAL = ("export_dir", "do_predict", "rope_scaling", "metric_for_best_model", "greater_is_better", "adapter", "rl")
FATAL += ("galore_target", "apollo_target", "mix_strategy", "create_new_adapter", "loss_type")
SAID_ANYWAY = ("do_train", "use_lora", "do_sample", "assistant_only_loss")
# what the rest says already, and what leaves out a note that stands without it
SAID_ANYWAY += ("generation_batch_size", "steps_per_generation", "use_bias_correction_kl")


# --- what a recipe says


def test_a_usual_file_becomes_a_recipe_that_means_the_same(tmp_path):
    """LLaMA-Factory's own defaults are written out where Tunesmith's are others."""
    values = {
        **BASES["llamafactory"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "template": "qwen3_nothink",
        "cutoff_len": 1024,
        "max_samples": 1000,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "bf16": True,
        "quantization_bit": 4,
        "neftune_noise_alpha": 5,
        "val_size": 0.1,
        "logging_steps": 10,
    }
    found = imported(tmp_path, values)

    assert found.values == {
        "model": {"path": "x/y", "quantization": {"type": "nf4", "double": True}},
        "data": {
            "train": [{"path": "data", "dataset": "a", "take": 1000}],
            "validation_share": 0.1,
            "max_tokens": 1024,
        },
        "output": "o",
        "method": {"type": "lora", "rank": 8, "alpha": 16.0},
        "optimizer": {"weight_decay": 0.0},
        "schedule": {"learning_rate": 5e-5, "warmup": 0.1},
        "regularization": {"embedding_noise": 5.0},
        "engine": {"precision": "bfloat16", "gradient_checkpointing": True},
        "checkpoints": {"use": "last"},
        "seed": 42,
    }
    assert found.counts == {"translated": 15, "differs": 2, "not needed": 1, "refused": 0}


def test_the_text_is_the_recipe_with_what_differs_beside_it(tmp_path):
    found = imported(tmp_path, {**BASES["llamafactory"], "cutoff_len": 99, "plot_loss": True, "use_dora": True})
    (tmp_path / "recipe.yaml").write_text(found.text, encoding="utf-8")

    assert read_document(tmp_path / "recipe.yaml").values == found.values
    assert "  max_tokens: 99  # longer ones lose their answer's end" in found.text
    assert "# not needed:\n#   plot_loss: report.html has the curves\n" in found.text
    assert max(map(len, found.text.splitlines())) <= 120


def test_the_batch_counts_processes(tmp_path):
    values = {**BASES["llamafactory"], "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    found = imported(tmp_path, values, processes=4)

    assert found.values["schedule"]["batch_size"] == 24
    assert found.notes["schedule.batch_size"] == ["3 a device × 2 accumulated × 4 processes"]


def test_methods_of_the_lora_family_are_told_apart(tmp_path):
    """rsLoRA's √rank goes into alpha where another variant takes the type."""

    def method(**flags):
        return imported(tmp_path, {**BASES["llamafactory"], "lora_rank": 16, **flags}).values["method"]

    assert method(use_rslora=True) == "rslora"
    assert method(loraplus_lr_ratio=4.0) == {"type": "lora_plus", "ratio": 4.0}
    assert method(pissa_init=True, pissa_iter=-1) == {"type": "pissa", "iterations": 0}
    assert method(use_dora=True, use_rslora=True, lora_alpha=4) == {"type": "dora", "alpha": 16.0}
    assert method(lora_target="q_proj, v_proj") == {"type": "lora", "targets": ["q_proj", "v_proj"]}


def test_an_adapter_goes_on_or_a_new_one_is_added(tmp_path):
    values = {**BASES["llamafactory"], "adapter_name_or_path": "a/b", "lora_rank": 4}
    goes_on, new = imported(tmp_path, values), imported(tmp_path, {**values, "create_new_adapter": True})

    assert (goes_on.values["model"], goes_on.values.get("method")) == ({"path": "a/b", "adapter": "continue"}, None)
    assert (new.values["model"], new.values["method"]["rank"]) == ("a/b", 4)


def test_the_model_in_a_folder_settles_what_a_name_leaves_open(tmp_path):
    """Its context gives the factor of rope_scaling, its blocks the frozen ones, its own template goes before a name."""
    model = tmp_path / "model"
    model.mkdir()
    write(model, {"max_position_embeddings": 1000, "num_hidden_layers": 4}, "config.json")
    values = {**BASES["llamafactory"], "model_name_or_path": str(model), "template": "chatml", "cutoff_len": 2500}
    values |= {"rope_scaling": "yarn", "finetuning_type": "freeze", "freeze_trainable_modules": "mlp"}
    bare = imported(tmp_path, values).values
    (model / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    own = imported(tmp_path, values)

    assert bare["model"]["rope_scaling"] == {"type": "yarn", "factor": 3.0}
    assert bare["method"] == {"type": "freeze", "last": 0, "also": [r"\.(2|3)\.mlp\b"]}
    assert bare["template"] == "chatml"
    assert "template" not in own.values
    assert "own template" in own.differing["template"]


def test_data_sets_are_found_and_counted(tmp_path, monkeypatch):
    """In the current folder as LLaMA-Factory does, else above the file; 3 rows to hold out are a share of all."""
    data, configs = tmp_path / "data", tmp_path / "examples" / "lora"
    data.mkdir()
    configs.mkdir(parents=True)
    write(data, {"a": {"file_name": "a.json"}}, "dataset_info.json")
    (data / "a.json").write_text(json.dumps([{"instruction": str(i), "input": "", "output": "x"} for i in range(12)]))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    values = {**BASES["llamafactory"], "val_size": 3, "max_samples": 10}
    monkeypatch.chdir(tmp_path)
    here = imported(configs, values)
    monkeypatch.chdir(elsewhere)
    there = imported(configs, values)

    assert here.values["data"] == {
        "train": [{"path": "data", "dataset": "a", "take": 10}],
        "validation_share": 0.3,
    }
    assert there.values["data"]["train"][0]["path"] == str(data)
    assert "val_size: 12 of how many" not in here.text
    with pytest.raises(RecipeError, match="val_size: there are 10 rows"):
        imported(configs, {**values, "val_size": 20})


def test_flags_of_a_tutorial_are_understood():
    words = (
        "--model_name_or_path x/y --dataset a --template default --finetuning_type lora --lora_rank 64 --lora_target "
    )
    words += "c_attn --quantization_bit 4 --use_lora --max_seq_length 512 --fp16"
    found = import_words(words.split())
    pasted = import_words(["CUDA_VISIBLE_DEVICES=0", "python", "src/train_bash.py", *words.split(), "--do_train"])

    assert found.values["method"] == {"type": "lora", "targets": ["c_attn"], "rank": 64, "alpha": 128.0}
    assert found.values["engine"]["precision"] == "float16"
    assert found.values["data"]["max_tokens"] == 512
    assert pasted.values == found.values


def test_trl_and_axolotl_are_known_by_their_names(tmp_path):
    """TRL learns whole conversations, and all weights unless it is told otherwise; axolotl drops what is too long."""
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    trl = import_words(["trl", "sft", "--model_name_or_path", "x/y", "--dataset_name", str(rows), "--load_in_4bit"])
    axolotl = import_words([write(tmp_path, {**BASES["axolotl"], "adapter": "qlora", "load_in_4bit": True})])

    assert (trl.title, trl.values["method"], trl.values["stage"]) == (
        "TRL",
        "full",
        {"type": "sft", "train_on_prompt": True},
    )
    assert trl.values["schedule"]["learning_rate"] == 2e-5
    assert (axolotl.title, axolotl.values["data"]["too_long"]) == ("axolotl", "drop")
    assert axolotl.values["model"]["quantization"]["type"] == "nf4"


# --- what is refused, and what is wrong


def test_what_has_no_equal_is_refused_by_name_or_left_out_as_asked(tmp_path):
    values = {**BASES["llamafactory"], "deepspeed": "ds.json", "use_dft_loss": True}
    with pytest.raises(RecipeError) as refused:
        imported(tmp_path, values)
    found = imported(tmp_path, values, skip_refused=True)

    assert [problem.path for problem in refused.value.problems] == ["deepspeed", "use_dft_loss", ""]
    assert list(found.skipped) == ["deepspeed", "use_dft_loss"]
    assert found.counts["refused"] == 2
    assert "# REFUSED and left out:\n#   deepspeed: " in found.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stage": "dpo", "pref_loss": "kto_pair"}, "pref_loss: 'kto_pair' is no loss of this or of a current TRL"),
        ({"export_dir": "m", "adapter_name_or_path": "a/b"}, "Run: tunesmith export a/b --to m"),
        ({"dataset": None}, "To talk with the model: tunesmith chat x/y"),
        ({"do_train": False, "do_predict": True}, "Run: tunesmith evaluate x/y --data FILE"),
        ({"quantization_bit": 5}, "5 bits with bnb have no equal"),
    ],
)
def test_what_is_no_such_training_cannot_be_skipped(values, message, tmp_path):
    with pytest.raises(RecipeError, match=re.escape(message)):
        imported(tmp_path, {**BASES["llamafactory"], **values}, skip_refused=True)


MISTAKES = {
    "unknown.yaml": (
        "lora_ranks: 8",
        "unknown.yaml:3: lora_ranks: LLaMA-Factory has no such argument (did you mean 'lora_rank'?)",
    ),
    "number.yaml": ("learning_rate: fast", "number.yaml:3: learning_rate: should be a number, found 'fast'"),
    "bound.yaml": ("lora_rank: 0", "bound.yaml:3: lora_rank: should be at least 1, found 0 (as method.rank)"),
    "twice.yaml": ("dataset: b", "twice.yaml:3: dataset: written twice"),
    "same.yaml": ("max_seq_length: 9\ncutoff_len: 9", "same.yaml:4: cutoff_len: says the same as max_seq_length"),
    "link.yaml": ("output_dir: ${root}/x", "link.yaml:3: output_dir: '${root}/x' refers to another value"),
    "both.yaml": ("bf16: true\nfp16: true", "both.yaml:4: fp16: bf16 and fp16 exclude each other"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_with_file_and_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, message = MISTAKES[name]
    Path(name).write_text(f"model_name_or_path: x/y\ndataset: a\n{text}\n", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        import_words([name])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ours.yaml", "model: x/y\ndata: {train: a.jsonl}\noutput: o", "is a recipe of Tunesmith already"),
        ("pod.yaml", "apiVersion: 1\nkind: Pod", "is no configuration of LLaMA-Factory, TRL, axolotl"),
        ("half.yaml", "model_name_or_path: x/y\nlearning_rate: 1e-4", "could be LLaMA-Factory or TRL; say --from"),
        ("list.yaml", "- a", "found a list"),
        ("broken.json", '{"a": ', "broken.json:1: not JSON"),
        ("list.json", "[1]", "a configuration is an object"),
        (
            "twice.json",
            '{"model_name_or_path": "x/y", "dataset": "a", "stage": "pt", "stage": "sft"}',
            "stage: given twice",
        ),
        ("empty.yaml", "", "is empty"),
    ],
)
def test_files_that_are_no_configuration_are_told(name, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        import_words([name])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model_name_or_path --dataset a", "model_name_or_path: needs a value"),
        ("--model_name_or_path x/y --dataset a --dataset b", "dataset: given twice"),
        ("rows.jsonl", "rows.jsonl: no such file"),
        ("8 --lora_rank", "8: no such file"),
        ("--lora_rank 8", "model_name_or_path: is missing, and so is dataset"),
    ],
)
def test_flags_that_say_nothing_are_told(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        import_words(words.split())


def test_recipes_are_read_as_before(tmp_path):
    """Slips in a recipe are a recipe's, and JSON is one way to write it."""
    (tmp_path / "recipe.json").write_text('{"model": "x/y", "data": {"train": "none.jsonl"}, "output": "o"}')
    (tmp_path / "slip.yaml").write_text("model: x/y\ndataset: a\noutput: o\n")
    for name in ("recipe.json", "slip.yaml"):
        with pytest.raises(RecipeError) as error:
            read_recipe_or_import(tmp_path / name)
        assert {problem.path for problem in error.value.problems} & {"data", "data.train.0.path"}


def test_the_command_prints_writes_and_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, BASES["llamafactory"])

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["tunesmith", "import", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    code, out, err = run("config.yaml", "lora_rank=4")
    assert (code, yaml.safe_load(out)["method"]["rank"]) == (0, 4)
    assert "LLaMA-Factory, config.yaml: 4 arguments: 4 translated, 0 differs, 0 not needed, 0 refused" in err
    assert "config.yaml:1: dataset: data.train.0.dataset" in err
    assert run("config.yaml", "--output", "recipe.yaml")[:2] == (0, "")
    assert read_document(tmp_path / "recipe.yaml").values["seed"] == 42
    code, out, err = run("config.yaml", "--output", "recipe.yaml")
    assert (code, err) == (2, "error: recipe.yaml is there already; name a new file\n")
    assert run("config.yaml", "deepspeed=x")[:2] == (2, "")
    assert run("config.yaml", "deepspeed=x", "--skip-refused")[0] == 0
    assert run("config.yaml", "--run")[:2] == (2, "")

"""TRL's SFTTrainer and DPOTrainer, as their documentation writes them; Unsloth's, which stand on them."""

from pathlib import Path
from typing import Any

from measure import Meter, read_task

task = read_task()
meter = Meter(task)
options = task.options

if task.peer == "unsloth":
    import unsloth
import torch  # noqa: E402 - imports are timed
from datasets import load_dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # noqa: E402

meter.imported()

from recorder import Recorder  # noqa: E402

if options.get("score_labels_only"):
    # On a GPU TRL runs the output head at learnt positions only, elsewhere at all of them; this is its own GPU path.
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda _: True

names = {"chats": "messages.jsonl", "dpo": "messages.jsonl"}
rows = Path(task.rows) / names.get(task.workload, "prompt_completion.jsonl")
dataset = load_dataset("json", data_files=str(rows), split="train")
arguments: dict[str, Any] = {"per_device_train_batch_size": 8, **options["arguments"]}
if arguments.get("packing"):
    accumulated = 64 if task.mode == "check" else task.pack_rows
    arguments |= {"per_device_train_batch_size": 1, "max_length": task.pack_length}
else:
    accumulated = task.batch_size // arguments["per_device_train_batch_size"]
shared: dict[str, Any] = {
    "output_dir": task.work,
    "num_train_epochs": 1,
    "max_steps": task.most_steps or -1,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "gradient_accumulation_steps": accumulated,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": not torch.cuda.is_available(),
    **arguments,
}
if task.workload == "chats":
    shared["assistant_only_loss"] = True
model: Any = task.model
adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
given: dict[str, Any] = {"peft_config": adapter} if task.method == "lora" else {}
if task.peer == "unsloth":
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        task.model, load_in_4bit=False, full_finetuning=task.method == "full", **options["loading"]
    )
    if task.method == "lora":
        model = unsloth.FastLanguageModel.get_peft_model(
            model, r=16, lora_alpha=32, use_gradient_checkpointing=options["checkpointing"]
        )
    given = {"processing_class": tokenizer}
elif "dtype" in options:
    shared["model_init_kwargs"] = {"dtype": options["dtype"][task.method]}
trainer_class, config_class = (DPOTrainer, DPOConfig) if task.workload == "dpo" else (SFTTrainer, SFTConfig)
trainer = trainer_class(
    model=model, args=config_class(**shared), train_dataset=dataset, callbacks=[Recorder(meter)], **given
)
trainer.train()
meter.finish()

"""LLaMA-Factory, through the function that ``llamafactory-cli train`` calls."""

from typing import Any

from measure import Meter, read_task

task = read_task()
meter = Meter(task)

from llamafactory.train.tuner import run_exp  # noqa: E402 - imports are timed

meter.imported()

import torch  # noqa: E402
from recorder import Recorder  # noqa: E402

arguments: dict[str, Any] = {"per_device_train_batch_size": 8, **task.options["arguments"]}
if arguments.get("packing"):
    accumulated = 64 if task.mode == "check" else task.pack_rows
    arguments |= {"per_device_train_batch_size": 1, "cutoff_len": task.pack_length}
else:
    accumulated = task.batch_size // arguments["per_device_train_batch_size"]
method = {"lora_rank": 16, "lora_alpha": 32, "lora_target": "all"} if task.method == "lora" else {}
if task.workload == "dpo":
    method["pref_beta"] = 0.1
values = {
    "stage": "dpo" if task.workload == "dpo" else "sft",
    "do_train": True,
    "model_name_or_path": task.model,
    "finetuning_type": task.method,
    "dataset": "bench",
    "dataset_dir": task.rows,
    "output_dir": f"{task.work}/out",
    "num_train_epochs": 1,
    "max_steps": task.most_steps or -1,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "gradient_accumulation_steps": accumulated,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": not torch.cuda.is_available(),
    **method,
    **arguments,
}
run_exp(values, [Recorder(meter)])
meter.finish()

"""ms-swift, through the function that ``swift sft`` calls."""

from typing import Any

from measure import Meter, read_task

task = read_task()
meter = Meter(task)

from swift.callbacks import callbacks_map  # noqa: E402 - imports are timed
from swift.pipelines import sft_main  # noqa: E402
from swift.template import TemplateMeta, register_template  # noqa: E402

meter.imported()

import torch  # noqa: E402
from recorder import Recorder  # noqa: E402

# the tokenizer's template in swift's own words: its templates end turns with a line break and learn other tokens
register_template(
    TemplateMeta(
        "bench",
        prefix=[],
        prompt=["<|im_start|>user\n{{QUERY}}<|im_end|><|im_start|>assistant\n"],
        chat_sep=["<|im_end|>"],
        suffix=["<|im_end|>"],
        system_prefix=["<|im_start|>system\n{{SYSTEM}}<|im_end|>"],
    )
)
callbacks_map["bench"] = lambda _arguments, _trainer: Recorder(meter)
values: dict[str, Any] = {
    "model": task.model,
    "model_type": "qwen3",
    "template": "bench",
    "dataset": f"{task.rows}/messages.jsonl",
    "tuner_type": task.method,
    "output_dir": f"{task.work}/out",
    "num_train_epochs": 1,
    "max_steps": task.most_steps or -1,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "report_to": "none",
    "callbacks": "bench",
    "use_cpu": not torch.cuda.is_available(),
    **({"lora_rank": 16, "lora_alpha": 32, "target_modules": "all-linear"} if task.method == "lora" else {}),
    "per_device_train_batch_size": 8,
    **task.options["arguments"],
}
values["gradient_accumulation_steps"] = task.batch_size // values["per_device_train_batch_size"]
sft_main([text for name, value in values.items() for text in (f"--{name}", str(value))])
meter.finish()

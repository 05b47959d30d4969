"""transformers' Trainer with peft, as its documentation writes it."""

from pathlib import Path
from typing import Any

from measure import Meter, read_task

task = read_task()
meter = Meter(task)

import torch  # noqa: E402 - imports are timed
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

meter.imported()

from recorder import Recorder  # noqa: E402
from workloads import encode, read_rows  # noqa: E402

tokenizer = AutoTokenizer.from_pretrained(task.model)
examples: list[dict[str, Any]] = []
for row in read_rows(Path(task.rows)):
    tokens, learnt = encode(tokenizer, row["messages"])
    labels = [token if learn else -100 for token, learn in zip(tokens, learnt, strict=True)]
    examples.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
loading = {"dtype": task.options["dtype"][task.method]} if "dtype" in task.options else {}
model: Any = AutoModelForCausalLM.from_pretrained(task.model, **loading)
if task.method == "lora":
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))
    if task.options["arguments"].get("gradient_checkpointing"):
        model.enable_input_require_grads()
arguments = {"per_device_train_batch_size": 8, **task.options["arguments"]}
per_pass = min(arguments["per_device_train_batch_size"], task.batch_size)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=task.work,
        num_train_epochs=1,
        max_steps=task.most_steps or -1,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        gradient_accumulation_steps=task.batch_size // per_pass,
        logging_steps=1,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        **arguments,
    ),
    train_dataset=examples,
    data_collator=DataCollatorForSeq2Seq(tokenizer),
    callbacks=[Recorder(meter)],
)
trainer.train()
meter.finish()

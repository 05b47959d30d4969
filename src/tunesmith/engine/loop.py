"""The training loop: the only place where an optimizer steps."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.core.errors import UserError
from tunesmith.core.files import write_json
from tunesmith.engine.activations import ActivationOffload
from tunesmith.engine.averaging import MovingAverage
from tunesmith.engine.checkpoint import (
    Progress,
    load_progress,
    load_tree,
    load_weights,
    prune_checkpoints,
    random_state,
    read_weights,
    save_checkpoint,
    set_random_state,
    training_weights,
)
from tunesmith.engine.likelihoods import Likelihoods, complete
from tunesmith.engine.objective import Objective, add_parts, add_up, pass_loss
from tunesmith.engine.order import ExampleOrder
from tunesmith.engine.pack import Pack, build_packs, split_examples
from tunesmith.engine.stepping import WeightSteps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor

    from tunesmith.core.events import Listener
    from tunesmith.engine.example import Example
    from tunesmith.engine.loop_settings import LoopSettings
    from tunesmith.engine.model import PackModel


class NonFiniteError(UserError):
    """The loss or its gradient became infinite or not a number; the batch is kept."""


class TrainingLoop:
    """Runs optimizer steps over examples until the last step, a stop request, or no more gain."""

    def __init__(
        self,
        model: PackModel,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        schedule: Any,
        accelerator: Accelerator,
        settings: LoopSettings,
        folder: Path,
    ) -> None:
        """*schedule* is a torch learning-rate scheduler over *optimizer*; *folder* is the run's."""
        self.inner, self.objective, self.schedule, self.accelerator = model, objective, schedule, accelerator
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.settings, self.folder, self.method = settings, folder, settings.method
        self.progress = Progress()
        self.tokens_per_pass = settings.tokens_per_pass
        self.likelihoods = Likelihoods(model, accelerator, settings.layout, settings.tokens_per_pass)
        self.stop_reason: str | None = None
        weights, apart = training_weights(model.model), settings.optimizer_in_backward
        self.weight_steps: WeightSteps | None = None
        if apart or any(weight.dtype == torch.bfloat16 for weight in weights.values()):
            self.weight_steps = WeightSteps(optimizer, weights, settings.seed, in_backward=apart)
        self.offload = ActivationOffload(model) if settings.activation_offload else nullcontext()
        self.average = MovingAverage(weights, settings.ema_decay) if settings.ema_decay else None
        self._told_of_passes = False

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written."""
        return self.folder / "checkpoints"

    def request_stop(self, reason: str) -> None:
        """Ask the loop to save and end after the step that is running; safe to call from a signal handler."""
        self.stop_reason = reason

    def resume(self, path: Path) -> None:
        """Go back to the state in the checkpoint at *path*."""
        self.progress = load_progress(path)
        with self.evaluating():  # what was saved is what is judged
            load_weights(path, self.inner.model)
            (self.weight_steps or self.optimizer).load_state_dict(load_tree(path / "optimizer"))
        if (path / "method.json").exists():
            self.method.restore(self.inner.model, load_tree(path / "method"))
        if self.average is not None:
            self.average.restore(load_tree(path / "average"), read_weights(path))
        if self.settings.experience is not None:
            self.settings.experience.restore(load_tree(path / "experience"))
        self.schedule.load_state_dict(self.progress.schedule)
        own = path / f"random-{self.accelerator.process_index}"
        if own.with_suffix(".json").exists():  # a run may go on with more processes than it began with
            set_random_state(load_tree(own))

    def run(self, examples: Sequence[Example], validation: Sequence[Example], emit: Listener) -> str:
        """Train to the end; return why it ended: ``finished``, ``early stopping`` or the stop request's reason."""
        settings, progress = self.settings, self.progress
        if progress.step < settings.steps and self._out_of_patience():
            return "early stopping"  # it had ended, and was killed before its weights were written
        repeats = 1 if settings.experience is None else settings.experience.repeats
        order = ExampleOrder(len(examples), settings.batch_size, settings.seed, repeats)
        validation = list(validation)  # the same objects as in their packs
        held_out = self._local_packs(validation) if validation and settings.judged_by_loss else []
        started = time.monotonic() - progress.seconds
        self.model.train()
        # one thread builds the next step's packs while this one computes; torch releases the interpreter lock
        with ThreadPoolExecutor(1) as builder:
            following = self._submit(builder, examples, order, progress.step)
            while progress.step < settings.steps and not self._asked_to_stop():
                chosen, packs = following.result()
                following = self._submit(builder, examples, order, progress.step + 1)
                chosen, packs, measured = self._experience(chosen, packs, emit)
                chosen, packs = complete(self.objective, chosen, packs, examples, self.likelihoods)
                event = {**self._step(chosen, packs, emit), **measured}
                progress.step += 1
                progress.seconds = time.monotonic() - started
                emit({"kind": "step", "step": progress.step, "epoch": order.epoch(progress.step), **event})
                ended = self._after_step(held_out, validation, emit)
                if ended:
                    return ended
            following.cancel()
        if progress.step < settings.steps:
            self._save(emit)
            return self.stop_reason or "stopped"
        return "finished"

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold the weights to judge and to save in here: where they are averaged, others train."""
        self.optimizer.eval()  # accelerate's; does nothing for most
        try:
            with nullcontext() if self.average is None else self.average.in_place():
                yield
        finally:
            self.optimizer.train()

    def evaluate(self, packs: Sequence[Pack], examples: Sequence[Example]) -> dict[str, float]:
        """Return the ``loss`` over *examples*, without penalties, and its parts; *packs* are this process's share."""
        self.model.eval()
        totals: list[Tensor] = []
        parts: dict[str, Any] = {}
        with self.evaluating(), torch.no_grad():
            examples, packs = complete(self.objective, examples, packs, examples, self.likelihoods)
            for pack, counts in self._passes(packs, examples):
                loss = self._forward(pack.to(self.accelerator.device))
                totals.append(loss.total * counts)
                add_parts(parts, loss.parts, counts)
        self.model.train()
        size = self.objective.size(examples)
        return {"loss": float(self._sum(add_up(totals))) / size, **self._means(parts, size)}

    def _judge(self, packs: Sequence[Pack], examples: Sequence[Example]) -> dict[str, float]:
        """Return the measurements on held-out *examples*, ``loss`` among them."""
        if self.settings.experience is None or self.settings.judged_by_loss:
            measured = self.evaluate(packs, examples)
            shown = {"perplexity": math.exp(min(measured["loss"], 700.0))} if self.objective.has_perplexity else {}
            return {**measured, **shown}
        self.model.eval()
        with self.evaluating():
            measured = self.settings.experience.judge(examples)
        self.model.train()
        return measured

    def _local_packs(self, examples: Sequence[Example]) -> list[Pack]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        part = split_examples(examples, world)[rank]
        return build_packs(part, self.settings.layout, self.tokens_per_pass) if part else []

    def _submit(self, builder: ThreadPoolExecutor, examples: Sequence[Example], order: ExampleOrder, step: int) -> Any:
        def build() -> tuple[list[Example], list[Pack]]:
            chosen = [examples[index] for index in order.batch(step)]
            return chosen, self._local_packs(chosen) if self.settings.experience is None else []

        return builder.submit(build)

    def _experience(
        self, chosen: list[Example], packs: list[Pack], emit: Listener
    ) -> tuple[list[Example], list[Pack], dict[str, float]]:
        """Return what the step learns from: what was *chosen* of the data, or what the model makes of it now."""
        if self.settings.experience is None:
            return chosen, packs, {}
        self.model.eval()
        gathered = self.settings.experience.gather(self.progress.step, chosen)
        self.model.train()
        for event in gathered.events:
            emit(event)
        return gathered.examples, self._local_packs(gathered.examples), gathered.measured

    def _step(self, chosen: list[Example], packs: list[Pack], emit: Listener) -> dict[str, Any]:
        """One optimizer step over *chosen*, of which *packs* are this process's share."""
        began = time.monotonic()
        size = self.objective.size(chosen)
        totals, parts, packs = self._make_gradients(chosen, packs, emit)
        in_backward, step = self.settings.optimizer_in_backward, self.progress.step
        norm = self.weight_steps.finish(step) if self.weight_steps and in_backward else self._clip()
        value = float(self._sum(add_up(totals))) / size
        if not math.isfinite(value) or not (math.isfinite(norm) or self.accelerator.mixed_precision == "fp16"):
            self._keep_batch(chosen, value, norm)
        self.method.before_step(self.inner.model)
        if self.weight_steps is None:
            self.optimizer.step()
        elif not in_backward:
            self.weight_steps.step(step)
        self.method.after_step(self.inner.model, step + 1)
        if self.average is not None:
            self.average.update(step + 1)
        rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.monotonic() - began
        return {
            "loss": value,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_per_second": sum(e.tokens for e in chosen) / seconds,
            "tokens": sum(e.tokens for e in chosen),
            "tokens_fed": int(self._sum(torch.tensor(sum(len(p.tokens) for p in packs), dtype=torch.float64))),
            "trained_tokens": sum(s.trained for e in chosen for s in e.sequences),
            "seconds": seconds,
            **self._means(parts, size),
        }

    def _means(self, parts: dict[str, Any], size: float) -> dict[str, float]:
        return {name: float(self._sum(torch.tensor(float(v)))) / size for name, v in parts.items()}

    def _make_gradients(
        self, chosen: list[Example], packs: list[Pack], emit: Listener
    ) -> tuple[list[Tensor], dict[str, Any], list[Pack]]:
        """Add the gradients of a step; return the loss of each pass, the sums beside it, and the packs that were run.

        Where memory runs out the same examples run again in smaller passes, from the same random state: layout is not
        semantics.  Several processes cannot agree on that in the middle of a pass, so there the error stands.
        """
        if self.settings.optimizer_in_backward and len(packs) > 1 and not self._told_of_passes:
            self._told_of_passes = True
            text = (
                "optimizer_in_backward: a step takes several passes, so its gradients are kept until the last of them"
            )
            emit({"kind": "notice", "text": f"{text}; raise engine.tokens_per_pass to save their memory"})
        before = random_state()
        try:
            return *self._run_passes(chosen, packs), packs
        except RuntimeError as error:
            if "selective activation checkpoint has been mutated" in str(error):
                raise UserError(
                    "engine.gradient_checkpointing: selective does not fit this model, whose code changes results of "
                    "matrix products in place; use true"
                ) from error
            if not is_out_of_memory(error):
                raise
            if self.weight_steps and self.weight_steps.started:
                raise UserError(
                    "memory ran out when some weights of this step had been stepped already, so it cannot run again. "
                    "Lower engine.tokens_per_pass, or set engine.optimizer_in_backward: false. "
                    "The last checkpoint is whole"
                ) from error
            largest = max((len(pack.tokens) for pack in packs), default=0)
            if self.accelerator.num_processes > 1 or all(len(pack.examples) < 2 for pack in packs):
                raise UserError(
                    f"memory ran out in a pass of {largest} tokens. Lower engine.tokens_per_pass or data.max_tokens, "
                    "set engine.gradient_checkpointing: true, or take a smaller model or method"
                ) from error
        # outside the handler: the error's traceback would keep the failed pass alive
        self.optimizer.zero_grad(set_to_none=True)
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        self.tokens_per_pass = largest // 2
        emit({"kind": "notice", "text": f"memory ran out: passes of at most {largest // 2} tokens from here on"})
        set_random_state(before)
        return self._make_gradients(chosen, self._local_packs(chosen), emit)

    def _run_passes(self, chosen: list[Example], packs: list[Pack]) -> tuple[list[Tensor], dict[str, Any]]:
        size, world = self.objective.size(chosen), self.accelerator.num_processes
        totals: list[Tensor] = []
        parts: dict[str, Any] = {}
        passes = self._passes(packs, chosen)
        for index, (pack, counts) in enumerate(passes):
            last = index == len(passes) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model), self._stepping(last=last):
                with self.offload:
                    loss = self._forward(pack.to(self.accelerator.device))
                # distribution averages gradients over processes; the loss is a mean over the whole step
                self.accelerator.backward(loss.total * (counts * world / size))
            totals.append((loss.total if loss.reported is None else loss.reported).detach() * counts)
            add_parts(parts, loss.parts, counts)
        return totals, parts

    def _stepping(self, *, last: bool) -> AbstractContextManager[None]:
        """Return what the backward pass runs in: where the optimizer steps in it, weights are complete in the last."""
        if self.weight_steps and self.settings.optimizer_in_backward and last:
            return self.weight_steps.last_pass(self.progress.step)
        return nullcontext()

    def _forward(self, pack: Pack) -> Any:
        with self.accelerator.autocast():
            return pass_loss(self.model, self.objective, pack)

    def _passes(self, packs: Sequence[Pack], examples: Sequence[Example]) -> list[tuple[Pack, float]]:
        """Return *packs*, this process's share of *examples*, each with what it counts: 1, or 0 if it was added.

        Wrapped models talk at every pass, so a process with fewer packs than another makes passes that count nothing.
        """
        passes = [(pack, 1.0) for pack in packs]
        if self.accelerator.num_processes == 1:
            return passes
        count = torch.tensor([len(packs)], device=self.accelerator.device)
        most = int(self.accelerator.gather(count).max())
        shortest = min(examples, key=lambda e: e.tokens)
        (filler,) = build_packs([shortest], self.settings.layout, self.tokens_per_pass)
        return passes + [(filler, 0.0)] * (most - len(packs))

    def _clip(self) -> float:
        limit = self.settings.max_gradient_norm or math.inf
        return float(self.accelerator.clip_grad_norm_(training_weights(self.inner).values(), limit))

    def _sum(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        # not every accelerator has float64; losses of one step lose nothing that matters in float32
        summed: Tensor = self.accelerator.reduce(value.float().to(self.accelerator.device), "sum")
        return summed.cpu()

    def _asked_to_stop(self) -> bool:
        asked = torch.tensor(float(self.stop_reason is not None))
        return bool(self._sum(asked) > 0)

    def _after_step(self, held_out: list[Pack], validation: Sequence[Example], emit: Listener) -> str | None:
        """Evaluate and save where it is due; return why to end, if so."""
        settings, progress = self.settings, self.progress
        step, last = progress.step, progress.step == settings.steps
        best = False
        if validation and settings.evaluate_every and (step % settings.evaluate_every == 0 or last):
            measured = self._judge(held_out, validation)
            emit({"kind": "evaluation", "step": step, **measured})
            loss = measured["loss"]
            best = progress.best_loss is None or loss < progress.best_loss - settings.minimum_gain
            progress.evaluations_without_gain = 0 if best else progress.evaluations_without_gain + 1
            if best:
                progress.best_loss, progress.best_step = loss, step
        ended = self._out_of_patience()
        if best or last or ended or step % settings.checkpoint_every == 0:
            self._save(emit)
        return "early stopping" if ended and not last else None

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.progress.evaluations_without_gain >= patience

    def _save(self, emit: Listener) -> None:
        states = self._gather(random_state())
        if self.accelerator.is_main_process:
            self.progress.schedule = self.schedule.state_dict()
            with self.evaluating():
                weights, state = training_weights(self.inner.model), self.optimizer.state_dict()
                kept = {
                    "method": self.method.state(self.inner.model),
                    "average": self.average and self.average.state(),
                    "experience": self.settings.experience and self.settings.experience.state(),
                }
                path = save_checkpoint(self.checkpoints, self.progress, weights, state, states, kept)
            prune_checkpoints(self.checkpoints, self.settings.keep_checkpoints, self.progress.best_step)
            emit({"kind": "checkpoint", "step": self.progress.step, "path": str(path)})
        self.accelerator.wait_for_everyone()

    def _gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        if self.accelerator.num_processes == 1:
            return [state]
        from accelerate.utils import gather_object

        return list(gather_object([state]))

    def _keep_batch(self, chosen: list[Example], loss: float, norm: float) -> None:
        """Write down the batch that broke the run and stop."""
        step = self.progress.step + 1
        path = self.folder / f"failed-step-{step:08d}.json"
        rows = [{"origin": str(e.origin), "tokens": [s.tokens.tolist() for s in e.sequences]} for e in chosen]
        if self.accelerator.is_main_process:
            write_json(path, {"step": step, "loss": str(loss), "gradient_norm": str(norm), "examples": rows})
        raise NonFiniteError(
            f"step {step}: loss {loss}, gradient norm {norm}; the batch is kept in {path}. "
            "Lower schedule.learning_rate, raise schedule.warmup, or use engine.precision=bfloat16 or float32; "
            "then resume from the last checkpoint"
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether *error* is a device or the CPU running out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

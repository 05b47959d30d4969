"""The recipe: every setting of a run, typed, validated and frozen."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from tunesmith.core.errors import Problem
from tunesmith.core.registry import Block
from tunesmith.data.source import Source, check_source
from tunesmith.generation.settings import Generation
from tunesmith.methods import METHODS, Method
from tunesmith.models.schema import Model
from tunesmith.optimizers import OPTIMIZERS, Optimizer
from tunesmith.scoring import SCORERS, Scorer
from tunesmith.stages import STAGES, Stage
from tunesmith.templates.library import check_template_name


def _as_list(value: Any) -> Any:
    """Let one entry stand for a list of one."""
    return [value] if isinstance(value, str | dict) else value


class Data(Block):
    """What the model learns from, and what it is judged on."""

    train: Annotated[list[Source], BeforeValidator(_as_list), Field(min_length=1)]
    """Files, folders or Hub names to learn from; a plain path is enough where columns are named as usual."""

    validation: Annotated[list[Source], BeforeValidator(_as_list)] = []
    """Held-out data, never trained on: gives the validation loss and the questions that base and tuned model answer."""

    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training conversations to hold out instead of a validation file; 0.05 is a good start."""

    max_tokens: Annotated[int, Field(ge=2)] = 2048
    """Longest sequence, in tokens, prompt and answer together."""

    too_long: Literal["cut", "drop", "refuse"] = "cut"
    """What happens to a longer one: its answer loses its end, it is left out, or the run is refused. Always counted."""

    bad_rows: Literal["refuse", "skip"] = "refuse"
    """Whether a row that cannot be read stops the run or is skipped. Either way it is named with file and line."""

    def check(self) -> Iterable[Problem]:
        """Yield what is wrong with the files, reading only their beginnings."""
        for name, sources in (("train", self.train), ("validation", self.validation)):
            for index, source in enumerate(sources):
                yield from check_source(source, f"data.{name}.{index}")

    @model_validator(mode="after")
    def _one_validation(self) -> Self:
        if self.validation and self.validation_share:
            raise ValueError("validation and validation_share exclude each other; keep one of them")
        return self


class Template(Block):
    """How messages become text."""

    short_for: ClassVar[str] = "name"

    name: Annotated[str, AfterValidator(check_template_name)] = "auto"
    """``auto`` (the tokenizer's own), a named template for base models, or the path of a ``.jinja`` file."""

    arguments: dict[str, Any] = {}
    """Arguments the template takes, such as ``enable_thinking: false``; the same ones are used when serving."""


class Schedule(Block):
    """How long and how fast to train."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training data; ignored when ``steps`` is set."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; set it to stop after so many, whatever the epochs."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples that one optimizer step sees, over all devices, however they are laid out in memory."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; left out, the method's usual one (LoRA about ten times full fine-tuning's)."""

    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Steps of rising rate: below 1 a share of all steps, from 1 a number of steps."""

    decay: Literal[
        "linear", "cosine", "constant", "polynomial", "inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay"
    ] = "cosine"
    """How the rate falls after warm-up (the names of transformers' schedulers)."""

    decay_arguments: dict[str, float | int] = {}
    """Arguments of that scheduler, such as ``min_lr_rate: 0.1`` or ``num_decay_steps: 100``."""

    max_gradient_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the gradient's norm to this; 0 does not clip."""


class Engine(Block):
    """How the work is laid out. None of this changes what is learnt, beyond rounding."""

    layout: Literal["auto", "prefix", "packed", "padded"] = "auto"
    """``prefix`` packs and computes shared prompts once, ``packed`` only packs, ``padded`` is one sequence a row."""

    tokens_per_pass: Annotated[int, Field(ge=1)] | None = None
    """Tokens that one forward pass holds; lower it when memory runs out. Left out, the plan chooses."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward pass. Trained weights are always kept in float32."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, a fraction of the memory."""


class Evaluation(Block):
    """How the model is judged, during training and after."""

    every: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between validation losses; left out, about ten times a run."""

    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many validations without a better loss; left out, never."""

    minimum_gain: Annotated[float, Field(ge=0)] = 0.0
    """How much lower a validation loss must be to count as better."""

    scores: Annotated[list[Annotated[SerializeAsAny[Scorer], SCORERS]], BeforeValidator(_as_list)] = []
    """Scores of the answers on validation data, base against tuned model, once training has ended."""

    examples: Annotated[int, Field(ge=0)] = 50
    """Validation conversations to answer with both models; 0 answers none."""

    generation: Generation = Generation()


class Checkpoints(Block):
    """What is kept to resume from and to choose from."""

    every: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between checkpoints; left out, at the end of each epoch and when the run is stopped."""

    keep: Annotated[int, Field(ge=1)] = 2
    """How many recent checkpoints stay on disk; the best one always stays."""

    use: Literal["best", "last"] = "best"
    """Which weights the run ends with: those of the lowest validation loss (if there is one), or the last."""


class Recipe(Block):
    """A complete, reproducible description of one run."""

    model: Model
    """What to start from: a Hub name, a folder, an earlier run, or ``scratch``."""

    data: Data

    output: Annotated[Path, AfterValidator(Path.expanduser)]
    """Folder the run writes to."""

    template: Template = Template()

    stage: Annotated[SerializeAsAny[Stage], STAGES] = Field(default_factory=STAGES.make_default)
    """What is minimised."""

    method: Annotated[SerializeAsAny[Method], METHODS] = Field(default_factory=METHODS.make_default)
    """Which weights train."""

    optimizer: Annotated[SerializeAsAny[Optimizer], OPTIMIZERS] = Field(default_factory=OPTIMIZERS.make_default)
    """How a gradient becomes a step."""

    schedule: Schedule = Schedule()
    engine: Engine = Engine()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds new weights, the order of the data, dropout and sampling."""

    def check(self) -> Iterable[Problem]:
        """Yield what cannot work although each setting by itself may; light: no torch, no weights, no network."""
        yield from self.data.check()
        yield from self.model.check()
        for plugin in (self.stage, self.method, self.optimizer, *self.evaluation.scores):
            yield from plugin.check(self)
        if self.evaluation.patience and not (self.data.validation or self.data.validation_share):
            yield Problem(
                "evaluation.patience", "needs validation data to watch", hint="set data.validation or validation_share"
            )
        if self.evaluation.scores and not (self.data.validation or self.data.validation_share):
            yield Problem("evaluation.scores", "need validation data", hint="set data.validation or validation_share")


def check_blocks(values: dict[str, Any]) -> Iterable[Problem]:
    """Yield what is wrong with the data and the model of a recipe whose other settings are wrong already."""
    for name, block in (("data", Data), ("model", Model)):
        try:
            settled = block.model_validate(values.get(name))
        except ValidationError:
            continue  # the recipe's own validation says why
        yield from settled.check()

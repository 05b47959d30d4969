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
from tunesmith.models.quantized_base import check_quantization
from tunesmith.models.schema import Model
from tunesmith.optimizers import OPTIMIZERS, Optimizer
from tunesmith.recipe.decay import Decay, check_decay
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

    lost: Literal["refuse", "warn"] = "refuse"
    """Whether rows whose tools, reasoning or messages the template leaves out are refused, or counted and kept."""


class Schedule(Block):
    """How long and how fast to train."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training data; ignored when ``steps`` is set."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; set it to stop after so many, whatever the epochs."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples that one optimizer step sees, over all devices, however they are laid out in memory."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; left out, what is usual for method and optimizer (LoRA about ten times full fine-tuning)."""

    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Steps of rising rate: below 1 a share of all steps, from 1 a number of steps."""

    decay: Decay = "cosine"
    """How the rate falls after warm-up (the names of transformers' schedulers)."""

    decay_arguments: dict[str, float | int | str] = {}
    """Arguments of that scheduler, such as ``min_lr_rate: 0.1`` or ``num_decay_steps: 100``."""

    max_gradient_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the gradient's norm to this; 0 does not clip."""

    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Judge and save a moving average of the weights that keeps this share a step, such as 0.999; 0 averages none."""

    def check(self) -> Iterable[Problem]:
        """Yield arguments that the scheduler does not take."""
        yield from check_decay(self.decay, self.decay_arguments, self.learning_rate)


class Regularization(Block):
    """What keeps a model from learning its data by heart. It acts in training alone, never where a model is judged."""

    embedding_noise: Annotated[float, Field(ge=0)] = 0.0
    """NEFTune's alpha (arXiv:2310.05914): uniform noise on embeddings, less for longer sequences; 5 is usual."""

    layer_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of transformer blocks that each pass leaves out at random (LayerDrop, arXiv:1909.11556); saves no time."""


class Engine(Block):
    """How the work is laid out. None of this changes what is learnt, beyond rounding."""

    layout: Literal["auto", "prefix", "packed", "padded", "single"] = "auto"
    """``prefix`` packs and shares prompts, ``packed`` packs; ``padded``: one sequence a row, ``single``: one a pass."""

    tokens_per_pass: Annotated[int, Field(ge=1)] | None = None
    """Tokens that one forward pass holds; lower it when memory runs out. Left out, the plan chooses."""

    attention: Literal["auto", "dense", "segments", "flex", "varlen"] = "auto"
    """How attention is computed: ``dense`` masks all pairs, ``segments`` (CPU), ``flex`` and ``varlen`` (CUDA) skip."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward pass, whatever ``weights`` are kept in."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""

    compile: Literal["auto"] | bool = "auto"
    """Compile the transformer blocks; ``auto`` does so where the run is long enough to win back the warm-up."""

    gradient_checkpointing: bool | Literal["selective"] = False
    """Compute activations again in the backward pass: ``true`` all, ``selective`` all but matrix products."""

    activation_offload: bool = False
    """Keep activations in the CPU's memory between forward and backward pass; needs a GPU."""

    optimizer_in_backward: bool = False
    """Step each weight, and free its gradient, as soon as that is complete; needs ``max_gradient_norm: 0``."""

    weights: Literal["float32", "bfloat16"] = "float32"
    """Type of the model's own weights while they train; ``bfloat16`` rounds updates by chance, for half the memory."""


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

    use: Literal["best", "last", "average"] = "best"
    """Weights the run ends with: of the lowest validation loss (if there is one), the last, or the mean of all kept."""


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
    regularization: Regularization = Regularization()
    engine: Engine = Engine()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds new weights, the order of the data, dropout and sampling."""

    def check(self) -> Iterable[Problem]:
        """Yield what cannot work although each setting by itself may; light: no torch, no weights, no network."""
        yield from self.data.check()
        yield from self.model.check()
        yield from check_quantization(self.model, self)
        yield from self.schedule.check()
        yield from self._check_levers()
        yield from self._check_tricks()
        sampled = (self.evaluation.generation.constraint, self.evaluation.generation.best_by)
        for plugin in (self.stage, self.method, self.optimizer, *self.evaluation.scores, *filter(None, sampled)):
            yield from plugin.check(self)
        if self.evaluation.patience and not (self.data.validation or self.data.validation_share):
            yield Problem(
                "evaluation.patience", "needs validation data to watch", hint="set data.validation or validation_share"
            )
        if self.evaluation.scores and not (self.data.validation or self.data.validation_share):
            yield Problem("evaluation.scores", "need validation data", hint="set data.validation or validation_share")

    def _check_tricks(self) -> Iterable[Problem]:
        """Yield why new tokens would not train, or averages of weights would be none."""
        if self.model.new_tokens and self.method.adds_adapter:
            settings = dict(self.method)
            if "trained_tokens" not in settings and not settings.get("modules_to_save"):
                problem = f"{self.method.type_name()} trains no single rows of embeddings"
                hint = "use method: lora or full, or method.modules_to_save: [embed_tokens, lm_head] where there is one"
                yield Problem("model.new_tokens", problem, hint=hint)
        if self.checkpoints.use == "average" and self.checkpoints.keep < 2:
            problem = "the average of one checkpoint is that one"
            yield Problem("checkpoints.use", problem, hint="set checkpoints.keep: 5")
        if self.schedule.ema_decay and self.optimizer.averages_weights:
            problem = f"{self.optimizer.type_name()} averages the weights already"
            yield Problem("schedule.ema_decay", problem, hint="set it to 0, or use optimizer: adamw")

    def _check_levers(self) -> Iterable[Problem]:
        """Yield why a lever on memory would change what is learnt, or would not save anything."""
        engine = self.engine
        if engine.activation_offload and engine.gradient_checkpointing == "selective":
            yield Problem(
                "engine.activation_offload",
                "cannot reach the products that selective checkpointing keeps",
                hint="use engine.gradient_checkpointing: true, whose block inputs it moves, or false",
            )
        if engine.weights == "bfloat16":
            path = "engine.weights"
            if self.method.adds_adapter:
                yield Problem(path, "adapters train in float32: they are small", hint="use float32, or method: full")
            if engine.precision in ("float32", "float16"):
                yield Problem(path, f"bfloat16 weights, {engine.precision} arithmetic", hint="use precision: bfloat16")
            if self._needs_all_weights():
                yield Problem(path, f"steps weights one by one; {self._needs_all_weights()}", hint="use float32")
        if engine.optimizer_in_backward:
            path = "engine.optimizer_in_backward"
            if self.schedule.max_gradient_norm:
                yield Problem(
                    path,
                    "the norm to clip to is not known before all gradients are",
                    hint="set schedule.max_gradient_norm: 0, or leave it off",
                )
            if engine.precision == "float16":
                yield Problem(path, "float16 scales all gradients together", hint="use precision: bfloat16 or float32")
            if self._needs_all_weights():
                yield Problem(
                    path, self._needs_all_weights(), hint="leave it off, or use optimizer: adamw, method: full"
                )

    def _needs_all_weights(self) -> str:
        """Return why no weight can be stepped before the others have their gradients; nothing where it can."""
        own = type(self.method)
        if own.before_step is not Method.before_step or own.after_step is not Method.after_step:
            return f"{own.type_name()} looks at the gradients of all weights around each step"
        return self.optimizer.needs_all_weights


def check_blocks(values: dict[str, Any]) -> Iterable[Problem]:
    """Yield what is wrong with the data and the model of a recipe whose other settings are wrong already."""
    for name, block in (("data", Data), ("model", Model)):
        try:
            settled = block.model_validate(values.get(name))
        except ValidationError:
            continue  # the recipe's own validation says why
        yield from settled.check()

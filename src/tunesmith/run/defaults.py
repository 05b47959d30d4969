"""Defaults that rest on evidence, each with its source, and the seeds of failure that can be seen before a run.

Sources
    [schulman2025]  Schulman et al., "LoRA Without Regret", Thinking Machines 2025: LoRA's best rate is about ten times
                    that of full fine-tuning, whatever the rank; it learns like full fine-tuning until the data hold
                    more than the adapters can (about two bits a parameter, against one bit a trained token).
    [dettmers2023]  QLoRA, arXiv:2305.14314, table of hyperparameters: 2e-4 up to 13B parameters, 1e-4 for 33B and 65B.
    [ivison2023]    Tülu 2, arXiv:2311.10702: full fine-tuning at 2e-5 up to 13B, 1e-5 for 70B; 2 epochs.
    [brown2020]     GPT-3, arXiv:2005.14165, table 2.1: from random weights 6e-4 at 125M, 3e-4 at 350M, 2e-4 at 1.3B.
    [muennighoff2023] arXiv:2305.16264: up to four passes over the same data are nearly as good as new data.
    [peft2026]      huggingface/peft, method_comparison/MetaMathQA/results: every method on Llama-3.2-3B, 5,000 steps of
                    4 rows, accuracy on GSM8K; the rates here are those of the best run of a method, where its runs or
                    its authors say that it needs another rate than LoRA.
    [zhou2023]      LIMA, arXiv:2305.11206: 1,000 examples, 15 epochs: held-out loss rises long before quality falls.
Everything else is our judgement, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.methods import Method
    from tunesmith.recipe.schema import Recipe

# parameters -> rate for weights that start from nothing, and the share of a method's usual rate that large models take
_FROM_NOTHING = ((250e6, 6e-4), (700e6, 3e-4), (3e9, 2e-4), (float("inf"), 1.2e-4))
_LARGE, _SHARE_OF_LARGE = 25e9, 0.5
_LORA_RATE = 2e-4

# methods that want another rate than LoRA's: what [peft2026] found, and the accuracy there (LoRA: 0.478 at 1e-4).
# The others have that of their class, ``Method.learning_rate``
_MEASURED_RATES = {
    "c3a": 3e-1,  # 0.487
    "delora": 1e-3,  # 0.468
    "hira": 4.5e-3,  # 0.513
    "lokr": 3e-3,  # 0.466
    "road": 1e-3,  # 0.385
    "shira": 3e-4,  # 0.510
}

# our judgement: how many times the usual rate still is a choice, and not a mistake
_MOST_ABOVE = {"adapter": 10, "whole": 5}
# our judgement: more weights than this for each trained token learn the rows by heart before they learn the task
_MOST_WEIGHTS_PER_TOKEN = 2000
_SMALLEST_RANK = 8
# [schulman2025]: trained tokens for each weight of the adapters, beyond which they are too small for the data
_MOST_TOKENS_PER_WEIGHT = 2
# [muennighoff2023], [zhou2023]: passes over the data after which only held-out data can tell whether it still learns
_MOST_EPOCHS = 10
_FEWEST_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a run when its defaults are chosen."""

    examples: int
    trained_tokens: int
    steps: int
    learning_rate: float
    parameters: int | None = None
    trained: int | None = None


def method_rate(method: type[Method]) -> float:
    """Return the peak learning rate that is usual for *method* with AdamW, on models of up to 25 billion parameters."""
    return _MEASURED_RATES.get(method.type_name(), method.learning_rate)


def usual_rate(recipe: Recipe, parameters: int | None) -> tuple[float, str]:
    """Return the peak learning rate for *recipe*'s method and a model of so many *parameters*, and why."""
    method = recipe.method.type_name()
    if recipe.model.scratch is not None:
        size = parameters or 0
        rate = next(rate for most, rate in _FROM_NOTHING if size <= most)
        return recipe.optimizer.usual_rate(rate), "usual for weights that start from nothing [GPT-3, table 2.1]"
    given = method_rate(type(recipe.method))
    rate = recipe.optimizer.usual_rate(given)
    own = "" if rate == given else f" with {recipe.optimizer.type_name()}"
    why = f"usual for {method}{own}"
    share = recipe.stage.rate_share
    if share != 1:
        rate *= share
        why += f", {share:g} of it for {recipe.stage.type_name()} [defaults of TRL and the method's paper]"
    if method in _MEASURED_RATES:
        why += " [method comparison of huggingface/peft]"
    elif recipe.method.adds_adapter and given == _LORA_RATE:
        why += ", about ten times full fine-tuning's [LoRA Without Regret, 2025]"
    if parameters and parameters >= _LARGE:
        source = "QLoRA" if recipe.method.adds_adapter else "Tülu 2"
        return rate * _SHARE_OF_LARGE, f"{why}; half of it from 25 billion parameters on [{source}]"
    return rate, why


def seeds_of_failure(recipe: Recipe, facts: Facts) -> Iterator[str]:
    """Yield what a look at the numbers says will go wrong, or may; each with what would be right."""
    yield from _rate(recipe, facts)
    yield from _capacity(recipe, facts)
    yield from _length(recipe, facts)


def _rate(recipe: Recipe, facts: Facts) -> Iterator[str]:
    usual, _ = usual_rate(recipe, facts.parameters)
    most = _MOST_ABOVE["adapter" if recipe.method.adds_adapter else "whole"]
    if facts.learning_rate > most * usual and recipe.model.scratch is None:
        yield (
            f"learning rate {facts.learning_rate:g} is {facts.learning_rate / usual:.0f} times what is usual for "
            f"{recipe.method.type_name()} ({usual:g}): the model may forget what it knows, or diverge"
        )


def _capacity(recipe: Recipe, facts: Facts) -> Iterator[str]:
    # what an online stage will learn from is not known yet, and it does not learn the data's answers by heart
    # and a head reads one number of a whole text, whose tokens are not counted
    if not facts.trained or not recipe.method.adds_adapter or recipe.stage.online or recipe.stage.head is not None:
        return
    rank = int(dict(recipe.method).get("rank") or 0)
    weights = facts.trained / max(1, facts.trained_tokens)
    if rank > _SMALLEST_RANK and weights > _MOST_WEIGHTS_PER_TOKEN:
        yield (
            f"{facts.trained:,} weights train on {facts.trained_tokens:,} tokens: rank {rank} is more than so little "
            "data supports; take rank 8 or less, or more data [our judgement]"
        )
    if facts.trained_tokens > _MOST_TOKENS_PER_WEIGHT * facts.trained:
        yield (
            f"{facts.trained_tokens:,} trained tokens are more than {facts.trained:,} adapter weights can hold: raise "
            "method.rank, or train the whole model [LoRA Without Regret, 2025]"
        )


def _length(recipe: Recipe, facts: Facts) -> Iterator[str]:
    schedule = recipe.schedule
    epochs = facts.steps * schedule.batch_size / max(1, facts.examples)
    watched = recipe.data.validation or recipe.data.validation_share
    rereads = recipe.model.scratch is None and not recipe.stage.online
    if epochs >= _MOST_EPOCHS and rereads and not (watched and recipe.evaluation.patience):
        yield (
            f"{epochs:.0f} passes over {facts.examples:,} examples learn them by heart: hold some out "
            "(data.validation_share: 0.05) and stop in time (evaluation.patience: 3)"
        )
    if facts.steps < _FEWEST_STEPS and facts.examples >= schedule.batch_size and schedule.steps is None:
        yield (
            f"only {facts.steps} optimizer steps: with {facts.examples:,} examples, lower schedule.batch_size "
            f"(now {schedule.batch_size}) or raise schedule.epochs [our judgement]"
        )

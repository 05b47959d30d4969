"""How the learning rate may fall: transformers' schedulers and the arguments that each takes, known without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.errors import Problem
from tunesmith.core.registry import suggest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Not here: constant_with_warmup is ``constant`` with ``warmup``; reduce_lr_on_plateau and greedy lower the rate when a
# validation loss says so, which makes the rate of a step depend on how often one evaluates.
Decay = Literal[
    "linear",
    "cosine",
    "constant",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]

_SHAPES = ("linear", "cosine", "1-sqrt")

# name -> argument -> what it must be; the steps and the warm-up are the recipe's own
DECAY_ARGUMENTS: dict[str, dict[str, type | tuple[str, ...]]] = {
    "linear": {},
    "cosine": {"num_cycles": float},
    "constant": {},
    "polynomial": {"lr_end": float, "power": float},
    "inverse_sqrt": {"timescale": int},
    "cosine_with_restarts": {"num_cycles": int},
    "cosine_with_min_lr": {"num_cycles": float, "min_lr": float, "min_lr_rate": float},
    "cosine_warmup_with_min_lr": {
        "num_cycles": float,
        "min_lr": float,
        "min_lr_rate": float,
        "warmup_lr_rate": float,
    },
    "warmup_stable_decay": {
        "num_decay_steps": int,
        "warmup_type": _SHAPES,
        "decay_type": _SHAPES,
        "min_lr_ratio": float,
        "num_cycles": float,
    },
}


def check_decay(decay: str, arguments: Mapping[str, Any], learning_rate: float | None) -> Iterable[Problem]:
    """Yield arguments that the scheduler *decay* does not take, or not so."""
    path, known = "schedule.decay_arguments", DECAY_ARGUMENTS[decay]
    for name, value in arguments.items():
        if name not in known:
            hint = f"it takes {', '.join(known)}" if known else "it takes none"
            yield Problem(f"{path}.{name}", f"{decay} does not take it{suggest(name, known)}", hint=hint)
            continue
        wanted = known[name]
        if isinstance(wanted, tuple):
            if value not in wanted:
                yield Problem(f"{path}.{name}", f"is {value!r}", hint=f"one of {', '.join(wanted)}")
        elif isinstance(value, str) or value < 0 or (wanted is int and value != int(value)):
            what = "a whole number" if wanted is int else "a number"
            yield Problem(f"{path}.{name}", f"is {value!r}", hint=f"{what} that is not negative")
    if {"min_lr", "min_lr_rate"} <= set(arguments):
        yield Problem(path, "min_lr and min_lr_rate say the same in two ways", hint="keep one of them")
    end = arguments.get("lr_end")
    if learning_rate is not None and isinstance(end, float | int) and end >= learning_rate:
        yield Problem(f"{path}.lr_end", f"{end:g} is not below the learning rate {learning_rate:g}")

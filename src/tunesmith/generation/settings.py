"""How text is sampled: the settings that recipes, chat, evaluation and the server share."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from tunesmith.core.registry import Block
from tunesmith.generation.constraints import CONSTRAINTS, Constraint
from tunesmith.generation.presets import PRESETS
from tunesmith.scoring import SCORERS, Scorer

MOST_ALTERNATIVES = 20
"""The most alternatives to a token whose probabilities are told, as OpenAI's API has it."""


class Generation(Block):
    """How answers are sampled."""

    preset: Literal["greedy", "precise", "official", "balanced", "creative", "poetry"] | None = None
    """Named values for what is left out here: official for documents, poetry for verse; the guide lists them."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer, in tokens."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token; poems like 0.8 to 1.0, official documents 0.3 to 0.5."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample only from so many of the likeliest tokens; 0 from all."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample only from the likeliest tokens that together reach this probability."""

    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample only from tokens at least this share as likely as the likeliest one; 0.02 to 0.1 are usual."""

    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample only from the tokens nearest to the expected surprise that together reach this probability."""

    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens of the prompt and the answer get less likely (arXiv:1909.05858); 1.1 is much."""

    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off the logits of tokens that are in the answer already (as in OpenAI's API)."""

    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off a token's logit for each time it is in the answer already (as in OpenAI's API)."""

    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**64)] = None
    """The same seed writes the same answer, whoever is answered at the same time; left out, chance or the run's."""

    stop: tuple[str, ...] = ()
    """Texts that end an answer, and are no part of it."""

    num_beams: Annotated[int, Field(ge=1)] = 1
    """Beams of a search for the likeliest answer; 1 does not search."""

    best_of: Annotated[int, Field(ge=1, le=64)] = 1
    """Answers to sample, of which the best is given."""

    best_by: Annotated[SerializeAsAny[Scorer] | None, SCORERS] = None
    """The score that says which is the best; left out, the mean log-probability of its tokens."""

    constraint: Annotated[SerializeAsAny[Constraint] | None, CONSTRAINTS] = None
    """What answers must look like: a verse form, a JSON schema, a regular expression, a choice; left out, nothing."""

    log_probabilities: Annotated[int | None, Field(ge=0, le=MOST_ALTERNATIVES)] = None
    """Tell each token's log-probability, and those of so many alternatives; left out, tell none."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Prompts answered at once."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        name = values.get("preset") if isinstance(values, Mapping) else None
        return {**PRESETS[name], **values} if isinstance(name, str) and name in PRESETS else values

    @field_validator("stop", mode="before")
    @classmethod
    def _read_one_stop(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty text would end every answer at once; leave it out")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.best_of > 1 and not self.temperature:
            raise ValueError(f"best_of: {self.best_of} answers at temperature 0 are all the same; set a temperature")
        if self.best_by is not None and self.best_of == 1:
            raise ValueError("best_by: there is one answer to choose from; set best_of")
        if self.num_beams > 1:
            others = {"temperature": self.temperature, "best_of": self.best_of > 1, "stop": self.stop}
            others |= {"log_probabilities": self.log_probabilities is not None}
            if wrong := [name for name, value in others.items() if value]:
                raise ValueError(f"num_beams: a search for the likeliest answer has no {', '.join(wrong)}")
        return self

"""How text is sampled: the settings that recipes, chat and evaluation share."""

from typing import Annotated

from pydantic import Field

from tunesmith.core.registry import Block


class Generation(Block):
    """How answers are sampled."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer, in tokens."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token; poems like 0.8 to 1.0."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample only from the likeliest tokens that together reach this probability."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Prompts answered at once."""

"""FP8 in blocks (arXiv:2412.19437, DeepSeek-V3): eight bits as floating-point numbers, a scale for each 128 x 128."""

from __future__ import annotations

from typing import ClassVar

from tunesmith.models.quantization._unpacked import AbstractUnpacked


class FP8(AbstractUnpacked):
    """Keep weights as 8-bit floats on GPUs that multiply those, or unpack a model that comes so."""

    packages: ClassVar[tuple[str, ...]] = ("kernels",)
    transformers_config: ClassVar[str] = "FineGrainedFP8Config"
    usual_bytes: ClassVar[float] = 1 + 4 / 128**2

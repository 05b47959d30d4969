"""MXFP4 (OCP microscaling formats, as in gpt-oss): four bits as floating-point numbers, a scale for each 32."""

from __future__ import annotations

from typing import ClassVar

from tunesmith.models.quantization._unpacked import AbstractUnpacked


class MXFP4(AbstractUnpacked):
    """Keep the experts of gpt-oss in 4 bits, or unpack a model that comes so."""

    packages: ClassVar[tuple[str, ...]] = ("kernels", "triton")
    transformers_config: ClassVar[str] = "Mxfp4Config"
    usual_bytes: ClassVar[float] = 0.5 + 1 / 32

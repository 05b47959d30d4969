"""AdamW whose state moves to the host's memory where the GPU's runs short (arXiv:2305.14314), by bitsandbytes."""

from typing import ClassVar

from tunesmith.optimizers._bitsandbytes import AbstractBitsAndBytesAdamW


class PagedAdamW(AbstractBitsAndBytesAdamW):
    """Survives short peaks of memory; slow where the state never fits. Needs CUDA."""

    paged: ClassVar[bool] = True

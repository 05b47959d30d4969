"""AdamW with state of 8 bits that moves to the host's memory (arXiv:2305.14314), by bitsandbytes."""

from typing import ClassVar

from tunesmith.optimizers._bitsandbytes import STEP_FLOATS_IN_8_BITS, AbstractBitsAndBytesAdamW


class PagedAdamW8bit(AbstractBitsAndBytesAdamW):
    """QLoRA's choice on a card that is nearly full. Needs CUDA."""

    state_bytes_per_weight: ClassVar[float] = 2.03
    step_floats: ClassVar[float] = STEP_FLOATS_IN_8_BITS
    bits: ClassVar[int] = 8
    paged: ClassVar[bool] = True

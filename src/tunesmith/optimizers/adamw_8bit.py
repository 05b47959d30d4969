"""AdamW with state of 8 bits (arXiv:2110.02861), by bitsandbytes: two bytes a weight instead of eight."""

from typing import ClassVar

from tunesmith.optimizers._bitsandbytes import STEP_FLOATS_IN_8_BITS, AbstractBitsAndBytesAdamW


class AdamW8bit(AbstractBitsAndBytesAdamW):
    """Nearly AdamW's result in a quarter of its memory; worth it where whole weights train."""

    state_bytes_per_weight: ClassVar[float] = 2.03
    step_floats: ClassVar[float] = STEP_FLOATS_IN_8_BITS
    bits: ClassVar[int] = 8

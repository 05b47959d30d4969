"""From sacrebleu's hundred to our one."""


def as_share(score: float) -> float:
    """Return *score*, of 100, as a number in [0, 1]; sacrebleu may exceed 100 in the last bit."""
    return min(score / 100, 1.0)

"""Machines by name, so that a run can be planned for one that is not at hand: sizes and speeds, with their sources."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tunesmith.core.errors import UserError
from tunesmith.core.registry import suggest
from tunesmith.run.machine import Machine

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """One kind of device."""

    name: str
    memory_bytes: int
    """What a program can see of it, a little less than what is printed on the box."""
    teraflops: float
    """Dense bfloat16 products with float32 sums, 10^12 operations a second, as the vendor states them."""
    bandwidth: float
    """Of its memory, in 10^9 bytes a second."""
    source: str
    device: str = "cuda"

    def machine(self, processes: int = 1) -> Machine:
        """Return the machine that a plan for this card is made for."""
        return Machine(
            device=self.device,
            name=self.name,
            bfloat16=self.device != "cpu",
            memory_bytes=self.memory_bytes,
            processes=processes,
        )


@dataclass(frozen=True)
class Size:
    """A memory that was asked for by its size."""

    memory_bytes: int | None
    """None for as much as there is here."""
    of_cpu: bool
    """Whether it was said to be the processor's, not a card's."""


_AMPERE = "NVIDIA Ampere GA102 whitepaper, appendix A"
_ADA = "NVIDIA Ada GPU architecture whitepaper, appendix A"
_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A"
_A100 = "NVIDIA A100 data sheet"
_HOPPER = "NVIDIA H100 (SXM) data sheet, without sparsity"
_H200 = "NVIDIA H200 (SXM) data sheet, without sparsity"
_APPLE = "our judgement: an M-series Max, whose makers state no such figure; three quarters of the memory can be used"

# the GeForce cards do half as many operations when sums are float32, as in training
CARDS = {
    "3090": Card("RTX 3090", int(23.7 * GIB), 71, 936, _AMPERE),
    "4090": Card("RTX 4090", int(23.6 * GIB), 165, 1008, _ADA),
    "5090": Card("RTX 5090", int(31.4 * GIB), 209, 1792, _BLACKWELL),
    "a100-40": Card("A100 40 GB", int(39.4 * GIB), 312, 1555, _A100),
    "a100-80": Card("A100 80 GB", int(79.2 * GIB), 312, 2039, _A100),
    "h100": Card("H100", int(79.2 * GIB), 989, 3350, _HOPPER),
    "h200": Card("H200", int(139.8 * GIB), 989, 4800, _H200),
    "mac-16": Card("Mac with 16 GB", 12 * GIB, 10, 400, _APPLE, "mps"),
    "mac-32": Card("Mac with 32 GB", 24 * GIB, 10, 400, _APPLE, "mps"),
    "mac-64": Card("Mac with 64 GB", 48 * GIB, 10, 400, _APPLE, "mps"),
    "cpu-16": Card("CPU with 16 GB", 15 * GIB, 0.5, 50, "our judgement: eight cores", "cpu"),
    "cpu-64": Card("CPU with 64 GB", 62 * GIB, 1.0, 80, "our judgement: sixteen cores", "cpu"),
}
# what a program sees of the memory that is printed on a card's box: 0.98 to 0.99 for those above
_VISIBLE = 0.985
_OWN = "cpu|ram"
_SIZE = re.compile(
    rf"(?:(?P<before>{_OWN})[ :])?(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>g|gb|gib|m|mb|mib)(?:[ :](?P<after>{_OWN}))?",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"^(nvidia|geforce|rtx|apple|tesla)[ _-]*")


def find_card(name: str, option: str = "--card") -> Card:
    """Return the card called *name*, however it is spelt; raise :class:`UserError` that lists those there are."""
    plain, last = name.strip().lower(), ""
    while plain != last:
        plain, last = _PREFIX.sub("", plain), plain
    plain = re.sub(r"(gi?b|g)$", "", re.sub(r"[ _]+", "-", plain)).rstrip("-")
    if plain in CARDS:
        return CARDS[plain]
    several = [key for key in CARDS if plain and key.startswith(f"{plain}-")]
    near = f"; did you mean {' or '.join(several)}?" if several else suggest(plain, list(CARDS))
    raise UserError(f"{option}: no card is called {name!r}{near}; have {', '.join(CARDS)}")


def nameless_card(size: int) -> Card:
    """Return a CUDA card on whose box *size* bytes are printed, as fast as the slowest that we know."""
    slowest = min((card for card in CARDS.values() if card.device == "cuda"), key=lambda card: card.teraflops)
    return replace(
        slowest,
        name=f"a CUDA card of {size / GIB:g} GB",
        memory_bytes=int(size * _VISIBLE),
        source=f"as {slowest.name}: {slowest.source}",
    )


def read_size(text: str, option: str = "--fit") -> Size | Card:
    """Return the memory that *text* names, such as ``24GB`` or ``ram 24GB``, or the card.

    Raises :class:`UserError` for neither.  As memory is sold, ``24GB`` is 24 x 2^30 bytes.
    """
    if text.strip().lower() in _OWN.split("|"):
        return Size(None, of_cpu=True)
    match = _SIZE.fullmatch(text.strip())
    if match:
        number, unit = float(match["number"]), match["unit"][0].lower()
        size = int(number * (GIB if unit == "g" else 2**20))
        if size < 64 * 2**20:
            raise UserError(f"{option}: {text} is less than any run needs; give the memory of a device, such as 24GB")
        return Size(size, of_cpu=bool(match["before"] or match["after"]))
    try:
        number = float(text)
    except ValueError:
        return find_card(text, option)
    if text.strip() in CARDS:
        return CARDS[text.strip()]
    raise UserError(f"{option}: {text} of what? write {number:g}GB, or a card such as 4090")

"""P-tuning: virtual tokens whose embeddings a small network writes while training (arXiv:2103.10385)."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.methods._virtual import AbstractVirtualTokens


class PTuning(AbstractVirtualTokens):
    """Train a network that writes the embeddings of virtual tokens; only what it wrote is saved."""

    peft_config: ClassVar[str] = "PromptEncoderConfig"
    cannot_continue: ClassVar[str] = "p_tuning saves what its network wrote, and not the network"

    hidden_size: Annotated[int, Field(ge=1)] = 128
    """Width of the network."""

    def options(self) -> dict[str, Any]:
        """Return the network's settings as peft calls them."""
        return {**super().options(), "encoder_hidden_size": self.hidden_size}

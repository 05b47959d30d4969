"""LoRA: low-rank adapters beside frozen linear layers (arXiv:2106.09685)."""

from tunesmith.methods._lora import AbstractLoRA


class LoRA(AbstractLoRA):
    """Train plain low-rank adapters: the usual choice."""

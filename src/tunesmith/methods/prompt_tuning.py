"""Prompt tuning: the embeddings of virtual tokens in front of the text (arXiv:2104.08691)."""

from typing import Any, ClassVar, Literal

from tunesmith.methods._virtual import AbstractVirtualTokens


class PromptTuning(AbstractVirtualTokens):
    """Train the embeddings of virtual tokens: a few thousand weights; slow to learn, best with large models."""

    peft_config: ClassVar[str] = "PromptTuningConfig"

    start: Literal["words", "random"] = "words"
    """What they begin with: embeddings of randomly chosen tokens of the model, or random numbers."""

    def options(self) -> dict[str, Any]:
        """Return the start as peft calls it."""
        return {**super().options(), "prompt_tuning_init": "SAMPLE_VOCAB" if self.start == "words" else "RANDOM"}

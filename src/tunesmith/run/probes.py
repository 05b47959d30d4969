"""Fixed texts that two forms of a model are compared on, and what a model makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.data.conversation import Conversation, Message
from tunesmith.generation.settings import Generation
from tunesmith.models.peft_warnings import quiet_peft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.run.evaluate import Contestant

# short, of several kinds and languages; what they say does not matter, only that both models say the same
PROBES = (
    "春风又绿江南岸",
    "Once upon a time",
    "请对出下联。\n白日依山尽",
    "What is the capital of France?",
    "def add(a, b):",
    "1 2 3 4",
)
PROBE_TOKENS = 32


def probe_dialogues() -> list[Conversation]:
    """Return the probes as questions of a user."""
    return [Conversation((Message("user", text),)) for text in PROBES]


def probe_prompts(contestant: Contestant) -> list[list[int]]:
    """Return the tokens that the model is asked the probes with."""
    template = contestant.template
    return template.prompts(probe_dialogues()) if template.has_chat else template.encode(PROBES)


def continuations(contestant: Contestant) -> list[list[int]]:
    """Return the likeliest tokens with which the model goes on after each probe, past the end of its turn."""
    from tunesmith.generation.sample import answer_all

    contestant.model.eval()
    # one prompt at a time: filling rows up would round differently and hide nothing
    prompts = probe_prompts(contestant)
    with quiet_peft():
        settings = Generation(max_new_tokens=PROBE_TOKENS, batch_size=1)
        return answer_all(contestant.model, prompts, settings, stop_ids=())


def predictions(model: Any, prompt: Sequence[int], written: Sequence[int]) -> Any:
    """Return the log-probabilities ``[written, vocabulary]`` with which *model* goes on after *prompt*."""
    import torch

    tokens = torch.tensor([[*prompt, *written]], device=model.device)
    with torch.no_grad(), quiet_peft():
        logits = model.eval()(input_ids=tokens).logits[0, -len(written) - 1 : -1]
    return logits.float().log_softmax(-1)

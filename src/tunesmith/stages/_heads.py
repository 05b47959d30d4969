"""What stages share that train a head to read hidden states: where it reads, and what it cannot go with.

A head reads the state that would predict a token with a weight.  A text's last state predicts nothing, so a closing
token follows it, which nobody sees.

Legend: M predictions of a pack, S its sequences.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import Problem
from tunesmith.models.heads import filling_token
from tunesmith.models.schema import weights_folder
from tunesmith.stages._base import Example, Stage
from tunesmith.templates.learning import Learning
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.pack import Pack
    from tunesmith.templates.chat import ChatTemplate


class AbstractHead(Stage):
    """Train a head in place of the output head, with the layers below it."""

    def check(self, recipe: Any) -> Iterable[Problem]:
        """Yield what asks for text, which such a model does not write, and methods that have no place for a head."""
        name = self.type_name()
        if recipe.evaluation.scores:
            problem = f"scores judge answers, and a model of the stage {name} writes none"
            yield Problem("evaluation.scores", problem, hint="leave them out: it is judged on the validation data")
        if recipe.evaluation.generation.constraint is not None:
            problem = f"a model of the stage {name} writes no text"
            yield Problem("evaluation.generation.constraint", problem, hint="leave it out")
        method = recipe.method
        if method.adds_adapter and "modules_to_save" not in type(method).model_fields:
            problem = f"{method.type_name()} has no place beside its adapter for the head that {name} trains"
            yield Problem("method", problem, hint="use lora, or full")
        if recipe.model.adapter == "continue" and recipe.model.path is not None:
            yield from _check_adapter(Path(recipe.model.path), self)

    def size(self, examples: Sequence[Example]) -> float:
        """Return the number of examples."""
        return float(len(examples))


def _check_adapter(path: Path, stage: AbstractHead) -> Iterable[Problem]:
    """Yield that the adapter at *path* has no head that could go on training."""
    if not path.is_dir() or stage.head is None:
        return
    file = weights_folder(path) / "adapter_config.json"
    task = json.loads(file.read_text("utf-8")).get("task_type") if file.exists() else None
    if task != stage.head.task:
        problem = f"{path} is an adapter of the kind {task}, without the head that {stage.type_name()} trains"
        yield Problem("model.adapter", problem, hint="use merge, which adds a new one on top")


def closed(tokens: Sequence[int], template: ChatTemplate) -> TokenSequence:
    """Return *tokens* as a sequence whose last state is read, the last that transformers does not take for filling."""
    filling, ids = filling_token(template.tokenizer), [int(token) for token in tokens]
    while len(ids) > 1 and ids[-1] == filling:
        ids.pop()
    return TokenSequence.trained_from([*ids, ids[-1]], len(ids))


def whole_texts(conversations: Sequence[Conversation], template: ChatTemplate) -> list[TokenSequence]:
    """Return each conversation as it stands after its last turn; plain texts as the tokenizer reads them."""
    talks = iter(template.sequences([c for c in conversations if c.text is None], Learning()))
    texts = [c.text or "" for c in conversations if c.text is not None]
    plain = iter(template.tokenizer(texts)["input_ids"] if texts else [])
    # of several sequences, where the template rewrites history, the last one is the dialogue as it stands
    return [closed(next(talks)[-1].tokens.tolist() if c.text is None else next(plain), template) for c in conversations]


def in_order(outputs: Tensor, pack: Pack) -> Tensor:
    """Return *outputs*, ``[M, …]``, in the order of the pack's sequences, and in each that of its tokens."""
    import torch

    return outputs[torch.argsort(pack.sequence, stable=True)]


def truth_of(examples: Sequence[Example]) -> list[Any]:
    """Return the first value of each example."""
    return [example.values[0] for example in examples]


def joined(outputs: Sequence[Any]) -> Any:
    """Return ``[predictions, outputs]`` of all sequences as one array."""
    return np.concatenate([np.asarray(each) for each in outputs])

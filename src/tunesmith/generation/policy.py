"""The model that trains, as a stage asks it: answers to prompts, and log-probabilities of given sequences."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.engine.example import Example
from tunesmith.engine.model import pack_arguments
from tunesmith.engine.pack import build_packs
from tunesmith.generation.rollouts import sample_groups
from tunesmith.generation.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.model import PackModel
    from tunesmith.engine.pack import Layout
    from tunesmith.engine.start_weights import StartWeights
    from tunesmith.generation.remote_rollouts import RemoteSampler
    from tunesmith.generation.sampling import Completion, Sampling
    from tunesmith.templates.chat import ChatTemplate
    from tunesmith.templates.tokens import TokenSequence


class Policy:
    """A model with the template through which it is asked; whoever calls keeps it in evaluation mode."""

    def __init__(
        self,
        model: PackModel,
        template: ChatTemplate,
        accelerator: Any,
        *,
        layout: Layout,
        tokens_per_pass: int,
        seed: int,
        start: StartWeights | None = None,
    ) -> None:
        """*start* are the weights that :meth:`log_probabilities` compares with, where a stage does."""
        self.model, self.template, self.accelerator = model, template, accelerator
        self.layout, self.tokens_per_pass, self.seed, self.start = layout, tokens_per_pass, seed, start
        self.remote: RemoteSampler | None = None
        """Has a server write the answers, where one does."""

    def sample(
        self,
        asked: Sequence[tuple[Conversation, NDArray[np.int32]]],
        count: int,
        sampling: Sampling,
        turn: Sequence[int],
    ) -> list[list[Completion]]:
        """Return *count* answers to each conversation and its prompt.

        The same weights, run and *turn* always give the same ones.
        """
        stops, seed = self.template.stop_ids, [self.seed, *turn]
        prompts, walks = [prompt for _, prompt in asked], []
        if self.remote is not None:
            groups = self.remote.sample(prompts, count, sampling, stop_ids=stops, seed=seed)
            with self.accelerator.autocast():
                self.remote.check(self.model.base, prompts, groups, sampling.temperature)
            return groups
        if sampling.constraint is not None:
            vocabulary = Vocabulary.of(self.template.tokenizer)
            begin = int(np.random.SeedSequence(seed).generate_state(1)[0])
            talks = [conversation for conversation, _ in asked for _ in range(count)]
            walks = [sampling.constraint.start(vocabulary, talk, begin + at) for at, talk in enumerate(talks)]
        with self.accelerator.autocast():
            return sample_groups(self.model.base, prompts, count, sampling, stop_ids=stops, seed=seed, walks=walks)

    def read(self, asked: Sequence[tuple[Conversation, Sequence[int], Sequence[int]]]) -> list[str]:
        """Return the answers to conversations as scores read them, each given with its prompt and what was written.

        The token that ended an answer is no part of it; tool calls are lines of JSON.
        """
        written = [_before_stop(tokens, self.template.stop_ids) for _, _, tokens in asked]
        plain = self.template.tokenizer.batch_decode(written, skip_special_tokens=True)
        found = []
        for (conversation, prompt, _), tokens, text in zip(asked, written, plain, strict=True):
            calls = self.template.calls_as_text(conversation.tools, prompt, tokens)
            found.append(calls or text.strip())
        return found

    def log_probabilities(
        self, sequences: Sequence[TokenSequence], *, at_start: bool = False
    ) -> list[NDArray[np.float32]]:
        """Return those of each sequence's trained tokens, in order; *at_start* with the weights of the start."""
        return [found[:, 0].copy() for found in self.ask(sequences, at_start=at_start)]

    def ask(self, sequences: Sequence[TokenSequence], *, at_start: bool = False) -> list[NDArray[np.float32]]:
        """Return ``[t, 1]`` for the trained tokens of each sequence, their log-probabilities.

        Where the model has a value head it is ``[t, 2]``, the values beside them.
        """
        assert not at_start or self.start is not None
        assert self.model.teacher is None  # with one the model gives divergences
        out: list[NDArray[np.float32]] = [np.empty((0, 1), np.float32) for _ in sequences]
        examples = [Example((sequence,), values=(index,)) for index, sequence in enumerate(sequences)]
        weights = self.start.in_place() if at_start and self.start is not None else nullcontext()
        with weights, torch.no_grad(), self.accelerator.autocast():
            for pack in build_packs(examples, self.layout, self.tokens_per_pass):
                tensors = pack.to(self.accelerator.device)
                found = self.model(**pack_arguments(tensors))
                # predictions come in forest order, those of one sequence in the order of its tokens
                found = found.view(len(tensors.target), -1)
                flat = found[torch.argsort(tensors.sequence, stable=True)].float().cpu().numpy()
                ends = np.cumsum([example.sequences[0].trained for example in pack.examples])
                for example, part in zip(pack.examples, np.split(flat, ends[:-1]), strict=True):
                    out[example.values[0]] = part
        return out


def _before_stop(tokens: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    ids = [int(token) for token in tokens]
    return ids[:-1] if ids and ids[-1] in stop_ids else ids

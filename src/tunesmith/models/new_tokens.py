"""Tokens that a tokenizer has not: added to it, with rows of the embeddings that begin where their descriptions are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# share of the covariance that rows without a description vary by, as transformers' `mean_resizing` has it
_SPREAD = 1e-9


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> list[int]:
    """Add *tokens* to *tokenizer*; return their ids.  Raises :class:`UserError` for one that is there already."""
    from tokenizers import AddedToken

    wanted, known = list(tokens), tokenizer.get_vocab()
    for token in wanted:
        if token in known:
            raise UserError(
                f"model.new_tokens: the tokenizer has {token!r} already (id {known[token]}); leave it out, "
                "and train it with method.trained_tokens if it should change"
            )
    # not `special`: they are part of what is written, and shown where special tokens are hidden
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in wanted])
    ids = tokenizer.convert_tokens_to_ids(wanted)
    assert isinstance(ids, list)
    return ids


def grow(model: PreTrainedModel, rows: int) -> None:
    """Give the embeddings of *model* at least so many *rows*; those that are padded beyond it already stay."""
    embedding: Any = model.get_input_embeddings()
    if len(embedding.weight) < rows:
        model.resize_token_embeddings(rows, mean_resizing=False)


def begin_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, descriptions: Mapping[str, str], seed: int
) -> None:
    """Set the rows of new tokens, which *tokenizer* has got, in the input and output embeddings of *model*.

    Each is the mean of the rows of its description's tokens; without one, a draw from around the mean of all rows with
    a share of their covariance (Hewitt, "Initializing new word embeddings for pretrained language models", 2021).
    """
    import torch

    ids: list[int] = [tokenizer.convert_tokens_to_ids(token) for token in descriptions]  # type: ignore[misc]
    first = min(ids)
    written = [
        [i for i in tokenizer.encode(text, add_special_tokens=False) if i < first] for text in descriptions.values()
    ]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in _tables(model):
            known = table[:first].float()
            mean = known.mean(0)
            for row, described in zip(ids, written, strict=True):
                # the sum of all rows, each by its own chance, has their covariance
                chance = torch.randn(first, generator=generator).to(known.device) * (_SPREAD / first) ** 0.5
                drawn = torch.tensordot(chance, known - mean, 1)
                table[row] = (known[described].mean(0) if described else mean + drawn).to(table.dtype)


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """Return what has a row for each token: the input embedding and, unless it is the same, the output head."""
    into: Any = model.get_input_embeddings()
    out: Any = model.get_output_embeddings()
    tables = [into.weight]
    if out is not None and out.weight is not into.weight:
        tables.append(out.weight)
    if out is not None and getattr(out, "bias", None) is not None:
        tables.append(out.bias)
    return tables


def check_trained(base: nn.Module, tokens: Iterable[str]) -> None:
    """Raise :class:`UserError` where the method leaves the embeddings of new *tokens* in *base* as they are."""
    model: Any = base
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    for module in filter(None, modules):
        if not any(p.requires_grad for p in module.parameters()):
            raise UserError(
                f"model.new_tokens: this method does not train the embeddings of {', '.join(tokens)}; use method: lora "
                "or full, or name them in method.also or method.modules_to_save (embed_tokens; lm_head if it is apart)"
            )

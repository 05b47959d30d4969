"""Before the first step: the fast path against the plain one, and a gradient for everything that trains."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.core.errors import UserError
from tunesmith.engine.attention import UnsupportedAttentionError, by_layer_type
from tunesmith.engine.checkpoint import training_weights
from tunesmith.engine.example import Example
from tunesmith.engine.lora import fuse_lora, unfuse_lora
from tunesmith.engine.memory import return_freed_memory
from tunesmith.engine.model import PackModel, pack_arguments
from tunesmith.engine.pack import ROWS, SHORTEST_SHARED, Layout, build_packs
from tunesmith.templates.tokens import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

# differences of a token's log-probability: one that rounding explains in any model, and the largest that it ever does
_ROUNDING = {"no": (1e-3, 1e-3), "bf16": (5e-3, 0.25), "fp16": (2e-3, 0.05)}
# between the two, a layout may be off so many times as much as sequences alone (measured: 2 at most, 8 at least for
# layers that mix sequences)
_TIMES = 4
# how far two backends' gradients of the embedded tokens are apart at most, relative to their norm: rounding grows with
# the layers it goes through, a wrong kernel is off by the gradient itself
_GRADIENT_ROUNDING = {"no": 1e-3, "bf16": 0.3, "fp16": 0.1}
_EXAMPLES, _TOKENS = 4, 128
# whatever a foreign architecture raises at a mask it does not know, and a compiler at a kernel that does not fit
_REFUSALS = (
    TypeError,
    ValueError,
    RuntimeError,
    KeyError,
    AttributeError,
    IndexError,
    NotImplementedError,
    AssertionError,
)
_LOOKED_AT = 1000  # examples that those few are chosen from
_COMPARED_AT_ONCE = 2**18  # numbers of a gradient


def choose_layout(
    model: PackModel, examples: Sequence[Example], wanted: Layout, accelerator: Any
) -> tuple[Layout, list[str]]:
    """Return the layout that agrees with the plain forward pass of *model*, *wanted* if it can be, and notices why not.

    Compares log-probabilities of a few examples; may tell *model* to compute its logits the plain way.
    """
    few = choose_examples(examples)
    notices: list[str] = []
    # takes effect where gradients are wanted, so the reference below is peft's own
    fuse_lora(model.model, in_place=not model.keeps_products)
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        if model.reads is not None:
            _check_head(model, few[:-1], accelerator.device)
        expected = _reference(model, few, accelerator.device)
        if model.separate_head and (far := _misfit(model, few, "single", accelerator, expected)):
            model.separate_head = False
            notices.append(
                f"the model does more with its logits than its head says (off by {far:.1e}): logits computed whole"
            )
        layout = wanted
        if layout not in ROWS:
            notices += _drop_misfits(model, few, layout, accelerator, expected)
        far = _misfit(model, few, layout, accelerator, expected)
        if not far and layout not in ROWS and _refuses_long_packs(model, few, accelerator.device):
            why, far = "refuses packs longer than a text it is made for", float("inf")
        else:
            why = f"has layers that cannot be masked ({_unmaskable(model) or _off(far)})"
        if far and layout not in ROWS:
            notices.append(f"layout {layout} does not fit {model.base.config.model_type}, which {why}: padded instead")
            layout = "padded"
            far = _misfit(model, few, layout, accelerator, expected)
        if far and layout == "padded":
            notices.append(
                f"padded rows differ from single sequences ({_off(far)}), for this model looks at the filling: "
                "one sequence a pass instead"
            )
            layout = "single"
            _check_single(examples)
            far = _misfit(model, few, layout, accelerator, expected)
        if far:
            notices.append(f"sequences differ from what the model itself makes of them ({_off(far)})")
    model.train()
    return_freed_memory()
    return layout, notices


def _drop_misfits(
    model: PackModel, examples: Sequence[Example], layout: Layout, accelerator: Any, expected: dict[int, list[Tensor]]
) -> list[str]:
    """Use no attention backend that is off in *layout*, or in gradients, where the dense one is not; return notices."""
    notices: list[str] = []
    tried: set[str] = set()
    # a prefix pack that shares nothing may take another backend than the one that does
    for kind in dict.fromkeys((layout, "packed")):
        (pack,) = build_packs(examples, kind, budget=2**31)
        tensors = pack.to(accelerator.device)
        while (name := model.attention.choose(tensors.depth, tensors.reach).name) not in tried | {"dense"}:
            tried.add(name)
            far, what = _misfit(model, examples, kind, accelerator, expected), "log-probabilities"
            if not far:
                far, what = _gradient_misfit(model, tensors, accelerator), "gradients"
            if far:
                with model.attention.only_reference():
                    if _misfit(model, examples, kind, accelerator, expected):
                        return notices  # no mask serves this model: not the backend's fault
                reason = "it refuses the mask" if far == float("inf") else f"{what} off by {far:.1e}"
                model.attention.drop(name, reason)
                notices.append(f"attention by {name} does not fit this model ({reason}): another instead")
    return notices


def _gradient_misfit(model: PackModel, pack: Any, accelerator: Any) -> float:
    """Return how far the gradient of the embedded tokens is from the dense reference's, if more than rounding."""
    try:
        found = _input_gradient(model, pack, accelerator)
    except _REFUSALS:
        return float("inf")
    with model.attention.only_reference():
        expected = _input_gradient(model, pack, accelerator)
    # filled up to other lengths
    far = float((found[: len(pack.tokens)] - expected[: len(pack.tokens)]).norm() / expected.norm())
    return 0.0 if far <= _GRADIENT_ROUNDING[accelerator.mixed_precision] else far


def _input_gradient(model: PackModel, pack: Any, accelerator: Any) -> Tensor:
    """Return ``[N, D]``: the gradient of the sum of a pack's log-probabilities; leaves none at the weights."""
    kept = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        kept.append(output.requires_grad_())

    hook = model.base.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad(), accelerator.autocast():
            (gradient,) = torch.autograd.grad(model(**pack_arguments(pack)).sum(), kept[:1])
    finally:
        hook.remove()
    return gradient.flatten(0, 1).float()


def choose_examples(examples: Sequence[Example]) -> list[Example]:
    """Return sequences of a few examples from short to long, and one that branches off the longest, an example each.

    So every layout has sequences to keep apart, and ``prefix`` has something to share, even where the data has not.
    """
    ordered = _sort_some(examples)
    short = [e for e in ordered if e.tokens <= _TOKENS] or ordered[:1]
    few = [short[at] for at in sorted({(len(short) - 1) * part // (_EXAMPLES - 1) for part in range(_EXAMPLES)})]
    sequences = [sequence for example in few for sequence in example.sequences if sequence.trained]
    tokens = max(sequences, key=len).tokens.tolist()
    shared = max(SHORTEST_SHARED, len(tokens) // 2)
    sequences.append(TokenSequence.trained_from(tokens[:shared] + tokens[shared:][::-1], 1))
    return [Example((sequence,)) for sequence in sequences]


def shortest_examples(examples: Sequence[Example]) -> list[Example]:
    """Return the few examples that the check of gradients takes."""
    return _sort_some(examples)[:_EXAMPLES]


def _check_single(examples: Sequence[Example]) -> None:
    """Raise :class:`UserError` where sequences of one example could not go alone, or together without filling."""
    for example in examples:
        if len({len(sequence) for sequence in example.sequences}) > 1:
            raise UserError(
                f"engine.layout: this model looks at the filling of rows, and {example.origin} has several sequences "
                "that go through it together; use examples of one sequence, or another model"
            )


def _refuses_long_packs(model: PackModel, examples: Sequence[Example], device: Any) -> bool:
    """Say whether *model* takes packs of no more tokens than it has positions: its code cuts tables of that size.

    Only models with such a table are asked: a pass of so many tokens takes time.
    """
    positions = getattr(model.base.config.get_text_config(), "max_position_embeddings", None)
    if not positions or not any(positions in buffer.shape for buffer in model.base.buffers()):
        return False
    (pack,) = build_packs(list(examples) * (positions // sum(e.tokens for e in examples) + 1), "packed", 2**31)
    try:
        model(**pack_arguments(pack.to(device)))
    except _REFUSALS:
        return True
    return False


def _sort_some(examples: Sequence[Example]) -> list[Example]:
    """Return examples from all over the data, the shortest first."""
    return sorted(examples[:: len(examples) // _LOOKED_AT + 1], key=lambda e: e.tokens)


def _unmaskable(model: PackModel) -> str | None:
    """Return which of the model's layers are no attention to earlier tokens, by their type."""
    try:
        by_layer_type(model.base.config.get_text_config(), lambda span: span)
    except UnsupportedAttentionError as error:
        return str(error)
    return None


def _off(far: float) -> str:
    return "it refuses the mask" if far == float("inf") else f"log-probabilities off by {far:.1e}"


def _check_head(model: PackModel, examples: Sequence[Example], device: Any) -> None:
    """Raise :class:`UserError` where the library's own model reads a text elsewhere than at its last token."""
    for example in examples:
        for sequence in example.sequences:
            # the last token closes the sequence: it is there to be predicted, and nobody reads it
            tokens = torch.tensor(sequence.tokens[:-1], dtype=torch.long, device=device)[None]
            expected = model.base(tokens, use_cache=False).logits.float().flatten(0, -2)[-1]
            found = model.read(model.base.base_model(tokens, use_cache=False)[0][0, -1])
            if not torch.allclose(found, expected, rtol=0.05, atol=0.05):
                name = type(model.base).__name__
                raise UserError(f"stage: {name} reads more than the last token's state; use a decoder model")


def _reference(model: PackModel, examples: Sequence[Example], device: Any) -> dict[int, list[Tensor]]:
    """Return each example's log-probabilities, or what a head reads, one sequence at a time through the plain model."""
    out: dict[int, list[Tensor]] = {}
    plain = model.model if model.virtual else model.base  # peft itself puts virtual tokens in front
    for example in examples:
        out[id(example)] = []
        for sequence in example.sequences:
            tokens = torch.tensor(sequence.tokens, dtype=torch.long, device=device)
            at = torch.tensor(sequence.weight, device=device).nonzero().squeeze(1)
            if model.reads is not None:
                out[id(example)].append(model.read(model.base.base_model(tokens[None], use_cache=False)[0][0, at - 1]))
                continue
            logits = plain(input_ids=tokens[None], use_cache=False).logits[0, -len(tokens) :].float().log_softmax(-1)
            out[id(example)].append(logits[at - 1].gather(1, tokens[at, None]).squeeze(1))
    return out


def _misfit(
    model: PackModel, examples: Sequence[Example], layout: Layout, accelerator: Any, expected: dict[int, list[Tensor]]
) -> float:
    """Return how far *layout* is off where that is more than rounding, else 0."""
    device, (least, most) = accelerator.device, _ROUNDING[accelerator.mixed_precision]
    far = _distance(model, examples, layout, device, expected)
    if far > least and layout not in ROWS:
        # a sequence alone goes through the same kernels, but has nothing to mix with: what it is off by is rounding
        alone = max(_distance(model, [example], "packed", device, expected) for example in examples)
        most = min(most, max(least, _TIMES * alone))
    return 0.0 if far <= most else far


def _distance(
    model: PackModel, examples: Sequence[Example], layout: Layout, device: Any, expected: dict[int, list[Tensor]]
) -> float:
    """Return the largest difference from *expected*; infinite where the model refuses the layout."""
    far = 0.0
    for pack in build_packs(examples, layout, budget=2**31):
        tensors = pack.to(device)
        try:
            found = model(**pack_arguments(tensors))
        except _REFUSALS:
            return float("inf")
        # predictions come in forest order: bring them back to the order of the pack's examples and their positions
        order = torch.argsort(_position(tensors), stable=True)
        wanted = torch.cat([part for example in pack.examples for part in expected[id(example)]])
        far = max(far, float((found[order] - wanted).abs().max()))
    return far


def _position(pack: Any) -> Tensor:
    """Return a number a prediction that sorts by sequence, then by place in it."""
    place: Tensor = pack.sequence * (int(pack.depth.max()) + 2) + pack.depth[pack.source]
    return place


def _drop_wrong_decoder(model: PackModel, examples: Sequence[Example], layout: Layout, accelerator: Any) -> list[str]:
    """Leave the layers to transformers where our own forward pass gives other gradients; return a notice then."""
    decoder = model.decoder
    if decoder is None or layout in ROWS:
        return []
    (pack,) = build_packs(examples, layout, budget=2**31)
    tensors = pack.to(accelerator.device)
    # one copy of the gradients, which training has too: the check must not be what a run needs the most memory for
    kept: dict[str, Tensor] = {}
    with _each_gradient(model, kept.__setitem__):
        _sum_likelihood(model, tensors, accelerator).backward()
    model.decoder = None
    squares = [0.0, 0.0]  # of the differences, and of what is expected

    def compare(name: str, gradient: Tensor) -> None:
        apart, size = _squares(gradient, kept.pop(name, None))
        squares[0] += apart
        squares[1] += size

    with _each_gradient(model, compare):
        _sum_likelihood(model, tensors, accelerator).backward()
    squares[0] += sum(_squares(alone, None)[0] for alone in kept.values())
    far = (squares[0] / max(squares[1], torch.finfo(torch.float32).tiny)) ** 0.5
    if far <= _GRADIENT_ROUNDING[accelerator.mixed_precision]:
        model.decoder = decoder
        return []
    return [f"our own forward pass disagrees with transformers' (gradients off by {far:.1e}): not used"]


def _sum_likelihood(model: PackModel, pack: Any, accelerator: Any) -> Tensor:
    with accelerator.autocast():
        total: Tensor = model(**pack_arguments(pack)).sum()
    return total


@contextmanager
def _each_gradient(model: PackModel, use: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand each weight's gradient to *use* with its name as soon as a backward pass has it; leave none behind."""

    def take(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        gradient, weight.grad = weight.grad, None
        use(name, gradient)

    weights = training_weights(model.model)
    hooks = [weight.register_post_accumulate_grad_hook(partial(take, name)) for name, weight in weights.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _squares(expected: Tensor, found: Tensor | None) -> tuple[float, float]:
    """Return the sum of the squared differences of two tensors of one shape, and that of *expected*; None is zero.

    A part at a time is made float32, whatever the tensors' type and size.
    """
    apart = size = 0.0
    parts = expected.reshape(-1).split(_COMPARED_AT_ONCE)
    others: Sequence[Tensor | None] = (
        [None] * len(parts) if found is None else found.reshape(-1).split(_COMPARED_AT_ONCE)
    )
    for part, other in zip(parts, others, strict=True):
        own = part.float()
        size += float(own.square().sum())
        apart += float((own if other is None else own - other.float()).square().sum())
    return apart, size


def check_gradients(
    model: PackModel, objective: Any, examples: Sequence[Example], layout: Layout, accelerator: Any
) -> list[str]:
    """Return notices about a backward pass over a few examples; leaves no gradient behind.

    The fused LoRA layers run only where gradients are wanted: their loss must be that of peft's own, or they are
    switched off.  Every weight that trains must receive a finite gradient.
    """
    few = shortest_examples(examples)
    _, most = _ROUNDING[accelerator.mixed_precision]
    model.eval()
    notices = _drop_wrong_decoder(model, few, layout, accelerator)
    return_freed_memory()
    finite: dict[str, bool] = {}

    def look(name: str, gradient: Tensor) -> None:
        # of a tensor's two extremes, because `isfinite` would copy it
        finite[name] = finite.get(name, True) and bool(torch.stack(gradient.aminmax()).isfinite().all())

    for pack in build_packs(few, layout, budget=2**31):
        tensors = pack.to(accelerator.device)
        with accelerator.autocast():
            loss = objective.loss(model(**pack_arguments(tensors)), tensors).total
            with torch.no_grad():
                expected = objective.loss(model(**pack_arguments(tensors)), tensors).total
        with _each_gradient(model, look):
            loss.backward()
        loss = loss.detach()
        if abs(float(loss) - float(expected)) > most * len(pack.target):
            unfuse_lora(model.model)
            notices.append(
                f"fused LoRA layers disagree with peft's ({float(loss):.4f}, {float(expected):.4f}): switched off"
            )
    wrong = [name for name in training_weights(model.model) if not finite.get(name, False)]
    if wrong:
        notices.append(f"{len(wrong)} weights that should train get no finite gradient, such as {wrong[0]}")
    model.train()
    return_freed_memory()
    return notices

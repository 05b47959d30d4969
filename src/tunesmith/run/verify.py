"""The parity certificate: one model in several forms, asked the same, held against the first.

The first form writes the likeliest continuation of every probe.  Of each other form it is said whether it is asked with
the same tokens, whether it would have written the same tokens, and by how much its log-probabilities of them differ.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tunesmith.core.errors import UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.core.files import write_json
from tunesmith.generation.remote import RemoteModel, is_address
from tunesmith.generation.settings import Generation
from tunesmith.models.load import find_model
from tunesmith.models.quantized_base import is_quantized
from tunesmith.run.evaluate import Contestant, load_contestant
from tunesmith.run.folder import RunFolder
from tunesmith.run.gguf_file import GgufFile
from tunesmith.run.probes import PROBES, continuations, predictions, probe_dialogues, probe_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.templates.chat import ChatTemplate


@dataclass(frozen=True)
class Limits:
    """What may differ between two forms that count as one model."""

    agreement: float
    """Least share of likeliest tokens that are the same."""
    difference: float
    """Largest mean difference of log-probabilities, in nats."""


# rounding of float32 in another order; of weights to 16 bits; of weights to 8 bits or 4
LIMITS = {"exact": Limits(1.0, 1e-3), "rounded": Limits(0.95, 0.05), "quantized": Limits(0.8, 0.5)}


@dataclass(frozen=True)
class Parity:
    """How one form compares with the first."""

    name: str
    kind: str
    """``exact``, ``rounded`` or ``quantized``: which limits hold."""
    prompts: int
    """Probes that are asked with the same tokens; of an API, with as many."""
    probes: int
    same: int
    tokens: int
    mean_difference: float | None
    """Of log-probabilities; None where the form does not tell them."""
    largest_difference: float | None
    why: str = ""
    """What is beyond the limits; empty where all is well."""

    @property
    def passed(self) -> bool:
        """Whether the form counts as the same model."""
        return not self.why


class Form(Protocol):
    """One form of a model."""

    def compare(self, name: str, reference: Reference) -> Parity:
        """Return how this form, called *name*, compares with the first."""


@dataclass(frozen=True)
class Reference:
    """The first form, and what it said."""

    name: str
    template: ChatTemplate
    prompts: list[list[int]]
    written: list[list[int]]
    likeliest: list[list[int]]
    """The likeliest token at each place of what was written, in one pass over it."""
    log_probabilities: list[list[float]]
    """Of each token that was written."""

    @classmethod
    def ask(cls, name: str, contestant: Contestant) -> Reference:
        """Ask the probes."""
        prompts, written = probe_prompts(contestant), continuations(contestant)
        said = [told(contestant.model, *asked) for asked in zip(prompts, written, strict=True)]
        return cls(name, contestant.template, prompts, written, [s[0] for s in said], [s[1] for s in said])

    def held_against(self, name: str, kind: str, prompts: Sequence[list[int]], model: Any) -> Parity:
        """Return how *model* compares, which is asked with *prompts*."""
        equal = sum(a == b for a, b in zip(self.prompts, prompts, strict=True))
        same, differences = 0, []
        for index, asked in enumerate(zip(self.prompts, self.written, strict=True)):
            likeliest, log_probabilities = told(model, *asked)
            same += sum(a == b for a, b in zip(likeliest, self.likeliest[index], strict=True))
            pairs = zip(log_probabilities, self.log_probabilities[index], strict=True)
            differences += [abs(a - b) for a, b in pairs]
        return judged(name, kind, equal, (same, len(differences)), differences)


def told(model: Any, prompt: Sequence[int], written: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return the likeliest token at each place of *written*, and the log-probability of the one that stands there."""
    found = predictions(model, prompt, written)
    at = found.new_tensor(written).long()[:, None]
    return found.argmax(-1).tolist(), found.gather(1, at).flatten().tolist()


def judged(name: str, kind: str, prompts: int, same_of: tuple[int, int], differences: Sequence[float]) -> Parity:
    """Return figures with what is beyond the limits of *kind*."""
    (same, tokens), limits = same_of, LIMITS[kind]
    mean = sum(differences) / len(differences) if differences else None
    reasons = []
    if prompts < len(PROBES):
        reasons.append(f"{len(PROBES) - prompts} of {len(PROBES)} probes become other tokens")
    if same < limits.agreement * tokens:
        reasons.append(f"{same} of {tokens} likeliest tokens are the same, and {limits.agreement:.0%} must be")
    if mean is not None and not mean <= limits.difference:
        reasons.append(f"log-probabilities differ by {mean:.4f}, and {limits.difference:g} is allowed")
    largest = max(differences) if differences else None
    return Parity(name, kind, prompts, len(PROBES), same, tokens, mean, largest, "; ".join(reasons))


@dataclass(frozen=True)
class LocalForm:
    """A run, an adapter, a folder or a name on a hub, in memory."""

    contestant: Contestant
    kind: str

    def compare(self, name: str, reference: Reference) -> Parity:
        """Return how this form compares; its own template asks."""
        return reference.held_against(name, self.kind, probe_prompts(self.contestant), self.contestant.model)


@dataclass(frozen=True)
class GgufForm:
    """A GGUF file."""

    file: GgufFile

    @property
    def kind(self) -> str:
        """How exactly its matrices are kept."""
        return self.file.kind

    def compare(self, name: str, reference: Reference) -> Parity:
        """Return how the file compares: its own tokens, template, and weights."""
        return reference.held_against(name, self.kind, self.file.prompts(reference.template), self.file.model)


@dataclass(frozen=True)
class ApiForm:
    """A model behind an OpenAI-compatible address."""

    remote: RemoteModel
    kind: str = "rounded"

    def compare(self, name: str, reference: Reference) -> Parity:
        """Return how its answers compare: their tokens as text, until the first that differs, and how many were asked.

        Raises :class:`UserError` for a model without a chat template, which an API does not ask.
        """
        template = reference.template
        if not template.has_chat:
            raise UserError(f"{name} answers dialogues, and {reference.name} has no chat template to write them with")
        equal = same = total = 0
        differences: list[float] = []
        asked = zip(probe_dialogues(), reference.prompts, reference.written, reference.log_probabilities, strict=True)
        for dialogue, prompt, written, expected in asked:
            ends = [at for at, token in enumerate(written) if token in template.stop_ids]
            own = written[: ends[0]] if ends else written
            settings = Generation(max_new_tokens=len(written))
            reply = self.remote.reply(dialogue.messages, settings, logprobs=True)
            equal += (reply.get("usage") or {}).get("prompt_tokens", len(prompt)) == len(prompt)
            choice = reply["choices"][0]
            said = [(each["token"], each["logprob"]) for each in (choice.get("logprobs") or {}).get("content") or ()]
            texts = [template.tokenizer.decode([token]) for token in own]
            total += max(1, len(own))
            if not said:
                whole = str(template.tokenizer.decode(own, skip_special_tokens=True)).strip()
                same += max(1, len(own)) * (str(choice["message"].get("content") or "").strip() == whole)
                continue
            alike = 0
            for text, (token, log_probability), own_one in zip(texts, said, expected, strict=False):
                if text != token and "\ufffd" not in text:  # part of a character has no text to compare
                    break
                alike += 1
                differences.append(abs(own_one - log_probability))
            same += alike if own else int(not str(choice["message"].get("content") or "").strip())
        return judged(name, self.kind, equal, (same, total), differences)


def find_form(path: str, device: str = "cpu") -> Form:
    """Return the form of a model at *path*: a GGUF file, an address, or what :func:`load_contestant` takes."""
    if is_address(path):
        return ApiForm(RemoteModel.find(path))
    if path.endswith(".gguf"):
        if not Path(path).is_file():
            raise UserError(f"there is no file {path}")
        _check_reader()
        return GgufForm(GgufFile(Path(path)))
    contestant = load_contestant(path, device)
    return LocalForm(contestant, kind_of(path, contestant))


def _check_reader() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("reading GGUF needs a package; pip install 'tunesmith[gguf]'") from None


def kind_of(path: str, contestant: Contestant) -> str:
    """Return which limits hold for the model at *path*: those of how its weights are kept."""
    import torch
    from transformers import AutoConfig

    if is_quantized(contestant.model):
        return "quantized"
    place = find_model(path)
    if place.adapter is not None:
        return "exact"  # in files as it was trained, in memory in float32
    return "exact" if AutoConfig.from_pretrained(place.base).dtype in (None, torch.float32) else "rounded"


def verify(first: str, others: Sequence[str], listener: Listener = ignore) -> list[Parity]:
    """Return how each of *others* compares with *first*; where that is a run, its report says it, too.

    Raises :class:`UserError` where *first* is no model that is loaded here: a GGUF file, or an address.
    """
    if is_address(first) or first.endswith(".gguf"):
        raise UserError(f"{first}: the first is what the others are held against: a run, an adapter, or a folder")
    listener({"kind": "notice", "text": f"asking {first}"})
    reference = Reference.ask(first, load_contestant(first, "cpu"))
    found = []
    for other in others:
        listener({"kind": "notice", "text": f"asking {other}"})
        found.append(find_form(other).compare(other, reference))
    record(first, found)
    return found


def told_of(parity: Parity, rounded_to: str = "") -> list[str]:
    """Return sentences on what an export differs by, where it differs; *rounded_to* is the type of its weights."""
    sentences = []
    if rounded_to:
        figures = f"{parity.same} of {parity.tokens} likeliest tokens are the same"
        moved = f"log-probabilities move by {parity.mean_difference or 0.0:.3f}"
        sentences.append(f"the weights were rounded to {rounded_to}: {figures}, {moved}")
    return [*sentences, f"NOT THE SAME MODEL any more: {parity.why}"] if parity.why else sentences


def as_json(found: Sequence[Parity]) -> list[dict[str, Any]]:
    """Return *found* as JSON values."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(each).items()}
        | {"passed": each.passed}
        for each in found
    ]


def record(first: str, found: Sequence[Parity]) -> None:
    """Where *first* is a run, keep *found* in its folder, by name the newest, and write its report again."""
    from tunesmith.run.report import write_report
    from tunesmith.run.report_parity import FILE

    folder = RunFolder(Path(first))
    if not folder.is_run:
        return
    before = {each["name"]: each for each in folder.read(FILE) or ()}
    write_json(folder.path / FILE, list((before | {each["name"]: each for each in as_json(found)}).values()))
    write_report(folder.path)

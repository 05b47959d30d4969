"""Judge models on the same held-out conversations: loss, answers, scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tunesmith.core.errors import DataError, UserError
from tunesmith.core.events import Listener, ignore
from tunesmith.generation.remote import RemoteModel, is_address
from tunesmith.models.peft_warnings import quiet_peft
from tunesmith.run.folder import RunFolder
from tunesmith.run.head_evaluation import RewardJudge

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tunesmith.data.conversation import Conversation
    from tunesmith.engine.example import Example
    from tunesmith.engine.pack import Layout
    from tunesmith.generation.settings import Generation
    from tunesmith.run.remote import RemoteContestant
    from tunesmith.scoring import Score, Scorer
    from tunesmith.stages import Stage
    from tunesmith.templates.chat import ChatTemplate

DEFAULT_SCORES = ("exact_match", "length_match", "chrf")


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What models are judged on."""

    conversations: Sequence[Conversation]
    source: str
    """Where they are from, for the report."""
    answered: int
    """How many of them, from the first, are answered; the loss is over all."""
    generation: Generation
    limit: int
    """Longer sequences, in tokens, do not count for the loss."""
    seed: int = 0
    examples: Sequence[Example] | None = None
    """What the stage made of the conversations, where it asked a reference model; made anew where None."""

    @property
    def free(self) -> Questions:
        """The same questions with no constraint on the answers."""
        return replace(self, generation=self.generation.model_copy(update={"constraint": None}))


@dataclass(frozen=True)
class Judged:
    """What one model made of the data."""

    loss: float | None
    answers: list[str]


@dataclass(frozen=True)
class Contestant:
    """A model with the tokenizer and template it is asked through; its loss is measured in *layout*."""

    model: Any
    template: ChatTemplate
    layout: Layout = "padded"
    attention: tuple[str, ...] | None = None
    """Backends of attention that may be used; None allows all."""

    def judge(self, questions: Questions, stage: Stage, progress: Listener = ignore) -> Judged:
        """Return the loss of *stage* over the questions, and answers to the first of them."""
        loss = self._loss(questions, stage)
        return Judged(loss, self._answers(questions, progress))

    def constrained(self, questions: Questions, plain: Judged, progress: Listener = ignore) -> Judged:
        """Return the answers of the model that *plain* judged, held to the constraint of the questions."""
        return Judged(plain.loss, self._answers(questions, progress))

    def _loss(self, questions: Questions, stage: Stage) -> float | None:
        """Return the stage's loss; None where the data has nothing to predict (no answers)."""
        import torch

        from tunesmith.engine.likelihoods import Alone, Likelihoods, complete
        from tunesmith.engine.model import PackModel, pack_arguments
        from tunesmith.engine.pack import build_packs

        examples = self._examples(questions, stage)
        if not examples or not stage.size(examples):
            return None
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        packed, total, budget = PackModel(self.model, base, self.attention).eval(), 0.0, 4096
        likelihoods = Likelihoods(packed, Alone(self.model.device), self.layout, budget)
        examples, packs = complete(stage, examples, build_packs(examples, self.layout, budget), examples, likelihoods)
        with torch.no_grad():
            for pack in packs:
                tensors = pack.to(self.model.device)
                total += float(stage.loss(packed(**pack_arguments(tensors)), tensors).total)
        return total / stage.size(examples)

    def _examples(self, questions: Questions, stage: Stage) -> list[Example]:
        if questions.examples is not None:
            return list(questions.examples)
        try:
            made = stage.examples(questions.conversations, self.template, questions.limit)
        except DataError:
            return []
        return [e for each in made for e in each if all(len(s) <= questions.limit for s in e.sequences)]

    def _answers(self, questions: Questions, progress: Listener) -> list[str]:
        from tunesmith.generation.sample import answer_all
        from tunesmith.generation.text import cut_at

        asked = questions.conversations[: questions.answered]
        if not asked:
            return []
        prompts = [self._prompt(conversation) for conversation in asked]
        self.model.eval()
        with quiet_peft():
            written = answer_all(
                self.model,
                prompts,
                questions.generation,
                stop_ids=self.template.stop_ids,
                seed=questions.seed,
                progress=lambda done: progress(
                    {"kind": "progress", "task": "answers", "done": done, "total": len(asked)}
                ),
                tokenizer=self.template.tokenizer,
                conversations=asked,
            )
        decoded = self.template.tokenizer.batch_decode(written, skip_special_tokens=True)
        plain = [cut_at(text, questions.generation.stop) for text in decoded]
        called = [
            self.template.calls_as_text(conversation.tools, prompt, tokens)
            for conversation, prompt, tokens in zip(asked, prompts, written, strict=True)
        ]
        return [calls or text.strip() for calls, text in zip(called, plain, strict=True)]

    def _prompt(self, conversation: Conversation) -> list[int]:
        """Return what the model is given: the dialogue before the answer, or a plain text's first third."""
        if conversation.text is None:
            return self.template.prompts([conversation])[0]
        tokens = self.template.encode_texts([conversation.text])[0]
        return tokens[: max(1, len(tokens) // 3)]


def evaluation_report(
    judged: dict[str, Judged], questions: Questions, scores: Sequence[Scorer], *, perplexity: bool = True
) -> dict[str, Any]:
    """Return the comparison of the models in *judged* as the JSON that reports and tables are made from.

    *perplexity* says whether the loss is one that has it.
    """
    answered = min(len(each.answers) for each in judged.values())
    asked = list(questions.conversations[:answered])
    found = {
        score.type_name(): {
            name: score.score_all(list(zip(asked, each.answers, strict=False))) for name, each in judged.items()
        }
        for score in (scores if asked else ())
    }
    summaries = {
        score.type_name(): {
            name: _summary(score, asked, each.answers[:answered], found[score.type_name()][name])
            for name, each in judged.items()
        }
        for score in (scores if asked else ())
    }
    rows = [
        {
            "prompt": _shown_prompt(conversation),
            "reference": conversation.reference(),
            "answers": {name: each.answers[index] for name, each in judged.items()},
            "origin": str(conversation.origin),
            "scores": {
                score: {name: each[index].value for name, each in of_models.items()}
                for score, of_models in found.items()
            },
            "spans": _shown_spans(found, index),
        }
        for index, conversation in enumerate(asked)
    ]
    losses = {name: each.loss for name, each in judged.items() if each.loss is not None}
    return {
        "models": list(judged),
        "scores": summaries,
        "loss": losses,
        "perplexity": {name: math.exp(min(loss, 700.0)) for name, loss in losses.items()} if perplexity else {},
        "rows": rows,
        "data": questions.source,
        "examples": len(questions.conversations),
    }


def _summary(score: Scorer, asked: Sequence[Conversation], answers: Sequence[str], found: Sequence[Score]) -> float:
    """Return one number for many answers without scoring them again, where the score is not one over a corpus."""
    from tunesmith.scoring import Scorer

    if type(score).summary is not Scorer.summary:
        return score.summary(asked, answers)
    return sum(each.value for each in found) / len(found)


def _shown_spans(found: dict[str, dict[str, list[Score]]], index: int) -> dict[str, dict[str, list[Any]]]:
    """Return model -> score -> the parts of one answer that the score is about; what has none is left out."""
    shown: dict[str, dict[str, list[Any]]] = {}
    for score, of_models in found.items():
        for name, each in of_models.items():
            if each[index].spans:
                shown.setdefault(name, {})[score] = [list(span) for span in each[index].spans]
    return shown


def _shown_prompt(conversation: Conversation) -> list[dict[str, str]]:
    if conversation.text is not None:
        return [{"role": "text", "content": conversation.text}]
    return [{"role": m.role, "content": m.content} for m in conversation.prompt()]


def make_scores(names: Sequence[str]) -> list[Scorer]:
    """Return scores by name, or by a group of settings such as ``{type: rhyme, book: 中华新韵}``."""
    from tunesmith.scoring import SCORERS

    return [SCORERS.parse(yaml.safe_load(name) if name.lstrip().startswith("{") else name) for name in names]


def load_contestant(path: str, device: str = "auto", *, merge: bool = False) -> Contestant:
    """Load a run, adapter or model with its tokenizer and template, ready to answer; *merge* its last adapter, too."""
    import torch

    from tunesmith.engine.model import default_device
    from tunesmith.models.load import check_model, find_model, model_from

    check_model(path)
    place = find_model(path)
    target = default_device(device)
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    model = model_from(place, dtype, merge=merge).to(target)  # type: ignore[arg-type]
    return Contestant(model, load_template(place, model))


def load_template(place: Any, model: Any) -> ChatTemplate:
    """Return the template at *place*, with the stop tokens of its adapter or of *model*."""
    from tunesmith.models.load import tokenizer_from
    from tunesmith.templates.chat import ChatTemplate

    template = ChatTemplate(tokenizer_from(place.tokenizer))
    template.add_stop_ids(model_stop_ids(place, model))
    return template


def _run_folder(path: str) -> RunFolder | None:
    folder = Path(path)
    return next((run for run in (RunFolder(folder), RunFolder(folder.parent)) if run.is_run), None)


def model_stop_ids(place: Any, model: Any) -> list[int]:
    """Return the tokens at which the model's saved generation settings stop; an adapter's own come first."""
    from transformers import GenerationConfig

    config = model.generation_config
    if place.adapter is not None and (place.adapter / "generation_config.json").exists():
        config = GenerationConfig.from_pretrained(place.adapter)
    ids = config.eos_token_id
    return [] if ids is None else [int(i) for i in (ids if isinstance(ids, list) else [ids])]


def compare(
    paths: dict[str, str],
    questions: Questions,
    scores: Sequence[Scorer],
    *,
    device: str = "auto",
    progress: Listener = ignore,
) -> dict[str, Any]:
    """Judge each model in *paths* (name -> run, folder, Hub name or address), one in memory at a time."""
    from tunesmith.scoring import prepare_scores
    from tunesmith.stages import STAGES

    if not questions.conversations:
        raise UserError("no conversations to evaluate on")
    prepare_scores(scores, lambda: _training_of(paths.values()), partial(RewardJudge, device=device))
    stage = STAGES.get("pretrain" if questions.conversations[0].text is not None else "sft")()
    judged = {}
    for name, path in paths.items():
        progress({"kind": "notice", "text": f"loading {name}"})
        contestant = _remote(path) if is_address(path) else load_contestant(path, device)
        judged[name] = contestant.judge(questions, stage, progress)
    return evaluation_report(judged, questions, scores)


def _remote(address: str) -> RemoteContestant:
    from tunesmith.run.remote import RemoteContestant

    return RemoteContestant(RemoteModel.find(address))


def _training_of(targets: Iterable[str]) -> Sequence[Conversation]:
    """Return what the last run among *targets* was trained on; none where none is a run."""
    from tunesmith.run.prepare import read_data

    run = next((run for run in map(_run_folder, reversed(list(targets))) if run is not None), None)
    return read_data(run.recipe()).train_conversations if run is not None else []


def held_out(data: Sequence[str], targets: Sequence[str]) -> tuple[list[Conversation], str]:
    """Return the conversations to judge on: those in the files *data*, else the last run's held-out ones.

    The last, because one compares a base with what was made of it.
    """
    from tunesmith.data.read import read_sources
    from tunesmith.data.source import Source
    from tunesmith.models.load import check_model
    from tunesmith.run.prepare import read_data

    for target in reversed(targets):
        if not is_address(target):
            check_model(target)
    if data:
        return read_sources([Source(path=path) for path in data], bad_rows="refuse").conversations, ", ".join(data)
    for target in reversed(targets):
        run = _run_folder(target)
        if run is not None:
            conversations = read_data(run.recipe()).validation_conversations
            if conversations:
                return conversations, f"held-out data of {run.path}"
    raise UserError("which data? name a file with --data (none of the models is a run with validation data)")


def check_comparison_path(path: Path) -> None:
    """Raise :class:`UserError` for a file that :func:`write_comparison` could not write."""
    if path.suffix not in (".html", ".json"):
        raise UserError(f"{path}: the comparison is written as .html or .json")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")


def write_comparison(path: Path, evaluation: dict[str, Any]) -> None:
    """Write an evaluation as a page (``.html``) or as data (``.json``)."""
    from tunesmith.core.files import write_json
    from tunesmith.run.report import write_comparison as write_page

    check_comparison_path(path)
    if path.suffix == ".html":
        write_page(path, evaluation)
    else:
        write_json(path, evaluation)

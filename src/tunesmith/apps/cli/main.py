"""The commands.  Heavy imports happen inside them, so that ``--help`` and a bad recipe are quick."""

from __future__ import annotations

import errno
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith import __version__
from tunesmith.apps.cli.adapter import adapter_app
from tunesmith.apps.cli.exporting import upload, verify
from tunesmith.apps.cli.import_ import import_, read_or_import
from tunesmith.apps.cli.serve import keys_app, serve
from tunesmith.apps.cli.verse import verse_app
from tunesmith.core.errors import UserError
from tunesmith.core.settings import prepare_process
from tunesmith.generation.presets import PRESETS

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(adapter_app, name="adapter")
app.add_typer(keys_app, name="keys")
app.add_typer(verse_app, name="verse")

RecipeFile = Annotated[
    Path, typer.Argument(help="The recipe, or a file of LLaMA-Factory, TRL or axolotl.", metavar="RECIPE")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to it, such as schedule.epochs=1 method.rank=8.", metavar="SETTING=VALUE"),
]
Target = Annotated[
    str, typer.Argument(help="A run's folder, an adapter, a model's folder, or a Hub name.", metavar="MODEL")
]
DataFiles = Annotated[
    list[str] | None, typer.Option("--data", help="File to judge on; left out, the run's own held-out data.")
]
Scores = Annotated[list[str] | None, typer.Option("--score", help="Score of the answers; may be given several times.")]
Answered = Annotated[int, typer.Option(help="Conversations to answer.", min=0)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token; poems like 0.8 to 1.0.", min=0)]


# tokens; longer conversations are answered, but do not count for the loss
_LONGEST = 4096


class Precision(StrEnum):
    """Types an exported model can have."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Device(StrEnum):
    """Where a model can answer."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


DeviceName = Annotated[Device, typer.Option("--device", help="Where to compute.")]


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    """Fine-tune a language model: from a file of examples to a compared, usable, exportable model."""
    if version:
        typer.echo(f"tunesmith {__version__}")
        raise typer.Exit


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    card: Annotated[
        str | None, typer.Option(help="Plan for a card that need not be here, such as 4090 or h100.", metavar="NAME")
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="Change the recipe until it fits: 24GB is a GPU of that size (this machine's kind, else CUDA), "
            "'24GB ram' a processor's memory, ram all of this machine's; 4090 and the like are cards.",
            metavar="MEMORY",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File for the recipe that --fit makes.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Time one block of the model, for a better guess.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe would do, what it needs, and why; no weight is loaded."""
    from tunesmith.run.planning import check_options, plan_for

    check_options(card=card, fit=fit, probe=probe, output=output)
    asked = read_or_import(recipe, overrides or ())
    from tunesmith.apps.cli import show

    planned = plan_for(asked, card=card, fit=fit, probe=probe)
    if output is not None:
        planned.write_recipe(output)
    show.plan(planned, as_json=as_json)


@app.command()
def inspect(
    recipe: RecipeFile,
    overrides: Overrides = None,
    records: Annotated[int, typer.Option(help="Records to show token by token.", min=0)] = 3,
    as_json: AsJson = False,
) -> None:
    """Show which tokens would be trained, and count what is lost."""
    asked = read_or_import(recipe, overrides or ())
    from tunesmith.apps.cli import show
    from tunesmith.run.inspect import inspect as inspect_recipe

    show.inspection(inspect_recipe(asked, records), as_json=as_json)


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that the output folder holds.")
    ] = False,
) -> None:
    """Train; then compare with the base model and write the report."""
    asked = read_or_import(recipe, overrides or ())
    from tunesmith.apps.cli import show
    from tunesmith.run.train import train as train_recipe

    with show.progress() as listener:
        outcome = train_recipe(asked, listener, overwrite=overwrite)
    show.outcome(outcome)


@app.command()
def resume(run: Annotated[Path, typer.Argument(help="The run's folder.")]) -> None:
    """Go on with a stopped run, exactly as if it had not been."""
    from tunesmith.apps.cli import show
    from tunesmith.run.train import resume as resume_run

    with show.progress() as listener:
        outcome = resume_run(run, listener)
    show.outcome(outcome)


@app.command()
def evaluate(
    model: Target,
    data: DataFiles = None,
    score: Scores = None,
    answered: Answered = 50,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    device: DeviceName = Device.auto,
    as_json: AsJson = False,
    output: Annotated[Path | None, typer.Option(help="File for the answers and scores, as JSON.")] = None,
) -> None:
    """Judge a model on held-out data: loss, perplexity, scores."""
    _compare(
        {"model": model}, data, score, answered, max_new_tokens, temperature, device, as_json=as_json, output=output
    )


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A run, adapter, model folder or Hub name.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Another.", metavar="B")],
    data: DataFiles = None,
    score: Scores = None,
    answered: Answered = 50,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    device: DeviceName = Device.auto,
    as_json: AsJson = False,
    output: Annotated[Path | None, typer.Option(help="File for the comparison: .json or .html.")] = None,
) -> None:
    """Judge two models on the same inputs, answers side by side."""
    names = {a: a, b: b} if a != b else {f"{a} (1)": a, f"{b} (2)": b}
    _compare(names, data, score, answered, max_new_tokens, temperature, device, as_json=as_json, output=output)


def _compare(
    paths: dict[str, str],
    data: list[str] | None,
    score: list[str] | None,
    answered: int,
    max_new_tokens: int,
    temperature: float,
    device: str,
    *,
    as_json: bool,
    output: Path | None,
) -> None:
    from tunesmith.apps.cli import show
    from tunesmith.generation.settings import Generation
    from tunesmith.run import evaluate as judging

    if output is not None:
        judging.check_comparison_path(output)
    scores = judging.make_scores(score or judging.DEFAULT_SCORES)
    conversations, source = judging.held_out(data or (), list(paths.values()))
    questions = judging.Questions(
        conversations=conversations,
        source=source,
        answered=answered,
        generation=Generation(max_new_tokens=max_new_tokens, temperature=temperature),
        limit=_LONGEST,
    )
    with show.progress(quiet=as_json) as listener:
        result = judging.compare(paths, questions, scores, device=device, progress=listener)
    show.evaluation(result, as_json=as_json)
    if output is not None:
        judging.write_comparison(output, result)


@app.command()
def chat(
    model: Target,
    prompt: Annotated[str | None, typer.Option(help="Ask this one question and end.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Annotated[
        float | None, typer.Option(help="0, as where it is left out, takes the likeliest token.", min=0)
    ] = None,
    device: DeviceName = Device.auto,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Adapter on this model; may be given several times: /adapter NAME switches.", metavar="NAME=PATH"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"Sample as for a kind of text: {', '.join(PRESETS)}; --temperature wins.", metavar="NAME"),
    ] = None,
) -> None:
    """Talk with a model: a run, a folder, a name on a hub, or an OpenAI-compatible address (URL#NAME)."""
    from tunesmith.apps.cli.talk import talk
    from tunesmith.run.chat import sampling

    talk(model, prompt, system, sampling(max_new_tokens, temperature, preset), device, adapter or ())


@app.command()
def export(
    run: Target,
    to: Annotated[
        Path, typer.Option(help="New folder for the model; FILE.gguf writes one file for llama.cpp, Ollama.")
    ],
    dtype: Annotated[Precision, typer.Option(help="Type of the weights; auto keeps the base's.")] = Precision.auto,
    quantization: Annotated[
        str | None,
        typer.Option(
            help="Write the weights in fewer bits: nf4, fp4, int8 or torchao; of a .gguf f32, f16, bf16 or q8_0; "
            "left out, in full."
        ),
    ] = None,
) -> None:
    """Merge a run into one model, and check that it answers alike."""
    from tunesmith.apps.cli import show
    from tunesmith.run.export import export as export_run
    from tunesmith.run.export import writes_text

    with show.progress() as listener:
        written = export_run(run, to, dtype=dtype.value, quantization=quantization, listener=listener)
    show.exported(written, writes_text=writes_text(written))


@app.command()
def soup(
    models: Annotated[list[str], typer.Argument(help="Runs or whole models of one shape.", metavar="MODEL")],
    to: Annotated[Path, typer.Option(help="New folder for the model.")],
    weights: Annotated[
        str | None, typer.Option(help="Share of each, such as 0.7,0.3; left out, all alike.", metavar="SHARES")
    ] = None,
) -> None:
    """Average the weights of several models into one."""
    from tunesmith.apps.cli import show
    from tunesmith.run.soup import read_shares
    from tunesmith.run.soup import soup as make_soup

    shares = read_shares(weights)
    with show.progress() as listener:
        written = make_soup(models, to, shares, listener)
    show.line(f"wrote {written}; see what it is worth: tunesmith compare {models[0]} {written}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where its data and runs go.")] = Path("runs/demo"),
    only_data: Annotated[
        bool, typer.Option("--only-data", help="Write the data and end; run the recipes yourself.")
    ] = False,
) -> None:
    """Make, tune and compare a small model: no GPU, no download."""
    from tunesmith.apps.cli import show
    from tunesmith.run import demo as demonstration

    if only_data:
        demonstration.write_data(folder)
        show.line(f"wrote {folder / 'data'}; next: tunesmith train recipes/demo/1-pretrain.yaml")
        return
    with show.progress() as listener:
        result = demonstration.run_demo(folder, listener)
    show.demo(result)


app.command()(verify)
app.command()(upload)
app.command()(serve)
app.command(name="import", context_settings={"ignore_unknown_options": True})(import_)


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="methods, stages, optimizers, quantizations, formats, scores, templates, settings or models; "
            "left out, all but the models."
        ),
    ] = None,
    word: Annotated[
        str, typer.Argument(help="Only what holds this word; of models, each by itself: list models qwen3.")
    ] = "",
) -> None:
    """List what there is to choose from, with a line about each."""
    from tunesmith.apps.cli import show
    from tunesmith.run.catalogue import catalogue

    show.catalogue(catalogue(kind, word))


def main() -> Any:
    """Run the command line: a user's mistake is a message and exit code 2, ours is a traceback."""
    prepare_process()
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}" if "\n" not in str(error) else f"error:\n{error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output is gone
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        typer.echo("error: no space left on the device that is written to", err=True)
        sys.exit(2)

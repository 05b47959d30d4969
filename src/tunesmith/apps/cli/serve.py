"""``tunesmith serve`` and ``tunesmith keys``: a model behind an API, and who may use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunesmith.run.serving_keys import KeyFile

keys_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make, list and remove API keys of the server."
)

KeyPath = Annotated[
    Path | None, typer.Option("--keys", help="File of the keys; left out, the user's own.", metavar="FILE")
]
Adapters = Annotated[
    list[str] | None,
    typer.Argument(
        help="Adapters on it by name, dufu=runs/dufu, and blends of them, mix=0.7*dufu+0.3*sushi.",
        metavar="NAME=ADAPTER",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Sampling for what requests leave out: greedy, precise, official, balanced, creative, poetry."),
]
AdapterFolders = Annotated[
    list[Path] | None,
    typer.Option(help="Folder from which requests may load adapters; may be given several times.", metavar="FOLDER"),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(help="Web page that may use it, such as https://chat.example; may be given several times."),
]
KeyName = Annotated[str, typer.Argument(help="What the key is called, such as laptop.", metavar="NAME")]


def serve(  # noqa: PLR0913 - an argument is an option of the command line
    model: Annotated[str, typer.Argument(help="A run's folder, a model's folder, or a Hub name.", metavar="MODEL")],
    adapters: Adapters = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="What requests call the model; left out, its folder's name.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda or mps.")] = "auto",
    preset: Preset = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 2048,
    context: Annotated[
        int | None, typer.Option(help="Longest prompt and answer together, in tokens; left out, the model's.", min=2)
    ] = None,
    batch: Annotated[int, typer.Option(help="Answers that are written at the same time.", min=1)] = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.", min=0)] = 256,
    keep_tokens: Annotated[
        int, typer.Option(help="Tokens of finished answers to keep, so that a next turn reads only what is new.", min=0)
    ] = 4096,
    timeout: Annotated[float, typer.Option(help="Seconds that an answer may take, waiting included.", min=0.1)] = 600.0,
    max_request_bytes: Annotated[int, typer.Option(help="Largest request.", min=1024)] = 8 * 2**20,
    adapter_folder: AdapterFolders = None,
    keys: KeyPath = None,
    no_key_i_understand: Annotated[
        bool, typer.Option("--no-key-i-understand", help="Let everybody who reaches --host use it, without a key.")
    ] = False,
    allow_origin: Origins = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the model.")
    ] = False,
) -> None:
    """Put a model and its adapters behind an API that OpenAI's clients speak."""
    from tunesmith.run import serving_start as start
    from tunesmith.run.serving import Limits
    from tunesmith.run.serving_access import decide_access, listen

    folders = start.check_folders(adapter_folder or ())
    access = decide_access(host, _key_file(keys), without_key=no_key_i_understand, most_bytes=max_request_bytes)
    asked = start.Asked(
        model=model,
        adapters=tuple(adapters or ()),
        name=name,
        device=device,
        limits=Limits(max_tokens=max_tokens, seconds=timeout, preset=preset, adapter_folders=folders),
        batch=batch,
        queue=queue,
        kept_tokens=keep_tokens,
        context=context,
        trust_remote_code=trust_remote_code,
    )
    asked.check()
    with listen(host, port) as socket:
        from tunesmith.apps.cli import show

        with show.progress() as listener:
            service = start.begin(asked, listener)
        from tunesmith.apps.server.listen import run

        run(service, access, socket, show.line, allow_origin or (), _greeting(service, socket.getsockname()[1], host))


def _greeting(service: Any, port: int, host: str) -> Callable[[], list[str]]:
    """Return what is said when the server answers: what is served, where, and a line to try it with."""

    def lines() -> list[str]:
        at = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        names = [each["id"] for each in service.models()]
        body = json.dumps(
            {"model": names[0], "messages": [{"role": "user", "content": "你好"}], "max_tokens": 64}, ensure_ascii=False
        )
        return [
            f"serving {', '.join(names)} at {at}/v1",
            f"try: curl {at}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        ]

    return lines


@keys_app.command()
def add(name: KeyName, keys: KeyPath = None) -> None:
    """Make a key, and print it this once."""
    typer.echo(_key_file(keys).add(name))


@keys_app.command(name="list")
def list_(keys: KeyPath = None) -> None:
    """List the keys by name; what they are nobody can read any more."""
    for key in _key_file(keys).read():
        typer.echo(f"{key.name}\tadded {key.added}")


@keys_app.command()
def remove(name: KeyName, keys: KeyPath = None) -> None:
    """Let a key open nothing any more; a running server knows at once."""
    _key_file(keys).remove(name)


def _key_file(path: Path | None) -> KeyFile:
    from tunesmith.run.serving_access import default_key_file
    from tunesmith.run.serving_keys import KeyFile

    return KeyFile(path or default_key_file())

"""A run whose answers a server writes: ask the server before a weight loads, and hand it the adapter as it is."""

from __future__ import annotations

import re
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.run.finish import save_trained

if TYPE_CHECKING:
    from tunesmith.core.events import Listener
    from tunesmith.generation.remote_rollouts import RemoteSampler
    from tunesmith.recipe.schema import Recipe
    from tunesmith.run.settle import Settled


def check_sampling_server(settled: Settled, listener: Listener) -> None:
    """Ask the server that is to write answers, where there is one; raise :class:`UserError` where it cannot."""
    recipe = settled.plan.recipe
    stage: Any = recipe.stage
    if not stage.online or stage.sampling.server is None:
        return
    from tunesmith.generation.remote_rollouts import check_server

    name = check_server(stage.sampling, settled.prepared.template.tokenizer, recipe.data.max_tokens)
    listener({"kind": "notice", "text": f"answers are written by {name} at {stage.sampling.server.url}"})


def make_remote_sampler(settled: Settled, model: Any) -> RemoteSampler | None:
    """Return what has a server write answers with *model*, which trains; None where that writes them itself."""
    from tunesmith.generation.remote_rollouts import RemoteSampler

    recipe = settled.plan.recipe
    stage: Any = recipe.stage
    server = stage.sampling.server
    return None if server is None else RemoteSampler(server, name_of_run(recipe), partial(save_trained, recipe, model))


def name_of_run(recipe: Recipe) -> str:
    """Return a name that servers take, and that no other run has: the folder's, and a hash of where it is."""
    folder = Path(recipe.output).absolute()
    readable = re.sub(r"[^\w.-]+", "-", folder.name)[:64]
    return f"{readable}-{blake2b(str(folder).encode(), digest_size=3).hexdigest()}"

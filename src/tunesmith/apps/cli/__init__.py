"""The command line: ``tunesmith COMMAND``.  Every command parses, calls ``tunesmith.run`` and shows the result."""

from tunesmith.apps.cli.main import main

__all__ = ["main"]

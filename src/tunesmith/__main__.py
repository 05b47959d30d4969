"""``python -m tunesmith``."""

from tunesmith.apps.cli import main

main()

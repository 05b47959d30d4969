"""What a model can be asked about verse: kinds of instruction, each with several wordings."""

from tunesmith.data.verse_tasks._task import Asked, Task
from tunesmith.data.verse_tasks.ci import CI_TASKS
from tunesmith.data.verse_tasks.couplets import COUPLET_TASKS
from tunesmith.data.verse_tasks.poems import POEM_TASKS

__all__ = ["CI_TASKS", "COUPLET_TASKS", "POEM_TASKS", "Asked", "Task"]

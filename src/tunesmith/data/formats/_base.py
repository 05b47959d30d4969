"""The contract of a data format."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.core.registry import Spec
from tunesmith.data.conversation import Conversation, Record


class Format(Spec):
    """Reads one kind of record.  Subclasses name their columns; a recipe's ``columns`` maps them to the file's."""

    columns: ClassVar[Mapping[str, str]] = {}
    """Column -> what it holds, for the reference and for checking a user's mapping."""

    required: ClassVar[frozenset[str]] = frozenset()
    """The columns that every record of this format has; a file that has them all is taken for this format."""

    @classmethod
    def matches(cls, values: Mapping[str, Any]) -> bool:
        """Say whether a record with these values looks like this format (used to detect it)."""
        return bool(cls.required) and cls.required <= values.keys()

    @classmethod
    def wants(cls) -> str:
        """Return the columns in words: ``text``, or ``instruction, output (and may have input, system)``."""
        optional = ", ".join(name for name in cls.columns if name not in cls.required)
        required = ", ".join(name for name in cls.columns if name in cls.required)
        return f"{required} (and may have {optional})" if optional else required

    def read(self, record: Record) -> Conversation:
        """Return the conversation in *record*; raise :class:`RowError` where it cannot be read."""
        raise NotImplementedError

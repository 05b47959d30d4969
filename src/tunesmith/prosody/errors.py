"""The one error of the library: something that was asked cannot be."""


class ProsodyError(ValueError):
    """An unknown book or form, a pattern that means nothing, a record without verse; the message says what would do."""

"""Text that a regular expression matches, computed by llguidance."""

from typing import Annotated

from pydantic import Field

from tunesmith.generation.constraints._grammar import AbstractGrammar


class Regex(AbstractGrammar):
    """Lets a model write only what a regular expression matches from its beginning to its end."""

    pattern: Annotated[str, Field(min_length=1)]
    """The expression, in the syntax of Rust's regex: no look-around, no references to groups."""

    def grammar(self, *, leading_space: bool) -> str:
        """Return llguidance's grammar for the expression."""
        from llguidance import LLMatcher

        return LLMatcher.grammar_from_regex(f" ?(?:{self.pattern})" if leading_space else self.pattern)

"""Named ways to sample: what tutorials recommend for kinds of text, with their values."""

from typing import Any, Final

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "greedy": {"temperature": 0.0},
    "precise": {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.05},
    "official": {"temperature": 0.4, "top_p": 0.9, "repetition_penalty": 1.1},
    "balanced": {"temperature": 0.7, "top_p": 0.9},
    "creative": {"temperature": 0.9, "top_p": 0.95, "presence_penalty": 0.3},
    "poetry": {"temperature": 0.9, "top_p": 0.95, "min_p": 0.02},
}
"""Name -> settings; what is set beside the name wins."""

PRESET_NOTES: Final[dict[str, str]] = {
    "greedy": "always the likeliest token",
    "precise": "facts, extraction, code",
    "official": "official documents (公文): 0.3 to 0.5 with a penalty for repeating",
    "balanced": "conversation",
    "creative": "stories, ideas",
    "poetry": "verse: 0.8 to 1.0, without the tail of unlikely characters",
}

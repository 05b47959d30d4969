"""Where the characters of lines stand in the text they were taken from."""

from collections.abc import Iterator, Sequence


def find_places(text: str, lines: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Yield for each line the offset in *text* of each of its characters; nothing for one that is not there.

    The lines come in the order of the text; marks and white space may stand between their characters.
    """
    start = 0
    for line in lines:
        offsets = _find(text, line, start)
        yield offsets
        if offsets:
            start = offsets[-1] + 1


def _find(text: str, line: str, start: int) -> tuple[int, ...]:
    """Return the first place from *start* on where *line* stands with nothing but marks in it."""
    begin = text.find(line[:1], start) if line else -1
    while begin >= 0:
        offsets, at = [begin], begin + 1
        for character in line[1:]:
            while at < len(text) and text[at] != character and not text[at].isalnum():
                at += 1
            if at >= len(text) or text[at] != character:
                break
            offsets.append(at)
            at += 1
        else:
            return tuple(offsets)
        begin = text.find(line[0], begin + 1)
    return ()

"""Poems that stand there twice, also under another name, in another script or with a few other readings (重出)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from tunesmith.data.cleaning._base import Cleaner, Log
from tunesmith.data.poems import Poem
from tunesmith.data.similar import find_groups, folded


class Duplicates(Cleaner):
    """Keep one of each group of poems with the same characters, or nearly; ``same_as`` says where the others stand.

    Marks, scripts and variants do not count.  The version with the fewest lost characters stays, of equals the first.
    """

    similar: Annotated[float, Field(gt=0.5, le=1.0)] = 0.8
    """Share of characters, place by place, that two poems of one length and with one line in common must share."""

    def clean(self, poems: Iterable[Poem], log: Log) -> Iterator[Poem]:
        having = list(poems)
        texts = [folded(poem.text) for poem in having]
        groups: dict[int, list[int]] = defaultdict(list)
        for number, group in enumerate(find_groups(texts, self.similar)):
            groups[group].append(number)
        for numbers in groups.values():
            best = min(numbers, key=lambda number: (having[number].lost, number))
            others = [number for number in numbers if number != best]
            for number in others:
                exact = texts[number] == texts[best]
                by_another = having[number].author != having[best].author
                what = f"{'same characters' if exact else 'a version'}{' under another author' * by_another}"
                log.drop(f"duplicate, {what}", having[number], because_of=having[best].where)
            if others:
                log.counts["in groups of duplicates"] += len(numbers)
            kept = having[best]
            yield kept.with_extra(same_as=[having[number].where for number in others]) if others else kept

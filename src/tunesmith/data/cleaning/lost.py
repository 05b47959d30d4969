"""Lost characters (□) and what stands in for one that a platform could not show (●, ■, {木+彡}, �)."""

import re
from typing import Literal

from tunesmith.data.cleaning._base import AbstractEach, Log
from tunesmith.data.poems import Poem
from tunesmith.prosody.text import LOST

# a character spelt by its parts, {艹尔} or ⿰木彡; private characters; letters of other scripts amid verse
_HAN = r"[㐀-鿿\U00020000-\U000323af]"
_PAIR = rf"[⿰⿱⿴-⿻]{_HAN}{_HAN}|[⿲⿳]{_HAN}{{3}}"
_SPELT = re.compile(rf"\{{[^{{}}\n]{{0,12}}\}}|[⿰⿱⿴-⿻](?:{_PAIR}|{_HAN})(?:{_PAIR}|{_HAN})|[⿲⿳]{_HAN}{{3}}")
_STRANGE = re.compile(
    r"[\ue000-\uf8ff\U000f0000-\U0010fffd\ufffd\u3040-\u30ff\u3100-\u312f\u0400-\u04ff\u2500-\u257f︽﹀]|(?<=[㐀-鿿])\?(?=[㐀-鿿])"
)
_STAND_INS = re.compile(f"[{re.escape(LOST.replace('□', ''))}]")
_GAP = re.compile(r"[上下前後后中以原]?[缺闕阙][字句文。]?$|[上下前後后中]缺|缺[一二三四五六七八九十数數]*[字句]")

_SHORT = 12


class Lost(AbstractEach):
    """Write every stand-in for a lost character as □, and count them in ``lost``.

    Dataset builders leave poems with lost characters out; checks take □ to fit any tone.
    """

    action: Literal["mark", "drop"] = "mark"
    """``mark`` keeps poems with lost characters; ``drop`` leaves out those with more than ``at_most``."""

    at_most: int = 0
    """How many lost characters a poem may have where ``action`` is ``drop``."""

    def clean_one(self, poem: Poem, log: Log) -> Poem | None:
        text, spelt = _SPELT.subn("□", poem.text)
        text, strange = _STRANGE.subn("□", text)
        text, stand_ins = _STAND_INS.subn("□", text)
        for what, count in (
            ("characters spelt by their parts", spelt),
            ("private and foreign letters", strange),
            ("stand-ins written as □", stand_ins),
        ):
            if count:
                log.note(what, poem, poem.text, text)
        poem = poem.changed(text=text)
        gap = next((note for note in poem.notes if len(note) <= _SHORT and _GAP.search(note)), "")
        if not poem.lost and not gap:
            return poem
        log.note(
            "poems with lost characters" if poem.lost else "poems with a gap, by their notes", poem, gap or text[:60]
        )
        if self.action == "drop" and (poem.lost > self.at_most or gap):
            log.drop("characters are lost" if poem.lost else "a part is lost", poem)
            return None
        return poem.with_extra(lost=poem.lost, **({"gap": gap} if gap else {}))

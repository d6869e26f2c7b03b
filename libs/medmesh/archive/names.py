"""Names of people as they are searched for: without case, accents and the width of letters, in every component group (PS3.5 §6.2.1.2).

`WANG^XiaoDong=王^小东` is found as `wang^xiaodong`, as `王^小东` and `王小东`, and fuzzily by
words that begin like one of its own: `xiao`, `王`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

Kind = Literal["whole", "word"]
_BETWEEN = re.compile(r"[\s^,=.·・'’-]+")
_SPACES = re.compile(r"\s+")


def fold(text: str) -> str:
    """One spelling for what people take for the same letters."""
    if text.isascii():
        return _SPACES.sub(" ", text).strip().lower()
    apart = unicodedata.normalize("NFKD", text.casefold())
    return _SPACES.sub(" ", unicodedata.normalize("NFC", "".join(c for c in apart if not unicodedata.combining(c)))).strip()


def whole(group: str) -> str:
    """A component group as it is compared: components folded, none empty at the end."""
    return "^".join(part.strip() for part in fold(group).split("^")).rstrip("^")


def words(text: str) -> list[str]:
    """What a name or a search for one is made of."""
    return [word for word in _BETWEEN.split(fold(text)) if word]


def keys(name: str) -> Iterator[tuple[Kind, str]]:
    """Under what the values of a name (several with backslashes between them) are found; no pair twice."""
    seen: set[tuple[Kind, str]] = set()
    for value in name.split("\\"):
        for group in value.split("=")[:3]:
            folded = whole(group)
            found: list[tuple[Kind, str]] = [("whole", folded), *(("word", word) for word in words(group))]
            if not folded.isascii():  # written without what parts family and given names
                together = "".join(words(group))
                found += [("whole", together), ("word", together)]
            for pair in found:
                if pair[1] and pair not in seen:
                    seen.add(pair)
                    yield pair

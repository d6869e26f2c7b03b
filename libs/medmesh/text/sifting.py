"""A note on its way into a data set: what rules are sure of is replaced, what they doubt is for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from medmesh.text.find import doubts
from medmesh.text.review import Judged, Review, propose

LONGEST = 1 << 20
"""Bytes of one note."""
_SHORT = 200
"""Characters of what may come again: an answer, a label."""


@dataclass(frozen=True, slots=True)
class Sifted:
    """`review` is of the text as it came: everything found, in order, what is doubted among it at `doubted`. `text` has all of it replaced,
    and may be kept where nothing is doubted."""

    review: Review
    doubted: tuple[int, ...]
    text: str


def sift(text: str, known: Iterable[str] = ()) -> Sifted:
    """By the rules, and by the names and numbers that are `known` of the patient."""
    review = propose(text, known)
    unsure = doubts(text, [one.span for one in review.judged])
    judged = sorted((*review.judged, *map(Judged, unsure)), key=lambda one: one.span)
    whole = replace(review, judged=tuple(judged))
    doubted = set(unsure)
    return Sifted(whole, tuple(place for place, one in enumerate(judged) if one.span in doubted), whole.apply(text))


class Sieve:
    """Texts as they may be kept where nobody waits to look at them: what rules are sure of replaced, and None of those they doubt. Words in
    `vouched` (in any case) name nobody: somebody looked at them. Texts that come again are not looked at again. `doubted` counts the words
    that rules doubt, and nobody vouched for."""

    def __init__(self, vouched: Iterable[str] = ()) -> None:
        self.doubted: Counter[str] = Counter()
        self._vouched = frozenset(word.strip().casefold() for word in vouched)
        self._again = lru_cache(1 << 14)(self._kept)

    def kept(self, text: str, known: tuple[str, ...] = (), *, lenient: bool = False) -> str | None:
        """`lenient` keeps also what is doubted, as it came."""
        return (self._kept if len(text) > _SHORT else self._again)(text, known, lenient)

    def _kept(self, text: str, known: tuple[str, ...], lenient: bool) -> str | None:
        found = sift(text, known)
        fine = [place for place in found.doubted if lenient or _words(found, place, text) in self._vouched]
        if len(fine) < len(found.doubted):
            self.doubted.update(_words(found, place, text, as_it_is=True) for place in found.doubted if place not in fine)
            return None
        return found.review.reject(fine, "vouched").apply(text) if fine else found.text


def _words(found: Sifted, place: int, text: str, *, as_it_is: bool = False) -> str:
    span = found.review.judged[place].span
    words = " ".join(text[span.start : span.end].split())
    return words if as_it_is else words.casefold()


def as_text(data: bytes) -> str | None:
    """A file that is a note: UTF-8 or GB18030 without control characters, and no document of another kind. None for anything else."""
    if not data.strip() or len(data) > LONGEST:
        return None
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            said = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if any(ord(sign) < 32 and sign not in "\t\r\n\f" for sign in said):
            return None
        return None if said.lstrip()[:1] in "{[<" or said.startswith(("MSH|", "#!", "%PDF")) else said
    return None

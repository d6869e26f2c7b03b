"""A note on its way into a data set: what rules are sure of is replaced, what they doubt is for a person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from medmesh.text.find import doubts, find
from medmesh.text.review import Judged, Review, propose

LONGEST = 1 << 20
"""Bytes of one note."""


@dataclass(frozen=True, slots=True)
class Sifted:
    """`review` is of the text as it came: everything found, in order, what is doubted among it at `doubted`. `text` has all of it replaced,
    and may be kept where nothing is doubted."""

    review: Review
    doubted: tuple[int, ...]
    text: str


def sift(text: str, known: Iterable[str] = ()) -> Sifted:
    """By the rules, and by the names and numbers that are `known` of the patient."""
    sure = find(text, known)
    unsure = doubts(text, sure)
    review = propose(text, known)
    judged = sorted((*review.judged, *map(Judged, unsure)), key=lambda one: one.span)
    whole = replace(review, judged=tuple(judged))
    doubted = set(unsure)
    return Sifted(whole, tuple(place for place, one in enumerate(judged) if one.span in doubted), whole.apply(text))


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

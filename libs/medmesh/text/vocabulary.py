"""Words of the field. What is no such word may be anybody's name, so a cleaned description keeps these alone."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_PIECES = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z]+)?|(?<![\d.])\d{1,3}(?:\.\d{1,2})?(?![\d.])|[\u4e00-\u9fff]+|[+/*_-]")
_LONGEST = 6


def terms_of(text: str) -> str:
    """The words of the field in `text`, in their order, and numbers of up to three digits; empty when there is none.

    >>> terms_of("胸部平扫 王丽 T2W_FLAIR 13800138000")
    '胸部平扫 T2W FLAIR'
    """
    kept: list[str] = []
    for piece in _PIECES.findall(text.replace("_", " ")):
        if "\u4e00" <= piece[0] <= "\u9fff":
            kept += [cut] if (cut := _cut(piece)) else []
        elif piece[0].isdigit() or piece[0] in "+/*-" or piece.lower() in _words():
            kept.append(piece)
    while kept and kept[-1] in "+/*-":
        kept.pop()
    return " ".join(kept) if any(piece.lower() in _words() or not piece.isascii() for piece in kept) else ""


def is_term(word: str) -> bool:
    """Whether a word is one of the field."""
    return word.lower() in _words()


def begins_with_term(text: str) -> bool:
    """Whether a Chinese text begins with a term of two characters or more: then it is no name."""
    return any(text[:length] in _words() for length in range(2, _LONGEST + 1))


def _cut(text: str) -> str:
    """The terms in running Chinese text, longest first."""
    kept, place = [], 0
    while place < len(text):
        length = next((n for n in range(_LONGEST, 0, -1) if text[place : place + n] in _words() and place + n <= len(text)), 0)
        kept.append(text[place : place + length])
        place += length or 1
    return "".join(kept)


@cache
def _words() -> frozenset[str]:
    lines = resources.files("medmesh.text").joinpath("terms.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word.lower() for line in lines if not line.startswith("#") for word in line.split())

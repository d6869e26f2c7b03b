"""Whether anything that a file said of somebody is still in what was made of it: read again, independently of what cleaned it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from medmesh.errors import Problem
from medmesh.importing.formats.content import THIS, Content, Format

SHORTEST = 4  # bytes in the text beside the samples: shorter values occur by chance
ANYWHERE = 8  # bytes: from here on a value is looked for among the samples too
_ENCODINGS = ("utf-8", "gb18030", "utf-16-le", "utf-16-be", "latin-1")
_PART = re.compile(r"[\s,;=^_/|]+")
_NOBODY = frozenset(("x", "startdate", "unknown", "anonymous", "none", "n/a"))


def parts(identity: Iterable[tuple[str, str]]) -> set[str]:
    """The values and the words in them that could identify somebody; two characters are enough outside ASCII, four within."""
    found = set()
    for _, value in identity:
        for word in (value.strip(), *_PART.split(value)):
            if len(word) >= (2 if not word.isascii() else SHORTEST) and word.lower() not in _NOBODY:
                found.add(word)
    return found


def residue(before: Content, cleaned: bytes, beside: bytes, own: Iterable[str] = ()) -> list[str]:
    """The fields of `before` whose value, or a word of it, is still in `cleaned` (whole file, inflated) or `beside` (all but its samples).

    `own` are words of the format itself, which say nothing about anybody.
    """
    everything, header = cleaned.lower(), beside.lower()
    words = {word.lower() for word in own}
    found = []
    for name, value in before.identity:
        for part in parts([(name, value)]):
            if part.lower() in words:
                continue
            needles = {needle for encoding in _ENCODINGS if (needle := _encoded(part, encoding))}
            if any(needle in header or (len(needle) >= ANYWHERE and needle in everything) for needle in needles):
                found.append(name)
                break
    return found


def proven(form: Format, before: Content, cleaned: bytes, opened: bytes, after: Content) -> bytes:
    """`cleaned`, if nothing of `before` is left in it and it is about nobody when read again (`after`). Raises `formats.identifying`."""
    left = sorted({name for name, _ in after.identity} | set(residue(before, opened, form.text(cleaned), _own(after))))
    if left:
        raise Problem("formats.identifying", place=THIS, fields=", ".join(left))
    return cleaned


def _own(content: Content) -> set[str]:
    """Words of what may be said: units, orders, codes. They are no one's name even if a comment holds them too."""
    return {word for value in content.meta.values() if isinstance(value, str) for word in _PART.split(value)}


def _encoded(value: str, encoding: str) -> bytes:
    try:
        return value.encode(encoding).lower()
    except UnicodeEncodeError:
        return b""

"""The parameters of a query (PS3.18 §8.3.4): what is meant, or which of them is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from medmesh.archive.header import time_key
from medmesh.archive.matching import Match
from medmesh.errors import Problem

MOST = 64
"""Parameters."""
LONGEST = 4096
"""Characters of a value: a list of UIDs."""
WILD = 8
"""Stars in a pattern."""
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_UID = re.compile(r"[0-9][0-9.]{0,63}")
_DATE = re.compile(r"\d{8}")
_WILD = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))
_NUMBERS = frozenset(("IS", "DS", "US", "SS", "UL", "SL", "FL", "FD", "SV", "UV"))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a query asks for. `fields` are tags to answer beside what is always answered, `limit` 0 when none is given."""

    matches: tuple[Match, ...] = ()
    fields: frozenset[int] = frozenset()
    everything: bool = False
    limit: int = 0
    offset: int = 0
    fuzzy: bool = False


def parse(parameters: Iterable[tuple[str, str]]) -> Asked:
    """From (name, value) pairs in order, decoded. Raises `Problem` (`archive.query`) that names the parameter."""
    given = list(parameters)
    if len(given) > MOST:
        raise Problem("archive.query", parameter="", reason=f"{len(given)} parameters")
    matches: list[Match] = []
    fields: set[int] = set()
    everything, limit, offset, fuzzy = False, 0, 0, False
    seen: set[str | tuple[int, ...]] = set()
    for name, value in given:
        if len(value) > LONGEST:
            raise _wrong(name, "too long")
        if name == "includefield":
            for one in value.split(","):
                if one == "all":
                    everything = True
                else:
                    fields.add(_path(one, name)[0])
            continue
        path: str | tuple[int, ...] = name if name in ("limit", "offset", "fuzzymatching") else _path(name, name)
        if path in seen:
            raise _wrong(name, "given twice")
        seen.add(path)
        if name == "limit":
            limit = _count(name, value)
            if limit == 0:
                raise _wrong(name, "none at all")
        elif name == "offset":
            offset = _count(name, value)
        elif name == "fuzzymatching":
            if value not in ("true", "false"):
                raise _wrong(name, "true or false")
            fuzzy = value == "true"
        elif isinstance(path, tuple):
            match = _match(name, path, value)
            if match is None:
                fields.add(path[0])  # anything matches: it is asked for
            else:
                matches.append(match)
    return Asked(tuple(matches), frozenset(fields), everything, limit, offset, fuzzy)


def _wrong(name: str, reason: str) -> Problem:
    return Problem("archive.query", parameter=name[:64], reason=reason)


def _count(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise _wrong(name, "not a number")
    return int(value)


def _path(text: str, parameter: str) -> tuple[int, ...]:
    """`PatientID`, `00100020`, `RequestAttributesSequence.ScheduledProcedureStepID`."""
    parts = text.split(".")
    found = tuple(int(one, 16) if _TAG.fullmatch(one) else _keywords().get(one, -1) for one in parts)
    if -1 in found or len(found) > 4 or any(kind_of(one) != "SQ" for one in found[:-1]):
        raise _wrong(parameter, "not an attribute")
    return found


def _match(name: str, path: tuple[int, ...], value: str) -> Match | None:
    """None where anything matches."""
    vr = kind_of(path[-1])
    if vr == "SQ":
        if value:
            raise _wrong(name, "a sequence: name an attribute in it")
        return None
    value = value.strip()
    if not value or value == "*":
        return None
    if vr == "UI":
        values = tuple(one.strip() for one in re.split(r"[\\,]", value))
        if not all(_UID.fullmatch(one) for one in values):
            raise _wrong(name, "not a UID")
        return Match(name, path, "one", values, vr)
    if vr in ("DA", "TM", "DT"):
        return _moment(name, path, value, vr)
    if vr in _NUMBERS:
        try:
            return Match(name, path, "number", (repr(float(value)),), vr)
        except ValueError:
            raise _wrong(name, "not a number") from None
    if vr in _WILD and ("*" in value or "?" in value):
        if value.count("*") > WILD:
            raise _wrong(name, "too many stars")
        return Match(name, path, "pattern", (value,), vr)
    if vr == "CS":
        return Match(name, path, "one", tuple(one.strip() for one in re.split(r"[\\,]", value)), vr)
    return Match(name, path, "one", (value,), vr)


def _moment(name: str, path: tuple[int, ...], value: str, vr: str) -> Match:
    """A date or time, or a range of them."""
    low, dash, high = value.partition("-")
    if dash and not (low or high):
        raise _wrong(name, "a range without ends")
    ends = []
    for place, end in enumerate((low, high)):
        if not end:
            ends.append("")
        elif vr == "DA" and _DATE.fullmatch(end):
            ends.append(end)
        elif vr == "TM" and time_key(end):
            # 10 as the end of a range is all of that hour: its seconds stay open.
            ends.append(time_key(end) if place == 0 and dash else end.replace(":", "") if dash else time_key(end))
        elif vr == "DT" and re.fullmatch(r"\d{4,14}(\.\d{1,6})?", end):
            ends.append(end)
        else:
            raise _wrong(name, "not a date" if vr == "DA" else "not a time")
    return Match(name, path, "range", (ends[0], ends[1]), vr) if dash else Match(name, path, "one", (ends[0],), vr)


@cache
def _keywords() -> dict[str, int]:
    from pydicom.datadict import DicomDictionary

    return {str(entry[4]): int(tag) for tag, entry in DicomDictionary.items() if entry[4]}


@cache
def kind_of(tag: int) -> str:
    """The kind of value of a standard attribute (the first, where there are several); LO of one that is not known."""
    from pydicom.datadict import DicomDictionary

    entry = DicomDictionary.get(tag)
    return str(entry[0])[:2] if entry else "LO"

"""How a value is matched (PS3.4 §C.2.2.2): single values, lists of UIDs, wild cards, ranges, and within sequences."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from medmesh.archive import names
from medmesh.archive.header import time_key

Kind = Literal["one", "pattern", "range", "number"]


@dataclass(frozen=True, slots=True)
class Match:
    """`path` is an attribute's tag, below those of the sequences it is in. `values`: of `one` those of which one must be there; of
    `pattern` one text with * and ?; of `range` its ends, empty where it is open; of `number` one number. `vr` is the kind of value."""

    parameter: str
    path: tuple[int, ...]
    kind: Kind
    values: tuple[str, ...]
    vr: str = ""


def literal_start(pattern: str) -> str:
    """What every match of a pattern begins with."""
    return re.split(r"[*?]", pattern, maxsplit=1)[0]


def glob(pattern: str) -> str:
    """A pattern as SQLite's GLOB has it, where brackets mean more than themselves."""
    return pattern.replace("[", "[[]")


@lru_cache(256)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern), re.DOTALL)


def groups(match: Match) -> list[str]:
    """The component groups of a name that is looked for, as `names.keys` has them."""
    return [folded for group in match.values[0].split("=")[:3] if (folded := names.whole(group)) and folded != "*"]


def words(match: Match) -> list[str]:
    """The words of a name that is looked for fuzzily."""
    return names.words(match.values[0].replace("*", " ").replace("?", " "))


def holds(match: Match, member: str) -> bool:
    """Whether a member of DICOM JSON, `"TTTTTTTT":{...}`, or nothing when it is not there, matches."""
    if not member:
        return False
    (element,) = json.loads("{" + member + "}", strict=False).values()
    compare = _comparison(match)
    return any(compare(value) for value in _values(element, match.path[1:]))


def _values(element: dict[str, Any], path: tuple[int, ...]) -> Iterator[Any]:
    """The values at the end of a path, in any item of the sequences on it."""
    for value in element.get("Value", ()):
        if not path:
            yield value
        elif isinstance(value, dict) and (inner := value.get(f"{path[0]:08X}")) is not None:
            yield from _values(inner, path[1:])


def _comparison(match: Match) -> Callable[[Any], bool]:
    if match.vr == "PN":
        wanted = [_expression(group) for group in groups(match)]

        def named(value: Any) -> bool:
            keys = [key for _, key in names.keys("=".join((value or {}).values()))]
            return all(any(group.fullmatch(key) for key in keys) for group in wanted)

        return named
    if match.kind == "range":
        low, high = match.values
        spell = time_key if match.vr == "TM" else str

        def within(value: Any) -> bool:
            text = spell(str(value or ""))
            return bool(text) and low <= text < (high or "") + "\U0010ffff"

        return within
    if match.kind == "number":
        number = float(match.values[0])
        return lambda value: _number(value) == number
    if match.kind == "pattern":
        pattern = _expression(match.values[0])
        return lambda value: pattern.fullmatch(str(value if value is not None else "")) is not None
    if match.vr == "TM":
        return lambda value: time_key(str(value or "")) in match.values
    return lambda value: str(value if value is not None else "") in match.values


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None

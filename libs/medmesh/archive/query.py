"""Queries as QIDO-RS asks them (PS3.18 §10.6, matching of PS3.4 §C.2.2.2), as SQL over the index, answered from text that is kept.

What the standard has a level answer to is found by indexed columns. Every other attribute is compared row by row, with the study's or
series' first object where it is not the study's own, and at most `SCANNED` rows are looked at.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

from medmesh.archive import header, matching
from medmesh.archive.matching import Match
from medmesh.archive.parameters import Asked
from medmesh.errors import Problem

Level = Literal["studies", "series", "instances"]
LIMIT = 1000
"""How many rows are answered at most, and when nothing is said."""
SCANNED = 20_000
COUNTED = 2000
"""Up to where it is counted how many more there are."""
_LAST = "\U0010ffff"

# Column of each attribute that is found by an index: (level, SQL).
_COLUMNS: dict[int, tuple[Level, str]] = {
    0x0020000D: ("studies", "st.uid"),
    0x00100020: ("studies", "st.patient_id"),
    0x00100021: ("studies", "st.issuer"),
    0x00080050: ("studies", "st.accession"),
    0x00200010: ("studies", "st.study_id"),
    0x00080020: ("studies", "st.date"),
    0x00080030: ("studies", "st.time"),
    0x0020000E: ("series", "se.uid"),
    0x00200011: ("series", "se.number"),
    0x00400244: ("series", "se.date"),
    0x00400245: ("series", "se.time"),
    0x00080018: ("instances", "i.uid"),
    0x00080016: ("instances", "i.class"),
    0x00200013: ("instances", "i.number"),
}
MODALITIES, MODALITY = 0x00080061, 0x00080060
_DEPTH: dict[Level, int] = {"studies": 0, "series": 1, "instances": 2}


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows as DICOM JSON objects, and how many more there are behind them (at most `COUNTED`, then there may be more)."""

    rows: tuple[str, ...]
    more: int = 0

    def body(self) -> bytes:
        """The array."""
        return f"[{','.join(self.rows)}]".encode()


@dataclass(slots=True)
class _Where:
    conditions: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, condition: str, *values: Any) -> None:
        self.conditions.append(condition)
        self.values += values


def search(
    connection: sqlite3.Connection, scope: int, level: Level, asked: Asked, root: str, *, study: str = "", series: str = ""
) -> Answer:
    """What of a scope is asked for, of one study or series where they are named. `root` is the address below which objects are retrieved.

    Raises `Problem`: `archive.query_level`, `archive.query_broad`.
    """
    where, of_study = _Where(), _Where()
    slow = [match for match in asked.matches if not _indexed(where, of_study, scope, level, match, asked.fuzzy)]
    if study:
        of_study.add("st.uid = ?", study)
    if level == "studies":
        where, of_study = of_study, where
        where.add("st.scope = ?", scope)
    elif of_study.conditions:  # the studies first: the plus keeps the rows' own order from being an index to go by
        within = f"SELECT st.id FROM studies st WHERE st.scope = ? AND {' AND '.join(of_study.conditions)}"  # noqa: S608
        where.add(f"{_OF_STUDY[level]} IN ({within}) AND +{_ALIAS[level]}.scope = ?", scope, *of_study.values, scope)
    else:
        where.add(f"{_ALIAS[level]}.scope = ?", scope)
    if series:
        where.add("i.series = (SELECT id FROM series WHERE scope = ? AND uid = ?)", scope, series)
    # Attributes of higher levels are answered where the address does not say them.
    upper = (not study, not series and level == "instances")
    statement = f"SELECT {_SELECT[level]} FROM {_FROM[level]} WHERE {' AND '.join(where.conditions)} ORDER BY {_ALIAS[level]}.id"  # noqa: S608
    limit = min(asked.limit or LIMIT, LIMIT)
    fields = asked.fields | {match.path[0] for match in slow}
    if slow:
        rows, more = _scanned(connection, level, statement, where.values, slow, limit, asked.offset)
    else:
        rows = connection.execute(f"{statement} LIMIT ? OFFSET ?", (*where.values, limit + 1, asked.offset)).fetchall()
        more = 0
        if len(rows) > limit:
            rows.pop()
            counted = f"SELECT count(*) FROM (SELECT 1 FROM {_FROM[level]} WHERE {' AND '.join(where.conditions)} LIMIT ? OFFSET ?)"  # noqa: S608
            (more,) = connection.execute(counted, (*where.values, COUNTED, asked.offset + limit)).fetchone()
    return Answer(tuple([_object(connection, level, row, root, upper, fields, asked.everything) for row in rows]), more)


_ALIAS: dict[Level, str] = {"studies": "st", "series": "se", "instances": "i"}
_OF_STUDY: dict[Level, str] = {"studies": "st.id", "series": "se.study", "instances": "i.study"}
_FROM: dict[Level, str] = {
    "studies": "studies st",
    "series": "series se JOIN studies st ON st.id = se.study",
    "instances": "instances i JOIN series se ON se.id = i.series JOIN studies st ON st.id = i.study",
}
_SELECT: dict[Level, str] = {
    "studies": "st.id, st.uid, st.brief, st.modalities, st.series, st.instances",
    "series": "se.id, st.uid, st.brief, st.modalities, st.series, st.instances, se.uid, se.brief, se.instances",
    "instances": "i.id, st.uid, st.brief, st.modalities, st.series, st.instances, se.uid, se.brief, se.instances, i.uid, i.brief",
}
_HEADER: dict[Level, str] = {
    "studies": "SELECT json FROM headers WHERE instance = (SELECT min(id) FROM instances WHERE study = ?)",
    "series": "SELECT json FROM headers WHERE instance = (SELECT min(id) FROM instances WHERE series = ?)",
    "instances": "SELECT json FROM headers WHERE instance = ?",
}


def _indexed(where: _Where, of_study: _Where, scope: int, level: Level, match: Match, fuzzy: bool) -> bool:
    """Whether the match is now part of the statement, among the conditions on rows or on their studies."""
    tag = match.path[0]
    if (owner := _level_of(tag)) is not None and _DEPTH[owner] > _DEPTH[level]:
        raise Problem("archive.query_level", parameter=match.parameter, level=level)
    if len(match.path) > 1:
        return False
    if tag in (header.PATIENT_NAME, header.REFERRING_NAME):
        _name(of_study, scope, tag, match, fuzzy)
    elif tag == MODALITY:
        _compare(where, "i.modality" if level == "instances" else "se.modality", match)
    elif tag == MODALITIES:
        inner = _Where()
        _compare(inner, "m.modality", match)
        within = f"SELECT 1 FROM series m WHERE m.study = st.id AND {' AND '.join(inner.conditions)}"  # noqa: S608
        of_study.add(f"EXISTS ({within})", *inner.values)
    elif tag in _COLUMNS:
        owner, column = _COLUMNS[tag]
        _compare(of_study if owner == "studies" else where, column, match)
    else:
        return False
    return True


def _compare(where: _Where, column: str, match: Match) -> None:
    if match.kind == "range":
        low, high = match.values
        if low:
            where.add(f"{column} >= ?", low)
        # What has no date is in no range, and an end takes in all that begins with it: 10 is up to 10:59:59.
        where.add(f"{column} <> '' AND {column} < ?", (high or "") + _LAST)
    elif match.kind == "pattern":
        start = matching.literal_start(match.values[0])
        if start:
            where.add(f"{column} >= ? AND {column} < ? AND {column} GLOB ?", start, start + _LAST, matching.glob(match.values[0]))
        else:
            where.add(f"{column} GLOB ?", matching.glob(match.values[0]))
    elif match.kind == "number":
        where.add(f"{column} = ?", float(match.values[0]))
    elif len(match.values) == 1:
        where.add(f"{column} = ?", match.values[0])
    else:
        where.add(f"{column} IN ({', '.join('?' * len(match.values))})", *match.values)


def _name(where: _Where, scope: int, tag: int, match: Match, fuzzy: bool) -> None:
    """Every group of the name that is given must be found; fuzzily, every word must begin one of the name's."""
    wanted = matching.words(match) if fuzzy else matching.groups(match)
    for key in wanted:
        inner = _Where()
        inner.add("n.scope = ? AND n.tag = ? AND n.kind = ?", scope, f"{tag:08X}", "word" if fuzzy else "whole")
        if fuzzy:
            inner.add("n.key >= ? AND n.key < ?", key, key + _LAST)
        else:
            _compare(inner, "n.key", Match("", match.path, "pattern" if "*" in key or "?" in key else "one", (key,)))
        where.add(f"st.id IN (SELECT n.study FROM names n WHERE {' AND '.join(inner.conditions)})", *inner.values)  # noqa: S608


def _level_of(tag: int) -> Level | None:
    """Whose attribute it is, where that is known."""
    if tag in header.STUDY or tag == MODALITIES:
        return "studies"
    if tag in header.SERIES:
        return "series"
    return "instances" if tag in header.INSTANCE else None


def _scanned(
    connection: sqlite3.Connection, level: Level, statement: str, values: list[Any], slow: Sequence[Match], limit: int, offset: int
) -> tuple[list[Any], int]:
    """The rows that also match what no index knows, and how many more there are among those that may be looked at."""
    found: list[Any] = []
    passed = more = 0
    for looked, row in enumerate(connection.execute(statement, values)):
        if looked >= SCANNED:
            raise Problem("archive.query_broad", most=SCANNED)
        if not all(matching.holds(match, _member(connection, level, row, match.path[0])) for match in slow):
            continue
        passed += 1
        if passed <= offset:
            continue
        if len(found) < limit:
            found.append(row)
        else:
            more += 1
            if more >= COUNTED:
                break
    return found, more


def _member(connection: sqlite3.Connection, level: Level, row: Any, tag: int) -> str:
    """The JSON member of an attribute in a row; empty when it is not there."""
    start = f'"{tag:08X}":'
    owner = _level_of(tag)
    lines = str(row[{"studies": 2, "series": 7, "instances": 10}[owner]]) if owner else _header(connection, level, int(row[0]))
    return next((line for line in lines.split("\n") if line.startswith(start)), "")


def _header(connection: sqlite3.Connection, level: Level, row: int) -> str:
    found = connection.execute(_HEADER[level], (row,)).fetchone()
    return unpacked(found[0]) if found else ""


def unpacked(stored: bytes) -> str:
    """The members of a header with line feeds between them."""
    return zlib.decompress(stored).decode()


def _object(
    connection: sqlite3.Connection, level: Level, row: Any, root: str, upper: tuple[bool, bool], fields: Set[int], everything: bool
) -> str:
    """A row as an object of DICOM JSON, its members in order."""
    members = list(_members(level, row, root, upper))
    if fields or everything:
        lines = _header(connection, level, int(row[0])).split("\n")
        wanted = lines if everything else [line for line in lines if int(line[1:9], 16) in fields]
        address = root + _address(row)
        there = {member[:10] for member in members}
        members += [line.replace('"BulkDataURI":"\x01', f'"BulkDataURI":"{address}/bulkdata/') for line in wanted if line[:10] not in there]
    members.sort()
    return "{" + ",".join(members) + "}"


def _members(level: Level, row: Any, root: str, upper: tuple[bool, bool]) -> Iterator[str]:
    if level == "studies" or upper[0]:
        yield from row[2].split("\n")
        modalities = ",".join(f'"{one}"' for one in row[3].strip("\\").split("\\") if one)
        yield f'"00080061":{{"vr":"CS","Value":[{modalities}]}}' if modalities else '"00080061":{"vr":"CS"}'
        yield f'"00201206":{{"vr":"IS","Value":[{row[4]}]}}'
        yield f'"00201208":{{"vr":"IS","Value":[{row[5]}]}}'
    else:
        yield f'"0020000D":{{"vr":"UI","Value":["{row[1]}"]}}'
    if level == "series" or (level == "instances" and upper[1]):
        yield from row[7].split("\n")
        yield f'"00201209":{{"vr":"IS","Value":[{row[8]}]}}'
    elif level == "instances":
        yield f'"0020000E":{{"vr":"UI","Value":["{row[6]}"]}}'
    if level == "instances":
        yield from row[10].split("\n")
    yield '"00080056":{"vr":"CS","Value":["ONLINE"]}'
    yield f'"00081190":{{"vr":"UR","Value":["{root}{_address(row)}"]}}'


def _address(row: Any) -> str:
    address = f"/studies/{row[1]}"
    if len(row) > 6:
        address += f"/series/{row[6]}"
    return address + (f"/instances/{row[9]}" if len(row) > 9 else "")

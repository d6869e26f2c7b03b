"""Where the bytes of an archive's objects lie: here, or in a cold tier, a folder or a bucket elsewhere.

    hot -> copying -> freeing -> cold -> recalling -> clearing -> hot          any of them -> erasing -> gone

A state says what may be done again, and each step may be: bytes are copied, read back to their last one and compared before the state says
that they are there, and only the next state takes them away from where they were. So one whole copy is somewhere at every moment, and a
killed `Mover` is followed by another that begins with what the states say. An object without a row is hot.

A header never leaves: it is small, and it holds the key of its body. A forgetting that destroys it has destroyed what lies in the cold
tier as well, whether that is reachable or not; the bytes there are deleted as soon as it is (`erasing`). Turning keys over touches headers
alone.

`Objects.moving` is held by whoever moves, erases or wraps anew; those who receive and read need not know of it.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medmesh.archive.objects import Objects
from medmesh.archive.tables import now_ms, transaction
from medmesh.errors import Problem
from medmesh.store.objects.encrypted import body_name
from medmesh.store.objects.envelope import Rejoined
from medmesh.store.objects.tiered import Cold
from medmesh.telemetry import log

BATCH = 1000
SCAN_SECONDS = 60.0
"""How often it is looked for objects that have become old."""
AGAIN_SECONDS = 600.0
"""How long an object is left alone whose bytes are not what they should be."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When an object becomes cold: `age` in ms since it came or was recalled, unless it is smaller than `least` bytes; and where hot
    objects have more bytes than `most`, the oldest before their time. None: no such limit."""

    age: int
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    sha256: str
    state: str
    name: str
    seal: str
    bytes: int


_ORIGINALS = "FROM objects o JOIN scopes s ON s.id = o.scope AND s.realm = 'original' LEFT JOIN tiers t ON t.sha256 = o.sha256"
_SETTLED = (
    "(t.state IS NULL OR t.state = 'hot') AND o.bytes >= ? AND o.state IN ('cleaned', 'quarantined')"
    " AND NOT EXISTS (SELECT 1 FROM objects x WHERE x.sha256 = o.sha256 AND x.state IN ('received', 'cleaning'))"
)
_SINCE = "max(o.at, coalesce(t.at, 0))"


def recall(connection: sqlite3.Connection, study: str | None = None) -> int:
    """Have objects come back: those of a study, or all. How many. They can be read meanwhile. Part of its caller's transaction."""
    wanted = "UPDATE tiers SET state = 'recalling', at = ?1 WHERE state = 'cold'"
    of_study = " AND sha256 IN (SELECT sha256 FROM objects WHERE study = ?2)"
    return connection.execute(wanted if study is None else wanted + of_study, (now_ms(), *(() if study is None else (study,)))).rowcount


def counts(connection: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """Objects and their bytes in each state, originals alone."""
    distinct = f"SELECT DISTINCT o.sha256, o.bytes, coalesce(t.state, 'hot') AS tier {_ORIGINALS}"
    rows = connection.execute(f"SELECT tier, count(*), sum(bytes) FROM ({distinct}) GROUP BY 1 ORDER BY 1")  # noqa: S608
    return {tier: {"objects": number, "bytes": size} for tier, number, size in rows}


def erase(connection: sqlite3.Connection, objects: Objects) -> int:
    """Delete what no object is named by any more, here and in the cold tier; how many. What cannot be reached is left for another time."""
    gone = 0
    with objects.moving():
        for sha256, name in connection.execute("SELECT sha256, name FROM tiers WHERE state = 'erasing'").fetchall():
            with transaction(connection):
                if connection.execute("SELECT 1 FROM objects WHERE sha256 = ? LIMIT 1", (sha256,)).fetchone() is None:
                    objects.hot.remove(sha256)
            try:
                if name:
                    objects.cold().delete(name)
            except Problem as problem:
                log("archive.cold_unerased", level=30, error=problem)
                break
            with transaction(connection):
                connection.execute("DELETE FROM tiers WHERE sha256 = ? AND state = 'erasing'", (sha256,))
            gone += 1
    return gone


class Mover:
    """Moves one object by one state at each `step`. `told` hears of each that has become cold, or hot again, in the transaction that says
    so: the connection, a word, and how many bytes."""

    def __init__(
        self, connection: sqlite3.Connection, objects: Objects, thresholds: Thresholds, told: Callable[[sqlite3.Connection, str, int], None]
    ) -> None:
        self._connection = connection
        self._objects = objects
        self._thresholds = thresholds
        self._told = told
        self._next_scan = 0.0
        self._left: dict[str, float] = {}
        self._ready = False

    def step(self) -> bool:
        """Whether something was moved. Raises `Problem` (`archive.cold_away`, `archive.cold_other`, `objects.full`); nothing is lost."""
        if not self._ready:
            if not self._anything():
                return False
            claim(self._connection, self._objects.cold())
            self._ready = True
        if erase(self._connection, self._objects):
            return True
        row = self._next()
        if row is None:
            return self._scan()
        with self._objects.moving():
            try:
                getattr(self, f"_{row.state}")(row)
            except Problem as problem:
                if problem.code in ("archive.cold_away", "objects.full"):
                    self._ready = False  # another disk may be there next time
                    raise
                log("archive.unmovable", level=40, error=problem, state=row.state)
                self._left[row.sha256] = time.monotonic() + AGAIN_SECONDS
        return True

    def _anything(self) -> bool:
        """Whether there is a reason to look at the cold tier."""
        begun = self._connection.execute("SELECT 1 FROM tiers WHERE state <> 'hot' LIMIT 1").fetchone()
        return begun is not None or self._scan()

    def _next(self) -> _Row | None:
        now = time.monotonic()
        self._left = {sha256: until for sha256, until in self._left.items() if until > now}
        # What people wait for first, and what makes room.
        rows = self._connection.execute(
            "SELECT sha256, state, name, seal, bytes FROM tiers WHERE state IN ('recalling', 'clearing', 'freeing', 'copying')"
            " ORDER BY CASE state WHEN 'recalling' THEN 0 WHEN 'clearing' THEN 1 WHEN 'freeing' THEN 2 ELSE 3 END, at LIMIT ?",
            (len(self._left) + 1,),
        )
        return next((_Row(*row) for row in rows if row[0] not in self._left), None)

    def _scan(self) -> bool:
        """Let the next objects become cold that are due."""
        if time.monotonic() < self._next_scan:
            return False
        limits = self._thresholds
        order = f"GROUP BY o.sha256 ORDER BY {_SINCE} LIMIT ?"
        due = f"SELECT o.sha256, o.bytes {_ORIGINALS} WHERE {_SETTLED} AND {_SINCE} <= ? {order}"
        found = self._connection.execute(due, (limits.least, now_ms() - limits.age, BATCH)).fetchall()
        if not found and limits.most is not None:
            over = counts(self._connection).get("hot", {"bytes": 0})["bytes"] - limits.most
            oldest = f"SELECT o.sha256, o.bytes {_ORIGINALS} WHERE {_SETTLED} {order}"
            for row in self._connection.execute(oldest, (limits.least, BATCH)) if over > 0 else ():
                if over > 0:
                    found.append(row)
                    over -= row[1]
        if not found:
            self._next_scan = time.monotonic() + SCAN_SECONDS
            return False
        with transaction(self._connection):
            self._connection.executemany(
                "INSERT INTO tiers (sha256, state, bytes, at) VALUES (?, 'copying', ?, ?)"
                " ON CONFLICT (sha256) DO UPDATE SET state = 'copying', at = excluded.at WHERE state = 'hot'",
                [(sha256, size, now_ms()) for sha256, size in found],
            )
        return True

    # States: what is done in each, and what comes after

    def _copying(self, row: _Row) -> None:
        found = self._objects.hot.at_rest(row.sha256) if self._objects.hot.whole(row.sha256) else None
        if found is None or found[1] is None:  # damaged: a copy of it saves nothing, but one that was made before may
            if not row.seal and row.name:
                self._objects.cold().delete(row.name)
            self._to(row, "recalling" if row.seal else "hot", name=row.name if row.seal else "")
            raise Problem("objects.damaged", sha256=row.sha256)
        header, sealed = found[0], _Sealed(found[1])
        name = body_name(header)
        if name != row.name:
            if row.name:  # received anew since it was begun, under another key
                self._objects.cold().delete(row.name)
            if not self._to(row, "copying", name=name, seal=""):
                return  # what has no name in a row must not lie there
        self._objects.cold().put(name, Rejoined(iter(sealed)), header.sealed_bytes)
        if self._read_back(name) != sealed.digest or self._objects.cold().mark() is None:
            raise Problem("archive.cold_away", reason="it does not give back what it was given")
        self._to(row, "freeing", seal=sealed.digest)

    def _freeing(self, row: _Row) -> None:
        found = self._objects.hot.at_rest(row.sha256)
        if found is not None and found[1] is not None:
            header, sealed = found[0], _Sealed(found[1])
            for _ in sealed:
                pass
            if sealed.digest != row.seal:  # received anew: what was copied is not the body of this header
                self._to(row, "copying")
                return
            self._objects.hot.detach(header)
        self._to(row, "cold", told="cooled")

    def _recalling(self, row: _Row) -> None:
        if not self._objects.hot.whole(row.sha256):
            header, sealed = self._objects.hot.header(row.sha256), self._objects.cold().get(row.name)
            if header is None or sealed is None:
                raise Problem("objects.missing", sha256=row.sha256)
            self._objects.hot.attach(header, sealed)
            if not self._objects.hot.whole(row.sha256):
                self._objects.hot.detach(header)
                raise Problem("objects.damaged", sha256=row.sha256)
        self._to(row, "clearing")

    def _clearing(self, row: _Row) -> None:
        if not self._objects.hot.whole(row.sha256):
            self._to(row, "recalling")
            return
        if row.name:  # nothing was copied yet of what was received anew at once
            self._objects.cold().delete(row.name)
        self._to(row, "hot", name="", seal="", told="recalled")

    def _read_back(self, name: str) -> str:
        pieces = self._objects.cold().get(name)
        sealed = _Sealed(iter(()) if pieces is None else pieces)
        for _ in sealed:
            pass
        return sealed.digest

    def _to(self, row: _Row, state: str, *, name: str | None = None, seal: str | None = None, told: str = "") -> bool:
        """Unless somebody has said otherwise meanwhile: that it was forgotten, or received anew."""
        with transaction(self._connection):
            changed = self._connection.execute(
                "UPDATE tiers SET state = ?, name = coalesce(?, name), seal = coalesce(?, seal), at = ? WHERE sha256 = ? AND state = ?",
                (state, name, seal, now_ms(), row.sha256, row.state),
            ).rowcount
            if changed and told:
                self._told(self._connection, told, row.bytes)
        return bool(changed)


class _Sealed:
    """Pieces, and the SHA-256 of those that were taken."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._hash = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._hash.update(piece)
            yield piece

    @property
    def digest(self) -> str:
        """In hexadecimal."""
        return self._hash.hexdigest()


def claim(connection: sqlite3.Connection, cold: Cold) -> None:
    """Be sure that this is where the archive's cold objects lie. Raises `Problem` (`archive.cold_away`, `archive.cold_other`)."""
    with transaction(connection):
        known = connection.execute("SELECT mark FROM cold_tier").fetchone()
        if known is None:
            known = (secrets.token_hex(16),)
            connection.execute("INSERT INTO cold_tier (mark) VALUES (?)", known)
        away = connection.execute("SELECT 1 FROM tiers WHERE state NOT IN ('hot', 'copying') OR name <> '' LIMIT 1").fetchone()
    found = cold.mark()
    if found is None and away is None:
        cold.claim(known[0])
    elif found is None:
        raise Problem("archive.cold_away", reason="its mark is missing")
    elif found != known[0]:
        raise Problem("archive.cold_other")

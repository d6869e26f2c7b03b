"""What becomes of an object after it was received, and studies that are complete. Functions on a connection to the index; those that
change something are part of their caller's transaction.

    received -> cleaning -> cleaned                      `reason` is `duplicate` where another object says the same
                         -> quarantined {stage, reason}  -> received (`release`) | gone (`drop`)
    cleaned              -> quarantined {series, reason}    its series breaks a rule of the project; received when it does no longer

A worker that is killed leaves `cleaning` behind: `restore` takes that back, and everything after it may be done twice. An object that
kills its worker more than `ATTEMPTS` times is quarantined for that.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medmesh.archive import index, tiers
from medmesh.archive.header import Entry
from medmesh.archive.objects import Objects
from medmesh.archive.tables import now_ms, transaction

ATTEMPTS = 3
STAGES = ("receive", "read", "index", "deidentify", "verify", "quality", "consent", "clean", "series")
"""Where an object can be stopped, in the order in which it passes."""


@dataclass(frozen=True, slots=True)
class Row:
    """An object as its pipeline needs it."""

    id: int
    project: str
    scope: int
    sha256: str
    bytes: int
    digest: str
    sop: str
    called: str
    attempts: int


_ROW = "o.id, s.project, o.scope, o.sha256, o.bytes, o.digest, o.sop, o.called, o.attempts"


def claim(connection: sqlite3.Connection, worker: int, of: int, limit: int) -> list[Row]:
    """The next objects for one of `of` workers, in the order in which they came; from now on they are being cleaned.

    One that was begun before is given alone, so that it is known which of them ends a worker.
    """
    wanted = "SELECT id, attempts FROM objects WHERE state = 'received' AND id % ? = ? ORDER BY id LIMIT ?"
    found = connection.execute(wanted, (of, worker, limit)).fetchall()
    begun = [row for row in found if row[1]]
    ids = [row[0] for row in (begun[:1] or found)]
    marks = ", ".join("?" * len(ids))
    if ids:
        connection.execute(f"UPDATE objects SET state = 'cleaning', attempts = attempts + 1 WHERE id IN ({marks})", ids)  # noqa: S608
    rows = f"SELECT {_ROW} FROM objects o JOIN scopes s ON s.id = o.scope WHERE o.id IN ({marks}) ORDER BY o.id"  # noqa: S608
    return [Row(*row) for row in connection.execute(rows, ids)] if ids else []


def restore(connection: sqlite3.Connection, worker: int = 0, of: int = 1) -> int:
    """Take back what a worker left that is gone; how many objects."""
    back = "UPDATE objects SET state = 'received' WHERE state = 'cleaning' AND id % ? = ?"
    return connection.execute(back, (of, worker)).rowcount


def give_back(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Their worker could do nothing, and that was not their fault."""
    back = "UPDATE objects SET state = 'received', attempts = attempts - 1 WHERE id = ? AND state = 'cleaning'"
    connection.executemany(back, [(one,) for one in ids])


def cleaned(connection: sqlite3.Connection, object_id: int, reason: str = "") -> None:
    """It is through."""
    _to(connection, object_id, "cleaned", "", reason)


def quarantine(connection: sqlite3.Connection, object_id: int, stage: str, reason: str) -> None:
    """It stays here until somebody looks at it."""
    _to(connection, object_id, "quarantined", stage, reason)


def _to(connection: sqlite3.Connection, object_id: int, state: str, stage: str, reason: str) -> None:
    values = (state, stage, reason[:200], object_id)
    connection.execute("UPDATE objects SET state = ?, stage = ?, reason = ? WHERE id = ?", values)


def clean_object(connection: sqlite3.Connection, scope: int, row: Row, sha256: str, size: int, entry: Entry) -> index.Conflict | None:
    """The de-identified object of `row`, in the scope of its project's clean ones; what was made of it before goes."""
    for (before,) in connection.execute("SELECT id FROM objects WHERE source = ?", (row.id,)).fetchall():
        forget(connection, (before,))
    values = (scope, sha256, size, row.id, entry.syntax, entry.sop_class, entry.sop, entry.series, entry.study, now_ms())
    made = connection.execute(
        "INSERT INTO objects (scope, sha256, bytes, state, source, syntax, class, sop, series, study, at)"
        " VALUES (?, ?, ?, 'cleaned', ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        values,
    ).fetchone()
    return index.put(connection, scope, int(made[0]), entry)


def forget(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """These objects, with their places in the index, and nothing of what was made of them. Their bytes are the caller's."""
    index.remove(connection, ids)
    for one in ids:
        row = connection.execute("DELETE FROM objects WHERE id = ? RETURNING sha256", (one,)).fetchone()
        if row is not None and connection.execute("SELECT 1 FROM objects WHERE sha256 = ? LIMIT 1", row).fetchone() is None:
            connection.execute("UPDATE tiers SET state = 'erasing' WHERE sha256 = ?", row)  # see `tiers`


# Quarantine


@dataclass(frozen=True, slots=True)
class Held:
    """An object in quarantine, as the hospital's own people see it."""

    id: int
    project: str
    stage: str
    reason: str
    calling: str
    address: str
    bytes: int
    study: str
    sop: str
    at: int


_HELD = (
    "SELECT o.id, s.project, o.stage, o.reason, o.calling, o.address, o.bytes, o.study, o.sop, o.at"
    " FROM objects o JOIN scopes s ON s.id = o.scope WHERE o.state = 'quarantined'"
)


def held(connection: sqlite3.Connection, *, stage: str = "", limit: int = 100) -> list[Held]:
    """The newest first."""
    rows = connection.execute(f"{_HELD} AND ? IN ('', o.stage) ORDER BY o.id DESC LIMIT ?", (stage, limit))
    return [Held(*row) for row in rows]


def held_one(connection: sqlite3.Connection, object_id: int) -> Held | None:
    """None where no such object is in quarantine."""
    row = connection.execute(f"{_HELD} AND o.id = ?", (object_id,)).fetchone()
    return None if row is None else Held(*row)


def release(connection: sqlite3.Connection, object_id: int) -> bool:
    """Have it go through the pipeline once more: the rules may have changed, or what it contradicted may be gone."""
    back = (
        "UPDATE objects SET state = 'received', stage = '', reason = '', attempts = 0 WHERE id = ? AND state = 'quarantined'"
        " RETURNING scope, study"
    )
    row = connection.execute(back, (object_id,)).fetchone()
    if row is None:
        return False
    # Its study is another one then, and is told of again.
    connection.execute("UPDATE studies SET revision = revision + 1, changed = ? WHERE scope = ? AND uid = ?", (now_ms(), *row))
    return True


def drop(connection: sqlite3.Connection, object_id: int) -> str | None:
    """Its SHA-256, once it is dropped; None where no such object is in quarantine. Its bytes go with `erase`."""
    row = connection.execute("SELECT sha256 FROM objects WHERE id = ? AND state = 'quarantined'", (object_id,)).fetchone()
    if row is None:
        return None
    forget(connection, (object_id,))
    return str(row[0])


def erase(connection: sqlite3.Connection, objects: Objects, sha256s: Iterable[str]) -> None:
    """The bytes that no row names any more, wherever they lie; after the rows were committed."""
    found = list(sha256s)
    if not found:
        return
    with objects.moving():
        for sha256 in found:
            # Whoever receives the same just now finds it gone, or it stays (`receive`).
            with transaction(connection):
                if connection.execute("SELECT 1 FROM objects WHERE sha256 = ? LIMIT 1", (sha256,)).fetchone() is None:
                    objects.store.remove(sha256)
    tiers.erase(connection, objects)


# Counting, and studies


def held_back(connection: sqlite3.Connection, project: str, stages: Sequence[str]) -> dict[str, int]:
    """How many of a project's own objects are in quarantine at these stages, by reason."""
    wanted = (
        "SELECT o.reason, count(*) FROM objects o JOIN scopes s ON s.id = o.scope WHERE s.project = ? AND s.realm = 'original'"
        " AND o.state = 'quarantined' AND o.stage IN (SELECT value FROM json_each(?)) GROUP BY 1 ORDER BY 1"
    )
    return dict(connection.execute(wanted, (project, json.dumps(list(stages)))).fetchall())


def counts(connection: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """How many of each project's own objects are in each state."""
    found: dict[str, dict[str, int]] = {}
    wanted = "SELECT s.project, o.state, count(*) FROM objects o JOIN scopes s ON s.id = o.scope WHERE s.realm = 'original' GROUP BY 1, 2"
    for project, state, number in connection.execute(wanted):
        found.setdefault(project, {})[state] = number
    return found


def unsettled(connection: sqlite3.Connection) -> dict[str, int]:
    """How many studies of each project more may come for, or something is on its way of: what is new of them is not used yet."""
    wanted = (
        "SELECT s.project, count(*) FROM studies t JOIN scopes s ON s.id = t.scope"
        " WHERE t.revision > t.settled AND s.realm = 'original' GROUP BY 1 ORDER BY 1"
    )
    return dict(connection.execute(wanted).fetchall())


@dataclass(frozen=True, slots=True)
class Study:
    """A study nothing more came for: `cleaned` and `quarantined` count its objects. `revision` grows with every change."""

    id: int
    project: str
    uid: str
    revision: int
    cleaned: int
    quarantined: int


def due(connection: sqlite3.Connection, seconds: float, limit: int = 100) -> list[Study]:
    """Studies of originals that changed since they were told of, and not for that time, and of which nothing is on its way."""
    rows = connection.execute(
        "SELECT t.id, s.project, t.uid, t.revision,"
        " (SELECT count(*) FROM objects o WHERE o.scope = t.scope AND o.study = t.uid AND o.state = 'cleaned'),"
        " (SELECT count(*) FROM objects o WHERE o.scope = t.scope AND o.study = t.uid AND o.state = 'quarantined')"
        " FROM studies t JOIN scopes s ON s.id = t.scope"
        " WHERE t.revision > t.settled AND t.changed <= ? AND s.realm = 'original' AND NOT EXISTS"
        " (SELECT 1 FROM objects o WHERE o.state IN ('received', 'cleaning') AND o.scope = t.scope AND o.study = t.uid)"
        " ORDER BY t.changed LIMIT ?",
        (now_ms() - int(seconds * 1000), limit),
    )
    return [Study(*row) for row in rows]


def told(connection: sqlite3.Connection, study: Study) -> None:
    """It was told of, as it was then."""
    connection.execute("UPDATE studies SET settled = max(settled, ?) WHERE id = ?", (study.revision, study.id))

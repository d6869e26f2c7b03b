"""Objects into the index and out of it. Every function is part of its caller's transaction (`tables.transaction`).

Nothing is ever overwritten. An object that contradicts what is there is told to the caller, who quarantines it: see `Conflict`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from enum import StrEnum

from medmesh.archive.header import Entry
from medmesh.archive.tables import now_ms


class Conflict(StrEnum):
    """Why an object cannot be where its header says."""

    KNOWN = "known"
    """The instance is there, from another object: whether both say the same is for the caller to know."""
    SERIES = "series"
    """The instance is there, in another series."""
    STUDY = "study"
    """Its series is there, in another study."""
    PATIENT = "patient"
    """Its study is there, of another patient."""


def put(connection: sqlite3.Connection, scope: int, object_id: int, entry: Entry, at: int | None = None) -> Conflict | None:
    """Index the object in row `object_id`; `at` is in ms since 1970. None when it was done; nothing was when there is a conflict."""
    at = now_ms() if at is None else at
    execute = connection.execute
    known = execute(
        "SELECT series.uid FROM instances JOIN series ON series.id = instances.series WHERE instances.scope = ? AND instances.uid = ?",
        (scope, entry.sop),
    ).fetchone()
    if known is not None:
        return Conflict.KNOWN if known[0] == entry.series else Conflict.SERIES
    study = execute("SELECT id, patient_id, modalities FROM studies WHERE scope = ? AND uid = ?", (scope, entry.study)).fetchone()
    series = execute("SELECT id, study FROM series WHERE scope = ? AND uid = ?", (scope, entry.series)).fetchone()
    if series is not None and (study is None or series[1] != study[0]):
        return Conflict.STUDY
    if study is not None and study[1] != entry.patient_id:
        return Conflict.PATIENT
    study_id = study[0] if study is not None else _new_study(connection, scope, entry, at)
    series_id = series[0] if series is not None else _new_series(connection, scope, study_id, entry)
    instance = execute(
        "INSERT INTO instances (scope, study, series, uid, object, class, modality, number, syntax, frames, pixels, brief)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(scope, study_id, series_id, entry.sop, object_id, entry.sop_class, entry.modality, entry.number, entry.syntax),
            *(entry.frames, entry.pixels, entry.instance_brief),
        ),
    ).lastrowid
    execute("INSERT INTO headers (instance, json) VALUES (?, ?)", (instance, entry.packed()))
    execute("UPDATE series SET instances = instances + 1 WHERE id = ?", (series_id,))
    execute(
        "UPDATE studies SET instances = instances + 1, series = series + ?, changed = max(changed, ?), revision = revision + 1"
        " WHERE id = ?",
        (series is None, at, study_id),
    )
    if series is None:
        _modalities(connection, study_id)
    return None


def _new_study(connection: sqlite3.Connection, scope: int, entry: Entry, at: int) -> int:
    made = connection.execute(
        "INSERT INTO studies (scope, uid, patient_id, issuer, accession, study_id, date, time, changed, brief)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            scope,
            entry.study,
            entry.patient_id,
            entry.issuer,
            entry.accession,
            entry.study_id,
            entry.date,
            entry.time,
            at,
            entry.study_brief,
        ),
    ).lastrowid
    assert made is not None
    rows = [(scope, *key, made) for key in entry.names]
    connection.executemany("INSERT OR IGNORE INTO names (scope, tag, kind, key, study) VALUES (?, ?, ?, ?, ?)", rows)
    return made


def _new_series(connection: sqlite3.Connection, scope: int, study: int, entry: Entry) -> int:
    made = connection.execute(
        "INSERT INTO series (scope, study, uid, modality, number, date, time, brief) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (scope, study, entry.series, entry.modality, entry.series_number, entry.step_date, entry.step_time, entry.series_brief),
    ).lastrowid
    assert made is not None
    return made


def remove(connection: sqlite3.Connection, objects: Iterable[int], at: int | None = None) -> int:
    """Take these objects' instances out, and what nothing is left of; the objects' own rows stay. How many instances there were."""
    at, gone = now_ms() if at is None else at, 0
    for object_id in objects:
        row = connection.execute("DELETE FROM instances WHERE object = ? RETURNING series, study", (object_id,)).fetchone()
        if row is None:
            continue
        gone += 1
        series, study = row
        connection.execute("UPDATE series SET instances = instances - 1 WHERE id = ?", (series,))
        emptied = connection.execute("DELETE FROM series WHERE id = ? AND instances = 0", (series,)).rowcount
        connection.execute(
            "UPDATE studies SET instances = instances - 1, series = series - ?, changed = ?, revision = revision + 1 WHERE id = ?",
            (emptied, at, study),
        )
        if not connection.execute("DELETE FROM studies WHERE id = ? AND instances = 0", (study,)).rowcount and emptied:
            _modalities(connection, study)
    return gone


def _modalities(connection: sqlite3.Connection, study: int) -> None:
    connection.execute(
        "UPDATE studies SET modalities = coalesce((SELECT '\\' || group_concat(modality, '\\') || '\\' FROM"
        " (SELECT DISTINCT modality FROM series WHERE study = studies.id AND modality <> '' ORDER BY modality)), '') WHERE id = ?",
        (study,),
    )


def objects_of_patient(connection: sqlite3.Connection, patient_id: str) -> list[int]:
    """The objects that are indexed of a patient, in every scope."""
    wanted = "SELECT instances.object FROM instances JOIN studies ON studies.id = instances.study WHERE studies.patient_id = ?"
    return [int(row[0]) for row in connection.execute(wanted, (patient_id,))]

"""The index of a hospital's archive of DICOM objects: one SQLite file beside the objects, opened by several processes at once.

    <folder>/index.db     this: which objects there are, their state, and the header of each as it was when it came in
    <folder>/objects/     the objects, named by their SHA-256, encrypted

An *object* is what arrived, a file by its SHA-256, in whatever state it is. An *instance* is an object that is indexed: it has a place
in a series of a study and answers queries. Both belong to a *scope*: one realm of one project. In the realm `original` are the hospital's
own objects with their patients' names, for its own people only; in `clean` the de-identified ones, which a project sees.

Whoever writes begins with `transaction`, which takes the write lock at once: two processes wait for each other instead of failing half way.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

from medmesh.errors import Problem
from medmesh.store.wal import write_ahead

Realm = Literal["original", "clean"]
VERSION = 3
BUSY_SECONDS = 30.0
"""How long a transaction waits for another's."""

# Names of people are in `names`, a row for each component group (`whole`) and each word of it, folded (`medmesh.archive.names`): what
# is exact, begins with, or is fuzzy is then found by an index. `brief` is what a query answers by default, as DICOM JSON without braces,
# so that an answer is put together from stored text. `headers` are apart: a scan over instances does not read them.
SCHEMA = """
CREATE TABLE scopes (
  id INTEGER PRIMARY KEY, project TEXT NOT NULL, realm TEXT NOT NULL CHECK (realm IN ('original', 'clean')), UNIQUE (project, realm)
) STRICT;
CREATE TABLE objects (
  id INTEGER PRIMARY KEY, scope INTEGER NOT NULL REFERENCES scopes (id),
  sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
  digest TEXT NOT NULL DEFAULT '',        -- of the data set without group 0002: equal for one object in two files
  state TEXT NOT NULL,                    -- received, cleaning, cleaned, quarantined
  stage TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
  source INTEGER REFERENCES objects (id) ON DELETE SET NULL,     -- of a clean object: its original
  called TEXT NOT NULL DEFAULT '', calling TEXT NOT NULL DEFAULT '', address TEXT NOT NULL DEFAULT '',
  syntax TEXT NOT NULL DEFAULT '', class TEXT NOT NULL DEFAULT '', sop TEXT NOT NULL DEFAULT '',
  series TEXT NOT NULL DEFAULT '', study TEXT NOT NULL DEFAULT '',
  attempts INTEGER NOT NULL DEFAULT 0,
  at INTEGER NOT NULL,                    -- ms since 1970
  UNIQUE (scope, sha256)
) STRICT;
CREATE INDEX objects_by_state ON objects (state, id);
CREATE INDEX objects_by_sop ON objects (scope, sop);
CREATE INDEX objects_by_study ON objects (scope, study, state);
CREATE INDEX objects_by_source ON objects (source) WHERE source IS NOT NULL;
CREATE TABLE studies (
  id INTEGER PRIMARY KEY, scope INTEGER NOT NULL REFERENCES scopes (id), uid TEXT NOT NULL,
  patient_id TEXT NOT NULL, issuer TEXT NOT NULL, accession TEXT NOT NULL, study_id TEXT NOT NULL,
  date TEXT NOT NULL, time TEXT NOT NULL,  -- YYYYMMDD, HHMMSS.FFFFFF; empty when the header has none
  modalities TEXT NOT NULL DEFAULT '',     -- \\CT\\MR\\
  series INTEGER NOT NULL DEFAULT 0, instances INTEGER NOT NULL DEFAULT 0,
  changed INTEGER NOT NULL,                -- ms since 1970, when the last instance came or went
  revision INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0,    -- how often it changed, and up to which change it was told
  brief TEXT NOT NULL,
  UNIQUE (scope, uid)
) STRICT;
CREATE INDEX studies_by_patient ON studies (scope, patient_id);
CREATE INDEX studies_by_date ON studies (scope, date, time);
CREATE INDEX studies_by_accession ON studies (scope, accession) WHERE accession <> '';
CREATE INDEX studies_unsettled ON studies (changed) WHERE revision > settled;
CREATE TABLE series (
  id INTEGER PRIMARY KEY, scope INTEGER NOT NULL, study INTEGER NOT NULL REFERENCES studies (id), uid TEXT NOT NULL,
  modality TEXT NOT NULL, number INTEGER, date TEXT NOT NULL, time TEXT NOT NULL,  -- of the performed procedure step
  instances INTEGER NOT NULL DEFAULT 0,
  brief TEXT NOT NULL,
  UNIQUE (scope, uid)
) STRICT;
CREATE INDEX series_by_study ON series (study, modality);
CREATE INDEX series_by_modality ON series (scope, modality);
CREATE TABLE instances (
  id INTEGER PRIMARY KEY, scope INTEGER NOT NULL, study INTEGER NOT NULL REFERENCES studies (id),
  series INTEGER NOT NULL REFERENCES series (id), uid TEXT NOT NULL,
  object INTEGER NOT NULL UNIQUE REFERENCES objects (id),
  class TEXT NOT NULL, modality TEXT NOT NULL, number INTEGER, syntax TEXT NOT NULL, frames INTEGER NOT NULL,
  pixels INTEGER NOT NULL,                 -- where the value of the pixel data begins in the file; 0 when there is none
  brief TEXT NOT NULL,
  UNIQUE (scope, uid)
) STRICT;
CREATE INDEX instances_by_study ON instances (study);
CREATE INDEX instances_by_series ON instances (series);
CREATE INDEX instances_by_modality ON instances (scope, modality);
CREATE TABLE headers (
  instance INTEGER PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
  json BLOB NOT NULL                       -- DICOM JSON (PS3.18 F) without bulk, deflated
) STRICT;
CREATE TABLE names (
  scope INTEGER NOT NULL, tag TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('whole', 'word')), key TEXT NOT NULL,
  study INTEGER NOT NULL REFERENCES studies (id) ON DELETE CASCADE,
  PRIMARY KEY (scope, tag, kind, key, study)
) STRICT, WITHOUT ROWID;
CREATE INDEX names_by_study ON names (study);
-- What the node has yet to put on record, written with the change itself and taken over by id (`medmesh.archive.records`).
CREATE TABLE records (id TEXT PRIMARY KEY, body TEXT NOT NULL, open INTEGER NOT NULL DEFAULT 0) STRICT;
"""
# Where the bytes of an object lie that are not, or were not always, in `objects/` (`medmesh.archive.tiers`); and the mark of the cold tier.
_TIERS = (
    """CREATE TABLE tiers (
  sha256 TEXT PRIMARY KEY, state TEXT NOT NULL,
  name TEXT NOT NULL DEFAULT '', seal TEXT NOT NULL DEFAULT '',  -- the body's in the cold tier, and the SHA-256 of its sealed bytes
  bytes INTEGER NOT NULL,                 -- of the object
  at INTEGER NOT NULL                     -- ms since 1970, when the state began
) STRICT, WITHOUT ROWID""",
    "CREATE INDEX tiers_by_state ON tiers (state, at)",
    "CREATE INDEX objects_by_content ON objects (sha256)",
    "CREATE TABLE cold_tier (mark TEXT NOT NULL) STRICT",
)
CHANGES = {2: ("ALTER TABLE records ADD COLUMN open INTEGER NOT NULL DEFAULT 0",), 3: _TIERS}
"""What brings an index of the version before to each version."""


def open_archive(folder: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection to the index in `folder`, which is made when it is not there. A connection is for one thread at a time; several may
    be open, in several processes. Raises `Problem` (`archive.newer`) for an index of a later release."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "index.db"
    path.touch(mode=0o600, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        write_ahead(connection, BUSY_SECONDS)
        for pragma in (
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
            "cache_size=-32768",
            "mmap_size=268435456",
        ):
            connection.execute(f"PRAGMA {pragma}")
        if _version(connection) != VERSION:
            _prepare(connection, path)
        if read_only:
            connection.execute("PRAGMA query_only=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    with transaction(connection):
        found = _version(connection)  # another process may have been faster
        if found > VERSION:
            raise Problem("archive.newer", path=path)
        for statement in _statements() if found == 0 else [one for to in range(found + 1, VERSION + 1) for one in CHANGES[to]]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={VERSION}")


@lru_cache(1)
def _statements() -> tuple[str, ...]:
    """`executescript` would commit what is open."""
    found, held = [], ""
    for line in (SCHEMA + ";\n".join((*_TIERS, ""))).splitlines():
        held += line + "\n"
        if sqlite3.complete_statement(held):
            found.append(held)
            held = ""
    return tuple(found)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All of the block or nothing of it; on the disk when it ends."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def scope(connection: sqlite3.Connection, project: str, realm: Realm) -> int:
    """The number of a project's realm, for who writes; made when it is new."""
    found = known_scope(connection, project, realm)
    if found is not None:
        return found
    connection.execute("INSERT INTO scopes (project, realm) VALUES (?, ?) ON CONFLICT DO NOTHING", (project, realm))
    made = known_scope(connection, project, realm)
    assert made is not None
    return made


def known_scope(connection: sqlite3.Connection, project: str, realm: Realm) -> int | None:
    """The same for who reads; None where nothing came yet."""
    row = connection.execute("SELECT id FROM scopes WHERE project = ? AND realm = ?", (project, realm)).fetchone()
    return None if row is None else int(row[0])


def now_ms() -> int:
    """The time as rows have it: ms since 1970."""
    return time.time_ns() // 1_000_000

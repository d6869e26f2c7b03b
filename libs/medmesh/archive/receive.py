"""Objects that arrive, over whatever way: streamed to the disk, judged by their structure, committed, and only then acknowledged.

`Receiver.begin` gives an `Arrival` to write an object into; `finish` keeps it. Who has several seals each as it ends and keeps them
together: they wait for the disk once. Rows of all that are done at the same time, in whatever associations or requests of this process, go
in one transaction (`committer`). What cannot be understood is kept, too: in quarantine, with the stage and the reason, and its sender is
told that it failed. What was refused for want of room is not kept.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from medmesh.archive import meta, records
from medmesh.archive.committer import Committer
from medmesh.archive.objects import Objects
from medmesh.archive.records import Growing
from medmesh.archive.scan import PREFIX, Malformed, scan
from medmesh.archive.tables import now_ms, open_archive, scope
from medmesh.errors import Problem
from medmesh.store.objects.envelope import Rejoined, Wrapping
from medmesh.store.objects.incoming import Incoming
from medmesh.telemetry import log

T = TypeVar("T")
DISK_THREADS = 8
"""That wait for the disk, where several objects are kept together."""
RESERVE = 2 * 2**30
"""Bytes of the disk that stay free: below, nothing more is taken."""
BACKLOG = 200_000
"""Objects that may wait for the pipeline: above, nothing more is taken."""

STATUS = {
    "": 0x0000,
    "full": 0xA700, "backlog": 0xA700, "busy": 0xA700, "stopping": 0xA700,
    "other_object": 0xA900, "other_study": 0xA900,
    "truncated": 0xC000, "structure": 0xC000, "depth": 0xC000, "no_uid": 0xC000, "hostile_uid": 0xC000, "not_dicom": 0xC000,
    "empty": 0xC000,
}  # fmt: skip
"""How a sender is told of each reason: C-STORE (PS3.4 table B.2-1) and STOW-RS (PS3.18 table 10.5.3-2) share these numbers."""
WORDS = {
    "full": "out of space, come again later", "backlog": "too much waits, come again later", "busy": "the index is busy, come again later",
    "stopping": "shutting down, come again later",
    "other_object": "the data set is not of the announced SOP class and instance",
    "other_study": "the object is not of the study it was sent to",
    "truncated": "the data set ends early", "structure": "the data set cannot be read", "depth": "sequences are nested too deep",
    "no_uid": "SOP class or instance UID is missing", "hostile_uid": "a UID is none", "not_dicom": "not a DICOM file",
    "empty": "no data set",
}  # fmt: skip
_UID_LETTERS = frozenset("0123456789.")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an object comes from and for which project it is."""

    project: str
    called: str = ""
    calling: str = ""
    address: str = ""
    study: str = ""
    """The only study it may be of; any, when it is empty."""
    record: Growing | None = None
    """Of the request it comes with; it counts the object (`stored`, `known` or `failed`) in the transaction that keeps it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an object. `reason` is one of `STATUS`, empty for success; `known` when the very same was there already."""

    sha256: str = ""
    size: int = 0
    sop_class: str = ""
    sop: str = ""
    study: str = ""
    series: str = ""
    reason: str = ""
    known: bool = False
    id: int = 0
    """Of its row; 0 when it was not kept."""

    @property
    def status(self) -> int:
        """As DIMSE and STOW-RS tell it."""
        return STATUS[self.reason]


@dataclass(frozen=True, slots=True)
class Sealed:
    """An object that is whole and judged, and that `Receiver.keep` has yet to keep."""

    origin: Origin
    outcome: Outcome
    digest: str = ""
    syntax: str = ""
    incoming: Incoming | None = None
    """Its bytes on their way to the disk; None for what is known, and for what is refused."""


class Arrival:
    """One object. Write it, then `finish` (or `seal`); `abandon` when it ends before its end. Of the thread that began it."""

    def __init__(self, receiver: Receiver, origin: Origin, announced: tuple[str, str, str] | None) -> None:
        self._receiver = receiver
        self._origin = origin
        self._announced = announced
        self._incoming: Incoming | None = None
        self._digest = hashlib.sha256()
        self._front = b""
        self._head = bytearray()
        self._ahead = bytearray()
        self._size = 0
        self._reason = receiver.refuses()
        self._late = ""
        """A reason to quarantine what is kept all the same."""
        if announced is not None and not self._reason:
            if not all(_is_uid(one) for one in announced):
                self._late = "hostile_uid"
                self._announced = announced = ("", "", announced[2])
            self._begin(meta.beginning(*announced))

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes: of the data set when class, instance and syntax were announced, else of a file. Raises nothing: see `finish`."""
        if self._reason:
            return
        if self._announced is None:
            self._ahead += data
            self._begin_file()
        else:
            self._data(data)

    def finish(self) -> Outcome:
        """Judge it and keep it. Blocks until that is on the disk. Raises nothing that is the object's own fault."""
        return self._receiver.keep([self.seal()])[0]

    def seal(self) -> Sealed:
        """It is whole: judge it, and begin to write what is to be kept. Raises nothing that is the object's own fault."""
        try:
            return self._seal()
        except (Problem, OSError) as error:
            return Sealed(self._origin, _unwritable(error))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Nothing of it stays; after `finish` it does nothing."""
        if self._incoming is not None:
            self._incoming.discard()
            self._incoming = None

    @property
    def beginning(self) -> Rejoined:
        """The file as it is kept, as far as it is in memory: its meta information and `PREFIX` bytes of the data set."""
        return Rejoined(iter((self._front, bytes(self._head))))

    def _begin_file(self) -> None:
        """The file meta information, once all of it is there."""
        if len(self._ahead) < 144:
            return
        if self._ahead[128:140] != b"DICM\2\0\0\0UL\4\0":
            self._reason = "not_dicom"
            return
        end = 144 + int.from_bytes(self._ahead[140:144], "little")
        if end > PREFIX:
            self._reason = "structure"
        elif len(self._ahead) >= end:
            found = meta.read(self._ahead)
            if found is None or not all(_is_uid(one) for one in found[:3]):
                self._reason = "structure" if found is None else "hostile_uid"
                return
            self._announced = found[:3]
            self._begin(bytes(self._ahead[:end]))
            self._data(memoryview(self._ahead)[end:])

    def _begin(self, front: bytes) -> None:
        self._front = front
        self._store(front)

    def _data(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._size += len(data)
        if len(self._head) < PREFIX:
            self._head += data[: PREFIX - len(self._head)]
        self._store(data)

    def _store(self, data: bytes | memoryview) -> None:
        try:
            if self._incoming is None:
                self._incoming = self._receiver.objects.incoming()
            self._incoming.write(data)
        except (Problem, OSError) as error:
            self._reason = _unwritable(error).reason
            self.abandon()

    def _seal(self) -> Sealed:
        if self._announced is None and not self._reason:
            self._reason = "not_dicom"
        if self._reason or self._incoming is None or self._announced is None:
            return Sealed(self._origin, Outcome(reason=self._reason or "not_dicom"))
        sop_class, sop, syntax = self._announced
        study, series, reason = "", "", self._late
        try:
            if not self._size:
                raise Malformed("empty")
            head = scan(self._head, self._size, syntax)
            study, series = (one if _is_uid(one) else "" for one in (head.study, head.series))
            if reason:
                pass
            elif head.whole and not (head.sop_class and head.sop):
                reason = "no_uid"
            elif (head.sop_class and head.sop_class != sop_class) or (head.sop and head.sop != sop):
                reason = "other_object"
            elif head.whole and self._origin.study not in ("", study):
                reason = "other_study"
        except Malformed as malformed:
            reason = malformed.reason
        outcome = Outcome(self._incoming.sha256, self._incoming.size, sop_class, sop, study, series, reason)
        sealed = Sealed(self._origin, outcome, self._digest.hexdigest(), syntax)
        if self._receiver.knows(self._origin.project, outcome.sha256):
            return sealed
        self._incoming.place()
        incoming, self._incoming = self._incoming, None
        return replace(sealed, incoming=incoming)


class Receiver:
    """Takes objects into the archive in `folder`; one a process. Call `close` at the end, or use it as a context."""

    def __init__(self, folder: Path, wrapping: Wrapping, *, reserve: int = RESERVE, backlog: int = BACKLOG) -> None:
        self.objects = Objects(folder, wrapping)
        self._reserve = reserve
        self._backlog = backlog
        self._committer = Committer(open_archive(folder))
        self._reading = open_archive(folder, read_only=True)
        self._disk = ThreadPoolExecutor(DISK_THREADS, "disk")
        self._lock = threading.Lock()
        self._waiting = self._free = 0
        self._counted = float("-inf")
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what waits, and end."""
        self._closing = True
        self._committer.close()
        self._disk.shutdown()
        self._reading.close()

    def begin(self, origin: Origin, sop_class: str, sop: str, syntax: str) -> Arrival:
        """An object whose data set comes without file meta information, as over an association."""
        return Arrival(self, origin, (sop_class, sop, syntax))

    def begin_file(self, origin: Origin) -> Arrival:
        """An object that comes as a file (PS3.10); it is kept byte by byte."""
        return Arrival(self, origin, None)

    def refuses(self) -> str:
        """Why nothing is taken just now; empty when something is."""
        if self._closing:
            return "stopping"
        now = time.monotonic()
        if now - self._counted > 1:  # the reserve is more than a second brings; a disk that is full is told by writing, too
            self._free = self.objects.free()
            with self._lock:
                counted = "SELECT count(*) FROM (SELECT 1 FROM objects WHERE state = 'received' LIMIT ?)"
                self._waiting = int(self._reading.execute(counted, (self._backlog + 1,)).fetchone()[0])
            self._counted = now
        if self._free < self._reserve:
            return "full"
        return "backlog" if self._waiting > self._backlog else ""

    def knows(self, project: str, sha256: str) -> bool:
        """Whether this very object is the project's already."""
        wanted = "SELECT 1 FROM objects o JOIN scopes s ON s.id = o.scope WHERE s.project = ? AND s.realm = 'original' AND o.sha256 = ?"
        with self._lock:
            return self._reading.execute(wanted, (project, sha256)).fetchone() is not None

    def keep(self, sealed: Sequence[Sealed]) -> list[Outcome]:
        """Wait until these are on the disk, and then their rows, all in one transaction; what became of each."""
        written = [_written(one) for one in sealed] if len(sealed) == 1 else list(self._disk.map(_written, sealed))

        def commit(connection: sqlite3.Connection) -> list[Outcome]:
            outcomes = [self._insert(connection, one) if one.outcome.sha256 else one.outcome for one in written]
            _count(connection, written, outcomes)
            return outcomes

        try:
            return self.commit(commit)
        except sqlite3.Error as error:
            log("archive.uncommitted", level=40, error=error)
            return [Outcome(reason="busy") if one.outcome.sha256 else one.outcome for one in written]

    def commit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run this on the index, in a transaction that it shares with others; see `Committer`."""
        return self._committer.run(work)

    def _insert(self, connection: sqlite3.Connection, sealed: Sealed) -> Outcome:
        origin, found = sealed.origin, sealed.outcome
        place = scope(connection, origin.project, "original")
        values = {
            "scope": place, "sha256": found.sha256, "bytes": found.size, "digest": sealed.digest,
            "state": "quarantined" if found.reason else "received",
            "stage": "receive" if found.reason else "", "reason": found.reason,
            "called": origin.called, "calling": origin.calling, "address": origin.address,
            "syntax": sealed.syntax, "class": found.sop_class, "sop": found.sop, "series": found.series, "study": found.study,
            "at": now_ms(),
        }  # fmt: skip
        row = connection.execute(_INSERT, values).fetchone()
        if row is not None and sealed.incoming is not None and self.objects.has(found.sha256):
            # Its bytes are here again, if it was cold: see `tiers`, which looks before it believes that.
            moved = "UPDATE tiers SET state = 'clearing' WHERE sha256 = ? AND state IN ('copying', 'freeing', 'cold', 'recalling')"
            connection.execute(moved, (found.sha256,))
            return replace(found, id=int(row[0]))
        if row is not None:  # it was known, or was there, a moment ago and was dropped since
            connection.execute("DELETE FROM objects WHERE id = ?", row)
            return Outcome(reason="busy")
        known = connection.execute("SELECT id FROM objects WHERE scope = ? AND sha256 = ?", (place, found.sha256)).fetchone()
        return replace(found, id=int(known[0]), known=True)


def _written(sealed: Sealed) -> Sealed:
    """Once it is on the disk; what cannot be is refused."""
    if sealed.incoming is None:
        return sealed
    try:
        sealed.incoming.wait()
    except (Problem, OSError) as error:
        return Sealed(sealed.origin, _unwritable(error))
    return sealed


def _unwritable(error: Exception) -> Outcome:
    log("archive.unwritable", level=40, error=error)
    return Outcome(reason="full")


def _count(connection: sqlite3.Connection, sealed: Sequence[Sealed], outcomes: Sequence[Outcome]) -> None:
    """On the records of the requests they came with."""
    counted: dict[str, tuple[Growing, Counter[str]]] = {}
    for one, outcome in zip(sealed, outcomes, strict=True):
        if one.origin.record is not None and outcome.id:
            word = "failed" if outcome.reason else "known" if outcome.known else "stored"
            counted.setdefault(one.origin.record.id, (one.origin.record, Counter()))[1][word] += 1
    for record, words in counted.values():
        records.grow(connection, record, words)


_COLUMNS = (
    "scope", "sha256", "bytes", "digest", "state", "stage", "reason", "called", "calling", "address", "syntax", "class", "sop", "series",
    "study", "at",
)  # fmt: skip
_INSERT = (  # of names of ours alone
    f"INSERT INTO objects ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + one for one in _COLUMNS)})"  # noqa: S608
    " ON CONFLICT (scope, sha256) DO NOTHING RETURNING id"
)


def _is_uid(value: str) -> bool:
    return 0 < len(value) <= 64 and set(value) <= _UID_LETTERS

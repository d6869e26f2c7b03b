"""The pipeline: received objects are read, indexed, de-identified, verified, checked and become items of their data set
once their study is settled.

Two stores are written, the archive's index and the node's own, in this order, and every step may be done twice:

    1  archive: the originals' places in the index; what contradicts it is quarantined
    2  node:    patients' keys, de-identified bytes, items that wait (`storing.store`)
    3  archive: the de-identified objects' rows and places; the originals are through

What is judged of series as wholes, and told of studies, comes when nothing more comes for them, and what waited is used then (`settling`).
"""

from __future__ import annotations

import hashlib
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from types import FrameType

from medmesh.archive import header, index, states
from medmesh.archive.header import Entry
from medmesh.archive.index import Conflict
from medmesh.archive.objects import Objects
from medmesh.archive.same import same
from medmesh.archive.states import Row
from medmesh.archive.tables import scope, transaction
from medmesh.errors import Problem
from medmesh.telemetry import log
from medmesh_edge import intake, storing
from medmesh_edge.intake import How, Prepared
from medmesh_edge.ports import Site
from medmesh_edge.reception import Accept

BATCH = 16
WITHDRAWN = "intake.withdrawn"
SECONDS = 60.0
"""How long one object may take."""
STAGES = {
    "imaging.burned_in": "deidentify",
    "imaging.encapsulated": "deidentify",
    "imaging.face_alone": "deidentify",
    "intake.residual": "verify",
}
"""Where an object stopped, by the code of the problem; at `read` else."""
CONFLICTS = {one: "patient_conflict" if one == Conflict.PATIENT else "uid_conflict" for one in Conflict}
"""What is there already has the object's UID, or its study's, and is something else."""


@dataclass(slots=True)
class Stopped:
    """Where an object went no further, and why."""

    stage: str
    reason: str


@dataclass(slots=True)
class Made:
    """What was made of an object, before anything of it is written. `entry` is the original's, None where it cannot be indexed."""

    row: Row
    entry: Entry | None
    prepared: Prepared | None
    clean: Entry | None
    stopped: Stopped | None


class TooSlow(BaseException):
    """An object took longer than it may; no handler for its defects catches this."""


def make(data: bytes, row: Row, key: bytes, how: How) -> Made:
    """Read, de-identify, verify and check the file of one object. Raises nothing that is the object's own fault."""
    entry = None
    try:
        with _limited(SECONDS):
            entry = header.read(BytesIO(data))
            prepared = intake.prepare(data, key, *how)
            if prepared.quality:
                return Made(row, entry, None, None, Stopped("quality", ",".join(prepared.quality)))
            return Made(row, entry, prepared, header.read(BytesIO(prepared.data)), None)
    except Problem as problem:
        stage = "index" if problem.code == "archive.uid" else STAGES.get(problem.code, "read")
        return Made(row, entry, None, None, Stopped(stage, problem.code))
    except TooSlow:
        return Made(row, entry, None, None, Stopped("read", "too_slow"))
    except Exception as error:  # a defect of ours, found by a strange file: it costs this object
        log("dicom.clean_failed", level=40, error=error)
        return Made(row, entry, None, None, Stopped("read", f"failed:{type(error).__name__}"))


class Cleaner:
    """One worker of several: `share` is its number and how many there are. `entry` tells what the hospital's file says of a data set and
    the title it was sent to."""

    def __init__(
        self,
        site: Site,
        connection: sqlite3.Connection,
        objects: Objects,
        key: bytes,
        share: tuple[int, int],
        entry: Callable[[str, str], Accept | None],
    ) -> None:
        self._site = site
        self._connection = connection
        self._objects = objects
        self._key = key
        self._entry = entry
        self._worker, self._of = share

    async def step(self) -> bool:
        """Take the next objects through; whether there were any. Raises `Problem` for the hospital's own files, and nothing is lost."""
        if not self._waiting():
            return False
        with transaction(self._connection):
            rows = states.claim(self._connection, self._worker, self._of, BATCH)
            for row in [one for one in rows if one.attempts > states.ATTEMPTS]:
                states.quarantine(self._connection, row.id, "read", "crashed")
                rows.remove(row)
        try:
            manners = {sent: self._how(*sent) for sent in {(row.project, row.called) for row in rows}}
        except Problem:  # of the hospital's own files: no object's fault
            with transaction(self._connection):
                states.give_back(self._connection, [row.id for row in rows])
            raise
        made = [self._made(row, manners[row.project, row.called]) for row in rows]
        with transaction(self._connection):
            for one in made:
                self._index(one)
        ready = [one for one in made if one.prepared is not None]
        for project, called in sorted({(one.row.project, one.row.called) for one in ready}):
            try:
                await self._keep(project, called, [one for one in ready if (one.row.project, one.row.called) == (project, called)])
            except Problem:  # of the hospital's own files: no object's fault
                with transaction(self._connection):
                    states.give_back(self._connection, [row.id for row in rows])
                raise
        with transaction(self._connection):
            gone = [one.row.sha256 for one in made if self._through(one)]
        states.erase(self._connection, self._objects, gone)
        return True

    def _waiting(self) -> bool:
        """Without the write lock, which receivers want."""
        wanted = "SELECT 1 FROM objects WHERE state = 'received' AND id % ? = ? LIMIT 1"
        return self._connection.execute(wanted, (self._of, self._worker)).fetchone() is not None

    def _how(self, project: str, called: str) -> How:
        """How the hospital has these de-identified. Raises `Problem`."""
        entry = self._entry(project, called)
        if entry is None:
            return intake.how(self._site, project)
        return intake.how(self._site, project, entry.deidentification, volumes=entry.volumes)

    def _made(self, row: Row, how: How) -> Made:
        try:
            data = self._objects.read(row.sha256)
        except Problem as problem:
            return Made(row, None, None, None, Stopped("read", problem.code))
        return make(data, row, self._key, how)

    def _index(self, made: Made) -> None:
        """The original's place, also where it was not fit for the data set: the hospital's own people find it."""
        row, entry = made.row, made.entry
        if entry is None or self._connection.execute("SELECT 1 FROM instances WHERE object = ?", (row.id,)).fetchone():
            return
        conflict = index.put(self._connection, row.scope, row.id, entry)
        if conflict is None:
            return
        made.prepared = None
        if conflict == Conflict.KNOWN and self._says_the_same(row, entry.sop):
            made.stopped = Stopped("", "duplicate")
        else:
            made.stopped = Stopped("index", CONFLICTS[conflict])

    def _says_the_same(self, row: Row, sop: str) -> bool:
        wanted = "SELECT o.sha256, o.digest FROM instances i JOIN objects o ON o.id = i.object WHERE i.scope = ? AND i.uid = ?"
        sha256, digest = self._connection.execute(wanted, (row.scope, sop)).fetchone()
        if digest == row.digest:
            return True
        try:
            return same(self._objects.read(sha256), self._objects.read(row.sha256))
        except Problem:
            return False

    async def _keep(self, project: str, called: str, made: Sequence[Made]) -> None:
        prepared = [("", one.prepared) for one in made if one.prepared is not None]
        entry = self._entry(project, called)
        number = entry.ethics if entry is not None else ""
        try:
            refused = await storing.store(self._site, project, prepared, {}, self._key, intake.Outcome(), ethics=number, settled=False)
        except Problem as problem:
            if not problem.code.startswith("ethics."):
                raise
            refused = {one.item: problem.code for _, one in prepared}
        for one in made:
            if one.prepared is not None and one.prepared.item in refused:
                one.stopped = Stopped("consent", refused[one.prepared.item])

    def _through(self, made: Made) -> bool:
        """Whether nothing of it stays: the patient was forgotten."""
        row, connection = made.row, self._connection
        if made.stopped is not None:
            if made.stopped.reason == WITHDRAWN:
                states.forget(connection, (row.id,))
                return True
            if made.stopped.stage:
                states.quarantine(connection, row.id, made.stopped.stage, made.stopped.reason)
            else:
                states.cleaned(connection, row.id, made.stopped.reason)
            return False
        assert made.prepared is not None
        assert made.clean is not None
        sha256, size = hashlib.sha256(made.prepared.data).hexdigest(), len(made.prepared.data)
        conflict = states.clean_object(connection, scope(connection, row.project, "clean"), row, sha256, size, made.clean)
        if conflict is None:
            states.cleaned(connection, row.id)
        else:
            states.quarantine(connection, row.id, "clean", CONFLICTS[conflict])
        return False


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """The block, or `TooSlow`: for the main thread."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

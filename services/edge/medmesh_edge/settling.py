"""Studies that nothing more comes for: their series are judged as wholes, and they are told of.

Until then their items wait, and nobody uses them. A series that breaks a rule which blocks in its data set (slices are missing) is held
back, object by object, at the stage `series`; what was an item of the data set is none any more. It comes back by itself when the series is
whole, as late slices make it. All of it may be done twice: the node's store first, then the archive, so that a kill between them leaves the
study to be settled again.

Where the hospital says so of a data set (`volumes` in `dicom.toml`), the slices of a series become one item, a volume, when their study is
settled: its geometry is judged whatever the project's rules are, it waits as any other item does, and in the transaction that tells of the
study it takes the slices' place. Slices that come late make it anew.

A study is one record and a new version of its data set, once for each of its revisions, in the transaction from which on its items are
used: those that were judged, and no others that came meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from medmesh.archive import states
from medmesh.archive.query import unpacked
from medmesh.archive.states import Study
from medmesh.archive.tables import transaction
from medmesh.errors import Problem
from medmesh.quality.dicom import GEOMETRY, Slice, broken, slice_of_header, unstackable
from medmesh.quality.rules import OF_SERIES
from medmesh.security.keys import read_secret
from medmesh_edge import intake, patients, storing
from medmesh_edge.intake import Prepared
from medmesh_edge.ports import Site

STAGE = "series"
CONSENT = "consent"
SECONDS = 20.0
"""After so long the rest is left for the next time, so that objects go on through the pipeline."""


@dataclass(slots=True)
class Verdict:
    """What of a study is to be held back (objects by reason), what no longer, what is fit to be used, and what is one volume each."""

    hold: dict[str, list[int]] = field(default_factory=dict)
    release: list[int] = field(default_factory=list)
    fit: list[int] = field(default_factory=list)
    stacks: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Volume:
    """An item made of slices, both by the SHA-256 of their bytes; `object` is None where it is in the data set already."""

    item: str
    object: str | None
    slices: tuple[str, ...]


async def settle(
    site: Site, connection: sqlite3.Connection, seconds: float, volumes: Callable[[str], bool] = lambda dataset: False
) -> bool:
    """Judge and tell of the studies that are complete; whether there were any. `volumes` says of which data sets series are one item.
    Raises `Problem` (`policy.invalid`)."""
    found = states.due(connection, seconds)
    end = time.monotonic() + SECONDS
    for study in found:
        verdict = judge(connection, study, site.policy().blocking(study.project), stacked=volumes(study.project))
        if verdict.release:  # told of once they are through
            with transaction(connection):
                for one in verdict.release:
                    states.release(connection, one)
        else:
            study = await _hold(site, connection, study, verdict.hold, STAGE)
            made = []
            for stack in verdict.stacks:
                study, volume = await _stacked(site, connection, study, stack)
                made += [] if volume is None else [volume]
            await _tell(site, connection, study, verdict.fit, made)
        if time.monotonic() > end:
            break
    if found:
        await storing.erase(site)
    return bool(found)


def judge(connection: sqlite3.Connection, study: Study, blocking: frozenset[str], *, stacked: bool = False) -> Verdict:
    """What the rules say of its series, of the objects that are in the data set or would be but for these rules. With `stacked` each is to
    be a volume, of which no object is held back for another reason."""
    rows = connection.execute(
        "SELECT i.series, i.frames, o.id, CASE WHEN o.state = 'quarantined' AND o.stage <> ? THEN 'elsewhere' ELSE o.state END, h.json"
        " FROM instances i JOIN objects o ON o.id = i.object JOIN headers h ON h.instance = i.id"
        " WHERE i.study = ? AND o.state IN ('cleaned', 'quarantined') ORDER BY i.series, i.id",
        (STAGE, study.id),
    )
    verdict, judged = Verdict(), stacked or bool(blocking & OF_SERIES)
    for _, members in groupby(rows, lambda row: row[0]):
        ids: dict[str, list[int]] = {"cleaned": [], "quarantined": [], "elsewhere": []}
        slices = []
        for _, frames, number, state, packed in members:
            if stacked and frames > 1:  # a volume by itself
                {"cleaned": verdict.fit, "quarantined": verdict.release}.get(state, []).append(number)
                continue
            ids[state].append(number)
            if judged and state != "elsewhere":
                slices.append(_slice(packed))
        if not any(ids.values()):
            continue
        wrong = list(broken(slices, blocking)) if judged else []
        if stacked:
            wrong += [one.code for one in unstackable(slices) if one.code not in wrong]
            wrong += ["part_held"] if ids["elsewhere"] else []
        if wrong:
            if ids["cleaned"]:
                verdict.hold.setdefault(",".join(wrong), []).extend(ids["cleaned"])
            continue
        verdict.release += ids["quarantined"]
        if stacked and ids["cleaned"]:
            verdict.stacks.append(ids["cleaned"])
        else:
            verdict.fit += ids["cleaned"]
    return verdict


def _slice(packed: bytes) -> Slice:
    """Of a header as the index has it: a member a line, of which few are wanted."""
    wanted = [line for line in unpacked(packed).split("\n") if line[1:9] in GEOMETRY]
    return slice_of_header(json.loads(f"{{{','.join(wanted)}}}"))


async def _hold(site: Site, connection: sqlite3.Connection, study: Study, hold: dict[str, list[int]], stage: str) -> Study:
    """Out of the data set, and into quarantine; the study as it is then."""
    every = [one for ids in hold.values() for one in ids]
    if not every:
        return study
    made = _made_of(connection, every)
    await storing.take_out(site, study.project, [sha256 for _, sha256 in made], _volumes(connection, every))
    with transaction(connection):
        states.forget(connection, [number for number, _ in made])
        for reason, ids in hold.items():
            for one in ids:
                states.quarantine(connection, one, stage, reason)
    return replace(study, cleaned=study.cleaned - len(every), quarantined=study.quarantined + len(every))


def _made_of(connection: sqlite3.Connection, originals: Sequence[int]) -> list[tuple[int, str]]:
    """(number, SHA-256) of the clean objects that were made of these."""
    wanted = "SELECT id, sha256 FROM objects WHERE source IN (SELECT value FROM json_each(?))"
    return connection.execute(wanted, (json.dumps(list(originals)),)).fetchall()


_CLEAN = (
    "SELECT DISTINCT s.uid, t.patient_id FROM objects o JOIN instances i ON i.object = o.id JOIN series s ON s.id = i.series"
    " JOIN studies t ON t.id = i.study WHERE o.source IN (SELECT value FROM json_each(?))"
)
"""The series, and the pseudonyms, of what was made of originals."""


def _volumes(connection: sqlite3.Connection, originals: Sequence[int]) -> list[str]:
    """The names of the items that the series of these would be as volumes."""
    from medmesh.importing.cleaning import series_item

    return [series_item(uid) for uid, _ in connection.execute(_CLEAN, (json.dumps(list(originals)),))]


async def _stacked(site: Site, connection: sqlite3.Connection, study: Study, stack: list[int]) -> tuple[Study, Volume | None]:
    """The volume of these slices, which waits now; where it may not be taken in, they are held back and it is none."""
    from medmesh.importing.cleaning import series_item
    from medmesh.importing.cleaning import stacked as packed

    slices = tuple(sha256 for _, sha256 in _made_of(connection, stack))
    ((uid, patient),) = connection.execute(_CLEAN, (json.dumps(stack),)).fetchall()
    item = series_item(uid)
    if await storing.is_whole(site, study.project, item, slices):
        return study, Volume(item, None, slices)
    async with site.unit() as uow:
        keys = await patients.known(uow, site, [patient])
    if patient not in keys:
        return study, None  # forgotten just now: nothing is left of the study
    store, blocking = patients.images(site, keys[patient]), site.policy().blocking(study.project)
    try:
        made = packed([b"".join(store.open(one)) for one in slices], blocking)
        whole = Prepared(made.item, made.patient, made.modality, made.data, made.quality, made.media_type)
        if whole.quality:
            return await _hold(site, connection, study, {",".join(whole.quality): stack}, STAGE), None
        number = await storing.ethics_of(site, study.project, slices)
        key = read_secret(site.layout.site_key).strip()
        given = await storing.store(site, study.project, [("", whole)], {}, key, intake.Outcome(), ethics=number, settled=False)
    except Problem as problem:
        if not problem.code.startswith(("ethics.", "intake.")):
            raise
        return await _hold(site, connection, study, {problem.code: stack}, CONSENT if problem.code.startswith("ethics.") else STAGE), None
    if refused := given.get(whole.item):
        return await _hold(site, connection, study, {refused: stack}, CONSENT), None
    return study, Volume(item, hashlib.sha256(whole.data).hexdigest(), slices)


async def _tell(site: Site, connection: sqlite3.Connection, study: Study, fit: Sequence[int], volumes: Sequence[Volume] = ()) -> None:
    # The node's store first: told there and not yet here, it is told once all the same.
    waiting = [*(sha256 for _, sha256 in _made_of(connection, fit)), *(one.object for one in volumes if one.object is not None)]
    async with site.unit() as uow:
        new = await storing.admit(uow, study.project, waiting)
        for one in volumes:
            new += await storing.compose(uow, study.project, one.item, one.slices)
        untold = await uow.journal.remember("dicom.study", f"{study.project}/{study.id}/{study.revision}", uow.now)
        if untold or new:  # numbers of studies that are gone are given again
            outcome = intake.Outcome(stored=study.cleaned)
            outcome.rejected["dicom.quarantined"] = study.quarantined
            counts = {"revision": study.revision} | ({"volumes": len(volumes)} if volumes else {})
            await intake.complete(uow, site, study.project, outcome, more=counts)
    with transaction(connection):
        states.told(connection, study)

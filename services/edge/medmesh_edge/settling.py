"""Studies that nothing more comes for: their series are judged as wholes, and they are told of.

Until then their items wait, and nobody uses them. A series that breaks a rule which blocks in its data set (slices are missing) is held
back, object by object, at the stage `series`; what was an item of the data set is none any more. It comes back by itself when the series is
whole, as late slices make it. All of it may be done twice: the node's store first, then the archive, so that a kill between them leaves the
study to be settled again.

A study is one record and a new version of its data set, once for each of its revisions, in the transaction from which on its items are
used: those that were judged, and no others that came meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from medmesh.archive import states
from medmesh.archive.query import unpacked
from medmesh.archive.states import Study
from medmesh.archive.tables import transaction
from medmesh.quality.dicom import GEOMETRY, Slice, broken, slice_of_header
from medmesh.quality.rules import OF_SERIES
from medmesh_edge import intake, storing
from medmesh_edge.ports import Site

STAGE = "series"


@dataclass(slots=True)
class Verdict:
    """What of a study is to be held back (objects by reason), what no longer, and what is fit to be used."""

    hold: dict[str, list[int]] = field(default_factory=dict)
    release: list[int] = field(default_factory=list)
    fit: list[int] = field(default_factory=list)


async def settle(site: Site, connection: sqlite3.Connection, seconds: float) -> bool:
    """Judge and tell of the studies that are complete; whether there were any. Raises `Problem` (`policy.invalid`)."""
    found = states.due(connection, seconds)
    for study in found:
        verdict = judge(connection, study, site.policy().blocking(study.project))
        if verdict.release:  # told of once they are through
            with transaction(connection):
                for one in verdict.release:
                    states.release(connection, one)
        else:
            await _tell(site, connection, await _hold(site, connection, study, verdict.hold), verdict.fit)
    return bool(found)


def judge(connection: sqlite3.Connection, study: Study, blocking: frozenset[str]) -> Verdict:
    """What the rules say of its series, of the objects that are in the data set or would be but for these rules."""
    rows = connection.execute(
        "SELECT i.series, o.id, o.state, h.json FROM instances i JOIN objects o ON o.id = i.object JOIN headers h ON h.instance = i.id"
        " WHERE i.study = ? AND (o.state = 'cleaned' OR (o.state = 'quarantined' AND o.stage = ?)) ORDER BY i.series, i.id",
        (study.id, STAGE),
    )
    verdict, judged = Verdict(), bool(blocking & OF_SERIES)
    for _, members in groupby(rows, lambda row: row[0]):
        ids: dict[str, list[int]] = {"cleaned": [], "quarantined": []}
        slices = []
        for _, number, state, packed in members:
            ids[state].append(number)
            if judged:
                slices.append(_slice(packed))
        wrong = broken(slices, blocking) if judged else ()
        if not wrong:
            verdict.release += ids["quarantined"]
            verdict.fit += ids["cleaned"]
        elif ids["cleaned"]:
            verdict.hold.setdefault(",".join(wrong), []).extend(ids["cleaned"])
    return verdict


def _slice(packed: bytes) -> Slice:
    """Of a header as the index has it: a member a line, of which few are wanted."""
    wanted = [line for line in unpacked(packed).split("\n") if line[1:9] in GEOMETRY]
    return slice_of_header(json.loads(f"{{{','.join(wanted)}}}"))


async def _hold(site: Site, connection: sqlite3.Connection, study: Study, hold: dict[str, list[int]]) -> Study:
    """Out of the data set, and into quarantine; the study as it is then."""
    every = [one for ids in hold.values() for one in ids]
    if not every:
        return study
    await storing.take_out(site, study.project, [sha256 for _, sha256 in _made_of(connection, every)])
    with transaction(connection):
        states.forget(connection, [made for made, _ in _made_of(connection, every)])
        for reason, ids in hold.items():
            for one in ids:
                states.quarantine(connection, one, STAGE, reason)
    return replace(study, cleaned=study.cleaned - len(every), quarantined=study.quarantined + len(every))


def _made_of(connection: sqlite3.Connection, originals: Sequence[int]) -> list[tuple[int, str]]:
    """(number, SHA-256) of the clean objects that were made of these."""
    wanted = "SELECT id, sha256 FROM objects WHERE source IN (SELECT value FROM json_each(?))"
    return connection.execute(wanted, (json.dumps(list(originals)),)).fetchall()


async def _tell(site: Site, connection: sqlite3.Connection, study: Study, fit: Sequence[int]) -> None:
    # The node's store first: told there and not yet here, it is told once all the same.
    async with site.unit() as uow:
        new = await storing.admit(uow, study.project, [sha256 for _, sha256 in _made_of(connection, fit)])
        untold = await uow.journal.remember("dicom.study", f"{study.project}/{study.id}/{study.revision}", uow.now)
        if untold or new:  # numbers of studies that are gone are given again
            outcome = intake.Outcome(stored=study.cleaned)
            outcome.rejected["dicom.quarantined"] = study.quarantined
            await intake.complete(uow, site, study.project, outcome, revision=study.revision)
    with transaction(connection):
        states.told(connection, study)

"""Who is who: (assigning authority, local id) becomes a subject under the hospital's key, and subjects that are one person are joined.

A subject never becomes another one: its events stay its own, and a merge says on whose timeline they are shown. So a merge is taken back by
saying so, whatever came in between. Both are rows that only follow one another; sources say merges (HL7 A40, FHIR `Patient.link`), people
of the hospital take them back.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import insert, select

from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import mac, pseudonym, shift_days
from medmesh.store.unit import UnitOfWork
from medmesh.timeline.events import Identity, Merge
from medmesh.timeline.tables import merges

REMEMBERED = 10_000
PEOPLE = "people"
"""The source of a merge or its undoing that a person of the hospital asked for."""


class Subject(NamedTuple):
    """An identity as the timeline has it. `days` is by how many days its times are moved back."""

    subject_id: int
    patient: str
    days: int
    identity: Identity


class Place(NamedTuple):
    """On whose timeline a subject's events are shown, and the days to add to their times there."""

    subject_id: int
    days: int


class Namer:
    """Names identities under the hospital's `key` (at least 16 bytes). `own` are the authorities that give the numbers under which the
    hospital's images come: such a patient has the same pseudonym and the same shift as there. No authority at all is the hospital's own."""

    def __init__(self, key: bytes, own: Iterable[str] = ()) -> None:
        if len(key) < 16:
            raise ValueError("the key has fewer than 16 bytes")
        self.key = key
        self.own = frozenset(one.strip() for one in own)
        self._known: dict[Identity, Subject] = {}

    def subject(self, identity: Identity) -> Subject:
        """The subject of an identity. Raises `Problem` (`timeline.no_identity`) without a local id."""
        if (found := self._known.get(identity)) is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._known[identity] = self._subject(identity)
        return found

    def _subject(self, identity: Identity) -> Subject:
        local_id, authority = identity.local_id.strip(), identity.authority.strip()
        if not local_id:
            raise Problem("timeline.no_identity")
        patient = local_id if not authority or authority in self.own else f"{authority}\x1f{local_id}"
        name = pseudonym(patient, self.key)
        return Subject(subject_of(name, self.key), name, shift_days(patient, self.key), Identity(authority, local_id))

    def keyed(self, purpose: str, *parts: str | bytes) -> str:
        """A hash that nobody without the key can try values against, 64 hexadecimal digits."""
        value = b"\x1f".join(part.encode() if isinstance(part, str) else part for part in parts)
        return mac(self.key, f"timeline.{purpose}", value.hex()).hex()


def subject_of(patient: str, key: bytes) -> int:
    """MEDS's `subject_id` of a pseudonym: positive, 63 bits."""
    return int.from_bytes(mac(key, "subject", patient)[:8], "big") >> 1


def resolve(rows: Iterable[Any]) -> dict[int, Place]:
    """Where the events of merged subjects are shown, from all merges in order; whoever is not in it is shown by themselves."""
    into: dict[int, tuple[int, int]] = {}
    for row in rows:
        if row.undone:
            into.pop(row.loser, None)
        elif row.survivor != row.loser and _end(into, row.survivor)[0] != row.loser:
            into[row.loser] = (row.survivor, row.days)
    return {subject: Place(*_end(into, subject)) for subject in into}


def _end(into: Mapping[int, tuple[int, int]], subject: int) -> tuple[int, int]:
    days = 0
    while (step := into.get(subject)) is not None:
        subject, days = step[0], days + step[1]
    return subject, days


async def places(uow: UnitOfWork[Any]) -> dict[int, Place]:
    """As `resolve`, of all that is known."""
    return resolve(await uow.all(select(merges).order_by(merges.c.n)))


def members(known: Mapping[int, Place], subjects: Iterable[int]) -> dict[int, Place]:
    """The subjects that are the same people as `subjects`, each with where it is shown."""
    roots = {known[one].subject_id if one in known else one for one in subjects}
    found = {root: Place(root, 0) for root in roots}
    return found | {one: place for one, place in known.items() if place.subject_id in roots}


async def merge(uow: UnitOfWork[Any], told: Sequence[Merge], namer: Namer) -> int:
    """Record merges and their undoings; answers how many were new. One told again is none. Raises `Problem`: `timeline.merge_self`,
    `timeline.merge_cycle` for one that would have a person survive in themselves, `timeline.not_merged` for an undoing of nothing."""
    wanted = [(one, namer.keyed("merge", one.source, one.key)) for one in told]
    known: Collection[str] = {
        row.source_key for row in await uow.all(select(merges.c.source_key).where(merges.c.source_key.in_([key for _, key in wanted])))
    }
    into: dict[int, tuple[int, int]] = {}
    for row in await uow.all(select(merges).order_by(merges.c.n)):
        if row.undone:
            into.pop(row.loser, None)
        else:
            into[row.loser] = (row.survivor, row.days)
    new = 0
    for one, key in wanted:
        if key in known:
            continue
        survivor, loser = namer.subject(one.survivor), namer.subject(one.loser)
        if survivor.subject_id == loser.subject_id:
            raise Problem("timeline.merge_self")
        if one.undone:
            if into.pop(loser.subject_id, (None, 0))[0] != survivor.subject_id:
                raise Problem("timeline.not_merged")
        elif _end(into, survivor.subject_id)[0] == loser.subject_id:
            raise Problem("timeline.merge_cycle")
        else:
            into[loser.subject_id] = (survivor.subject_id, loser.days - survivor.days)
        await uow.execute(
            insert(merges).values(
                source=one.source,
                source_key=key,
                survivor=survivor.subject_id,
                loser=loser.subject_id,
                days=loser.days - survivor.days,
                undone=one.undone,
                at=uow.now,
            )
        )
        known = {*known, key}
        new += 1
    return new


def sealed_identity(subject: Subject) -> bytes:
    """What is sealed under the patient's key: the way back."""
    return json.dumps([subject.identity.authority, subject.identity.local_id], ensure_ascii=False).encode()


def opened_identity(content: bytes) -> Identity:
    """The other way."""
    authority, local_id = json.loads(content)
    return Identity(str(authority), str(local_id))

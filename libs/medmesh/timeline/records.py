"""Keeping events and answering them: functions on a unit of work, the same in SQLite and in PostgreSQL.

Append-only. An event is known again by (project, source, the source's own key): told again it is nothing new, told otherwise it is a
further revision, and the newest one counts. One that moved to another patient is withdrawn from the first.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

from sqlalchemy import and_, delete, exists, func, insert, select
from sqlalchemy.exc import IntegrityError

from medmesh.contracts.message import new_id
from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import replaced_uid
from medmesh.store.unit import UnitOfWork
from medmesh.timeline.events import Draft, Event, from_microseconds, microseconds, order
from medmesh.timeline.identity import Namer, Place, Subject, members, opened_identity, places, sealed_identity
from medmesh.timeline.tables import events, merges, sources, subjects
from medmesh.timeline.terms import confirmed

BATCH = 500
"""Keys in one question: SQLite takes 32,766 values, PostgreSQL's driver as many."""
LARGEST_RAW = 1 << 20


class Cipher(Protocol):
    """One patient's key."""

    def seal(self, content: bytes, bound: str) -> str:
        """As text, bound to where it stands."""

    def unseal(self, sealed: str, bound: str) -> bytes:
        """The other way. Raises `Problem`."""


class Vault(Protocol):
    """Patients' keys. Central stores hold nothing that identifies anybody and use `OPEN`."""

    keeps: bool
    """Whether identities are kept, and what events were read from: only under a patient's key."""

    async def ciphers(self, uow: UnitOfWork[Any], patients: Iterable[str], *, make: bool) -> Mapping[str, Cipher]:
        """Keys by pseudonym; with `make` missing ones are made, else they are left out."""


class _Plain:
    def seal(self, content: bytes, bound: str) -> str:
        return content.decode("utf-8", "replace")

    def unseal(self, sealed: str, bound: str) -> bytes:
        return sealed.encode()


class Open:
    """No keys: values as text are kept as they come, and nothing that tells who it was."""

    keeps = False

    async def ciphers(self, uow: UnitOfWork[Any], patients: Iterable[str], *, make: bool) -> Mapping[str, Cipher]:
        return dict.fromkeys(patients, _Plain())


OPEN = Open()


Usable = Callable[[str, str], bool]
"""Whether a patient's (pseudonym) events may be used that were taken in under a consent or approval; empty: under none."""


class Placed(NamedTuple):
    """A draft with its subject, its times moved, its names hashed."""

    subject: Subject
    draft: Draft
    key: str
    digest: str
    raw: str


@dataclass(slots=True)
class Appended:
    """What became of drafts: new events, further revisions of known ones, known ones told again, withdrawn ones among the revised,
    known ones told otherwise under the same revision (the first stands), and which patients have something new."""

    stored: int = 0
    revised: int = 0
    known: int = 0
    withdrawn: int = 0
    conflicts: int = 0
    patients: frozenset[str] = frozenset()

    def __iadd__(self, other: Appended) -> Appended:
        for name in ("stored", "revised", "known", "withdrawn", "conflicts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.patients |= other.patients
        return self


def place(draft: Draft, namer: Namer) -> Placed:
    """What is kept of a draft: identity to subject, times moved back, keys and contents hashed under the key. Raises `Problem`."""
    subject = namer.subject(draft.identity)
    text = f"urn:oid:{replaced_uid(draft.study_uid, namer.key)}" if draft.study_uid else draft.text
    moved = replace(draft, time=None if draft.time is None else draft.time - timedelta(days=subject.days), text=text)
    told = (draft.time, draft.code, draft.numeric, text, draft.unit, draft.precision, draft.object_sha256, draft.withdrawn)
    raw = namer.keyed("raw", draft.raw) if draft.raw is not None else ""
    return Placed(subject, moved, namer.keyed("key", draft.source, draft.key), namer.keyed("content", repr(told)), raw)


async def append(uow: UnitOfWork[Any], project: str, placed: Sequence[Placed], vault: Vault, *, consent: str | None = None) -> Appended:
    """Keep events. Raises `Problem` (`timeline.collision`)."""
    outcome = Appended()
    for start in range(0, len(placed), BATCH):
        outcome += await _append(uow, project, placed[start : start + BATCH], vault, consent)
    return outcome


async def _append(uow: UnitOfWork[Any], project: str, placed: Sequence[Placed], vault: Vault, consent: str | None) -> Appended:
    newest = await _newest(uow, project, {one.key for one in placed})
    outcome, rows, raws = Appended(), [], {}
    patients: dict[str, Subject] = {}
    taken: list[tuple[Placed, int]] = []
    for one in placed:
        mine = newest[one.key]
        last = max((row.revision for row in mine.values()), default=0)
        asked = one.draft.revision
        here = mine.get(one.subject.subject_id)
        if here is not None and (here.digest == one.digest or (asked is not None and asked <= here.revision)):
            outcome.known += 1
            outcome.conflicts += here.digest != one.digest and asked == here.revision
            continue
        if here is None and one.draft.withdrawn:
            outcome.known += 1  # never told here: there is nothing to take back
            continue
        if asked is not None and asked <= last:
            outcome.known += 1  # an older one than that of the patient it moved to
            continue
        revision = asked if asked is not None else last + 1
        # Told of another patient before: it moved, and is withdrawn there.
        for subject_id, row in list(mine.items()):
            if subject_id != one.subject.subject_id and not row.withdrawn:
                gone = _Known(subject_id, revision, "", True)
                rows.append(_withdrawal(row, gone, project, one, uow))
                mine[subject_id] = gone
        outcome.stored += here is None
        outcome.revised += here is not None
        outcome.withdrawn += one.draft.withdrawn
        patients[one.subject.patient] = one.subject
        mine[one.subject.subject_id] = _Known(one.subject.subject_id, revision, one.digest, one.draft.withdrawn, one.draft.code)
        taken.append((one, revision))
    ciphers = await vault.ciphers(uow, patients, make=True)
    await _know(uow, patients, ciphers, vault.keeps)
    for one, revision in taken:
        cipher = ciphers[one.subject.patient]
        rows.append(_row(one, revision, project, cipher, consent, uow))
        if vault.keeps and one.raw and one.draft.raw is not None and len(one.draft.raw) <= LARGEST_RAW:
            raws[(one.subject.subject_id, one.raw)] = (cipher, one.draft.raw)
    if rows:
        await uow.execute(insert(events), rows)
    await _keep(uow, raws)
    outcome.patients = frozenset(patients)
    return outcome


class _Known(NamedTuple):
    subject_id: int
    revision: int
    digest: str
    withdrawn: bool
    code: str = ""


async def _newest(uow: UnitOfWork[Any], project: str, keys: set[str]) -> dict[str, dict[int, _Known]]:
    """By key and subject."""
    found: dict[str, dict[int, _Known]] = defaultdict(dict)
    columns = (events.c.source_key, events.c.subject_id, events.c.revision, events.c.digest, events.c.withdrawn, events.c.code)
    asked = select(*columns).where(events.c.project == project, events.c.source_key.in_(sorted(keys))).order_by(events.c.revision)
    for row in await uow.all(asked):
        found[row.source_key][row.subject_id] = _Known(row.subject_id, row.revision, row.digest, row.withdrawn, row.code)
    return found


def _row(one: Placed, revision: int, project: str, cipher: Cipher, consent: str | None, uow: UnitOfWork[Any]) -> dict[str, Any]:
    draft, event_id = one.draft, new_id()
    return {
        "event_id": event_id,
        "project": project,
        "subject_id": one.subject.subject_id,
        "time": None if draft.time is None else microseconds(draft.time),
        "code": draft.code,
        "numeric_value": draft.numeric,
        "text": None if draft.text is None else cipher.seal(draft.text.encode(), f"event\0{event_id}"),
        "unit": draft.unit,
        "code_system": draft.code_system,
        "modality": draft.modality,
        "time_precision": draft.precision,
        "source": draft.source,
        "source_key": one.key,
        "source_raw": one.raw,
        "object_sha256": draft.object_sha256,
        "consent_id": consent,
        "revision": revision,
        "withdrawn": draft.withdrawn,
        "digest": one.digest,
        "ingested_at": uow.now,
    }


def _withdrawal(row: _Known, gone: _Known, project: str, one: Placed, uow: UnitOfWork[Any]) -> dict[str, Any]:
    empty = replace(
        one.draft, code=row.code, time=None, numeric=None, text=None, unit=None, object_sha256=None, precision=None, withdrawn=True
    )
    placed = one._replace(draft=empty, subject=one.subject._replace(subject_id=gone.subject_id), digest="", raw="")
    return _row(placed, gone.revision, project, _Plain(), None, uow)


async def _know(uow: UnitOfWork[Any], patients: Mapping[str, Subject], ciphers: Mapping[str, Cipher], keep: bool) -> None:
    known = {row.patient for row in await uow.all(select(subjects.c.patient).where(subjects.c.patient.in_(sorted(patients))))}
    rows = []
    for patient in sorted(patients.keys() - known):
        subject = patients[patient]
        identity = ciphers[patient].seal(sealed_identity(subject), f"subject\0{subject.subject_id}") if keep else ""
        rows.append({"subject_id": subject.subject_id, "patient": patient, "identity": identity, "at": uow.now})
    if rows:
        try:
            await uow.execute(insert(subjects), rows)
        except IntegrityError:
            raise Problem("timeline.collision") from None


async def _keep(uow: UnitOfWork[Any], raws: Mapping[tuple[int, str], tuple[Cipher, bytes]]) -> None:
    if not raws:
        return
    asked = select(sources.c.subject_id, sources.c.raw).where(sources.c.raw.in_(sorted({raw for _, raw in raws})))
    known = {(row.subject_id, row.raw) for row in await uow.all(asked)}
    rows = []
    for (subject, raw), (cipher, content) in raws.items():
        if (subject, raw) not in known:
            rows.append({"subject_id": subject, "raw": raw, "content": cipher.seal(zlib.compress(content), f"raw\0{raw}")})
    if rows:
        await uow.execute(insert(sources), rows)


_later = events.alias()
_CURRENT = and_(
    ~events.c.withdrawn,
    ~exists().where(
        _later.c.project == events.c.project,
        _later.c.source == events.c.source,
        _later.c.source_key == events.c.source_key,
        _later.c.subject_id == events.c.subject_id,
        _later.c.revision > events.c.revision,
    ),
)


async def people(uow: UnitOfWork[Any], project: str) -> list[int]:
    """Everyone with an event in the project, each person once, merged ones by who goes on."""
    known = await places(uow)
    found = await uow.all(select(events.c.subject_id).where(events.c.project == project).distinct())
    return sorted({known[row.subject_id].subject_id if row.subject_id in known else row.subject_id for row in found})


async def stream(
    uow: UnitOfWork[Any],
    project: str,
    vault: Vault,
    *,
    only: Sequence[int] | None = None,
    texts: bool = True,
    usable: Usable = lambda patient, consent: True,
) -> AsyncIterator[tuple[int, list[Event]]]:
    """(subject, events in order) of everyone in the project or of `only` them, one after the other in the order of their numbers.

    Without `texts` no value as text is opened; of a patient whose key is gone nothing is shown. A local code that somebody confirmed a
    standard one for is read as that (`terms`). What is not `usable` today is as if it were not there.
    """
    known = await places(uow)
    meanings = await confirmed(uow, project)
    wanted = await people(uow, project) if only is None else sorted({known[one].subject_id if one in known else one for one in only})
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        where = members(known, batch)
        names = {row.subject_id: row.patient for row in await uow.all(select(subjects).where(subjects.c.subject_id.in_(sorted(where))))}
        ciphers = await vault.ciphers(uow, names.values(), make=False) if texts else {}
        asked = select(*_COLUMNS).where(events.c.project == project, events.c.subject_id.in_(sorted(where)), _CURRENT)
        by: dict[int, list[Event]] = defaultdict(list)
        for row in await uow.all(asked):
            subject = row[0]
            cipher = ciphers.get(names.get(subject, ""))
            if (texts and cipher is None) or not usable(names.get(subject, ""), row.consent_id or ""):
                continue
            event = _event(row, cipher, meanings)
            spot = where[subject]
            by[spot.subject_id].append(event.shown_for(*spot))
        for one in batch:
            if by[one]:
                yield one, sorted(by[one], key=order)


_COLUMNS = tuple(
    events.c[name]
    for name in (
        "subject_id", "time", "code", "numeric_value", "text", "event_id", "source", "source_raw", "source_key", "object_sha256",
        "modality", "unit", "code_system", "time_precision", "ingested_at", "consent_id", "revision",
    )
)  # fmt: skip


def _event(row: Any, cipher: Cipher | None, meanings: Mapping[str, str]) -> Event:
    # Taken apart at once: a row's values by name cost more than all else that is done with them.
    subject, time, told, number, sealed, event_id, source, raw, key, sha256, modality, unit, system, precision, at, consent, revision = row
    text = None if sealed is None or cipher is None else cipher.unseal(sealed, f"event\0{event_id}").decode()
    code = meanings.get(told, told)
    return Event(
        subject,
        None if time is None else from_microseconds(time),
        code,
        number,
        text,
        event_id,
        f"{source}:{raw or key}",
        sha256,
        modality,
        unit,
        system if code == told else code.split("//")[1],
        precision,
        at,
        consent,
        revision,
    )


async def of(uow: UnitOfWork[Any], project: str, subject: int, vault: Vault) -> list[Event]:
    """One person's events in order, with those of whoever was merged into them."""
    async for _, found in stream(uow, project, vault, only=[subject]):
        return found
    return []


async def raw(uow: UnitOfWork[Any], subject: int, name: str, vault: Vault) -> bytes | None:
    """What an event was read from; `name` is the part of `source_uri` behind the colon."""
    row = await uow.first(select(sources).where(sources.c.subject_id == subject, sources.c.raw == name))
    patient = await uow.first(select(subjects.c.patient).where(subjects.c.subject_id == subject))
    if row is None or patient is None:
        return None
    cipher = (await vault.ciphers(uow, [patient.patient], make=False)).get(patient.patient)
    return None if cipher is None else zlib.decompress(cipher.unseal(row.content, f"raw\0{name}"))


async def who(uow: UnitOfWork[Any], subject: int, vault: Vault) -> Any:
    """The identity of a subject, where its key is: an `Identity`, or None."""
    row = await uow.first(select(subjects).where(subjects.c.subject_id == subject))
    if row is None or not row.identity:
        return None
    cipher = (await vault.ciphers(uow, [row.patient], make=False)).get(row.patient)
    return None if cipher is None else opened_identity(cipher.unseal(row.identity, f"subject\0{subject}"))


async def same_person(uow: UnitOfWork[Any], patient: str) -> tuple[set[str], dict[int, Place]]:
    """(pseudonyms, subjects) that are the same person as this pseudonym."""
    row = await uow.first(select(subjects.c.subject_id).where(subjects.c.patient == patient))
    if row is None:
        return {patient}, {}
    everybody = members(await places(uow), [row.subject_id])
    found = await uow.all(select(subjects.c.patient).where(subjects.c.subject_id.in_(sorted(everybody))))
    return {patient, *(one.patient for one in found)}, everybody


async def projects(uow: UnitOfWork[Any], of: Iterable[int]) -> list[str]:
    """The projects that have events of these subjects."""
    asked = select(events.c.project).where(events.c.subject_id.in_(sorted(of))).distinct().order_by(events.c.project)
    return [row.project for row in await uow.all(asked)]


async def forget(uow: UnitOfWork[Any], gone: Iterable[int]) -> int:
    """Remove every row about these subjects; answers how many events went."""
    numbers = sorted(gone)
    if not numbers:
        return 0
    done = await uow.execute(delete(events).where(events.c.subject_id.in_(numbers)))
    for table in (sources, subjects):
        await uow.execute(delete(table).where(table.c.subject_id.in_(numbers)))
    await uow.execute(delete(merges).where(merges.c.survivor.in_(numbers) | merges.c.loser.in_(numbers)))
    return done.rowcount


async def counts(uow: UnitOfWork[Any], project: str) -> Counter[str]:
    """Current events by code."""
    number = func.count().label("number")
    asked: Any = select(events.c.code, number).where(events.c.project == project, _CURRENT).group_by(events.c.code)
    return Counter({row.code: row.number for row in await uow.all(asked)})

"""A key for each patient, wrapped by the hospital's: what is kept of a patient opens with it, and without it is nobody's.

Under it lie the patient's images, and the patient's name in audit records: records leave the hospital and stay in the log for ever, so
they carry the pseudonym encrypted, each time anew. The log therefore tells nobody which records are about one patient; the hospital,
which has the key, tries it (`traces`). Once the key is destroyed, nobody can.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select

from medmesh.errors import Problem
from medmesh.security.keyring.memory import MemoryKey
from medmesh.security.keyring.port import Wrapped
from medmesh.security.suites import suite
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_edge.tables import patients

if TYPE_CHECKING:
    from medmesh_edge.ports import Site

HOSPITAL = "hospital"
"""The label of the key that wraps patients' keys, and those of what is no patient's."""
PATIENT = "patient"
SUITE = "intl-1"
PER_RECORD = 60
"""How many patients one audit record names; it has at most 16 KiB."""


def bound(site: Site, pseudonym: str) -> bytes:
    """What a patient's wrapped key belongs to."""
    return f"{site.settings.hospital}\0{pseudonym}".encode()


def opened(site: Site, pseudonym: str, wrapped: str) -> MemoryKey:
    """A patient's key. Raises `Problem` `keyring.*`."""
    return MemoryKey(PATIENT, SUITE, site.keys.unwrap(HOSPITAL, wrapped, bound(site, pseudonym)))


async def ensure(uow: UnitOfWork[None], site: Site, wanted: Iterable[str]) -> dict[str, MemoryKey]:
    """The keys of these patients by pseudonym; new ones are made. Wrapped here, under the write lock: see `forgetting`."""
    found = await known(uow, site, wanted)
    for pseudonym in sorted(set(wanted) - set(found)):
        key = suite(SUITE).new_key()
        wrapped = site.keys.wrap(HOSPITAL, key, bound(site, pseudonym))
        await uow.execute(insert(patients).values(patient=pseudonym, key=wrapped, at=uow.now))
        found[pseudonym] = MemoryKey(PATIENT, SUITE, key)
    return found


async def known(uow: UnitOfWork[None], site: Site, wanted: Iterable[str]) -> dict[str, MemoryKey]:
    """The keys of those among them that are known here."""
    rows = await uow.all(select(patients).where(patients.c.patient.in_(sorted(set(wanted)))))
    return {row.patient: opened(site, row.patient, row.key) for row in rows}


def version(wrapped: str) -> int:
    """Under which version of the hospital's key it lies."""
    return Wrapped.parse(wrapped).version


def images(site: Site, key: MemoryKey) -> EncryptedStore:
    """The node's store, for what is this patient's."""
    return site.objects.under(Wrapping(key, PATIENT, SUITE))


def entity(site: Site, pseudonym: str, key: MemoryKey) -> Entity:
    """The patient in an audit record: a ciphertext that differs each time."""
    found = Wrapped.parse(key.wrap(PATIENT, pseudonym.encode(), _context(site)))
    return Entity(PATIENT, f"{found.suite}:{base64.b64encode(found.sealed).decode()}")


def about_patients(site: Site, verb: str, action: str, keys: Mapping[str, MemoryKey], about: Iterable[Entity]) -> Iterator[AuditEntry]:
    """Records that name these patients beside `about`."""
    pseudonyms, common = sorted(keys), tuple(about)
    for start in range(0, len(pseudonyms), PER_RECORD):
        named = tuple(entity(site, one, keys[one]) for one in pseudonyms[start : start + PER_RECORD])
        yield AuditEntry(verb, action, entities=(*common, *named), detail={"patients": len(named)})


def traces(site: Site, pseudonym: str, key: MemoryKey, records: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, str, str]]:
    """(sequence number, time, verb) of the records about a patient, found by trying the key on every name."""
    for seq, record in records:
        for one in record["entities"]:
            if one["type"] == PATIENT and _is(site, pseudonym, key, one["id"]):
                yield seq, record["t"], record["sub"]
                break


def _is(site: Site, pseudonym: str, key: MemoryKey, name: str) -> bool:
    algorithm, _, sealed = name.partition(":")
    try:
        return key.unwrap(PATIENT, f"{algorithm}.{PATIENT}.1.{sealed}", _context(site)) == pseudonym.encode()
    except Problem:
        return False


def _context(site: Site) -> bytes:
    return f"audit\0{site.settings.hospital}".encode()

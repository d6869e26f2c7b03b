"""Client certificates of people: issued for a signing request, counted as second factor, revoked."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import delete, insert, select, update

from medmesh.contracts.governance import (
    CertificateRevoked,
    IssueCertificate,
    PersonCertificate,
    RequestCertificate,
    RevokeCertificate,
)
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.security.authority import fingerprint, read_request
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_governance.credentials import just_signed_in
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.sessions import end_all, failed, good, live, locked, shows_factor
from medmesh_governance.tables import certificates, sessions, users


@HANDLERS.answers(RequestCertificate)
async def request_certificate(query: Envelope[RequestCertificate], uow: UnitOfWork[Ports]) -> PersonCertificate | Problem:
    """Who has a second factor shows it first, who has none has just signed in, as for an authenticator."""
    wanted = query.data
    row = await live(uow, wanted, limited=True)
    if (same := await _same(uow, row.name, wanted.csr_pem)) is not None:
        uow.unchanged()
        return _view(same)
    if problem := locked(uow, row, "certificate.issue"):
        return problem
    if row.factor is None and not await good(uow, row.name):
        just_signed_in(uow, row)
    elif not await shows_factor(uow, row, wanted.code, wanted.password):
        return await failed(uow, row, "certificate.issue", Problem("governance.code_wrong"))
    made = await _issue(uow, row.name, wanted.csr_pem)
    await end_all(uow, row.name, but=row.hash)
    return made


@HANDLERS.answers(IssueCertificate)
async def issue_certificate(query: Envelope[IssueCertificate], uow: UnitOfWork[Ports]) -> PersonCertificate:
    """By the security administrator, for a request that was handed over; never for oneself."""
    wanted = query.data
    row = await uow.first(select(users).where(users.c.name == wanted.name).with_for_update())
    if row is None:
        raise Problem("request.not_found", kind="user", id=wanted.name)
    if row.kind != "person":
        raise Problem("governance.no_person", name=row.name)
    if (same := await _same(uow, row.name, wanted.csr_pem)) is not None:
        uow.unchanged()
        return _view(same)
    made = await _issue(uow, row.name, wanted.csr_pem)
    await end_all(uow, row.name)
    return made


@HANDLERS.on(RevokeCertificate)
async def revoke_certificate(command: Envelope[RevokeCertificate], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """One of somebody's, or all; again revokes nothing more."""
    wanted = command.data
    if (await uow.first(select(users.c.name).where(users.c.name == wanted.name).with_for_update())) is None:
        raise Problem("request.not_found", kind="user", id=wanted.name)
    serials = await revoke(uow, wanted.name, wanted.fingerprint, wanted.reason)
    if not serials:
        uow.unchanged()
    return {"revoked": list(serials)}


async def revoke(uow: UnitOfWork[Ports], name: str, only: str | None = None, reason: str = "") -> tuple[str, ...]:
    """Revoke a person's certificates; the sessions that belong to them end. Answers the serial numbers."""
    theirs = (certificates.c.name == name) & certificates.c.revoked_at.is_(None) & (certificates.c.expires_at > uow.now)
    if only is not None:
        theirs &= certificates.c.fingerprint == only
    gone = (await uow.execute(update(certificates).where(theirs).values(revoked_at=uow.now).returning(certificates))).all()
    if not gone:
        return ()
    await uow.execute(delete(sessions).where(sessions.c.certificate.in_([row.fingerprint for row in gone])))
    serials = tuple(sorted(row.serial for row in gone))
    uow.emit(CertificateRevoked(name=name, serials=serials))
    entities = (Entity("user", name), *(Entity("certificate", row.serial, digest=row.fingerprint) for row in gone))
    uow.audit(AuditEntry("certificate.revoke", "D", entities=entities, detail={"reason": reason}))
    return serials


async def _same(uow: UnitOfWork[Ports], name: str, csr_pem: str) -> Any | None:
    """What this key was certified with before: the answer may have been lost. Raises `Problem` for a key of somebody else's, or one
    whose certificate counts no longer: a new certificate has a new key."""
    row = await uow.first(select(certificates).where(certificates.c.key_digest == _key_digest(csr_pem)))
    if row is not None and (row.name != name or row.revoked_at is not None or row.expires_at <= uow.now):
        raise Problem("governance.certificate_key")
    return row


async def _issue(uow: UnitOfWork[Ports], name: str, csr_pem: str) -> PersonCertificate:
    made = uow.ports.authority.sign_person(csr_pem, name, days=uow.ports.settings.certificate_days, now=uow.now)
    values = {
        "fingerprint": fingerprint(made),
        "name": name,
        "serial": f"{made.serial_number:x}",
        "key_digest": _key_digest(csr_pem),
        "certificate_pem": made.public_bytes(Encoding.PEM).decode(),
        "issued_by": uow.actor.text,
        "issued_at": uow.now,
        "expires_at": made.not_valid_after_utc,
    }
    row = (await uow.execute(insert(certificates).values(values).returning(certificates))).one()
    entities = (Entity("user", name), Entity("certificate", row.serial, digest=row.fingerprint))
    uow.audit(AuditEntry("certificate.issue", "C", entities=entities, detail={"expires": row.expires_at.isoformat()}))
    return _view(row)


def _key_digest(csr_pem: str) -> str:
    public = read_request(csr_pem).public_key()
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _view(row: Any) -> PersonCertificate:
    return PersonCertificate(name=row.name, certificate_pem=row.certificate_pem, fingerprint=row.fingerprint, expires=row.expires_at)

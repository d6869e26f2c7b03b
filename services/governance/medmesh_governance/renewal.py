"""The certificates of nodes after the first one: renewed by the node itself, revoked by the security administrator."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import insert, select, update

from medmesh.contracts.governance import EnrolmentState, ListRevocations, NodeRevoked, RenewCertificate, Revocations, RevokeNode
from medmesh.contracts.message import Envelope, new_id
from medmesh.errors import Problem
from medmesh.security.authority import hospital_of, read_request, verify_issued
from medmesh.security.renewal import check, check_age
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_governance.enrolment import as_hospital, ask_for_approval, issue_certificate, state_of
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.tables import certificates, enrolments


@HANDLERS.answers(RenewCertificate)
async def renew_certificate(query: Envelope[RenewCertificate], uow: UnitOfWork[Ports]) -> EnrolmentState:
    """A new certificate for who proves to hold the old one's key: at once while the old one is good, after a second person's
    approval when it has expired. The same request answers the same."""
    wanted, settings = query.data, uow.ports.settings
    try:
        certificate = x509.load_pem_x509_certificate(wanted.certificate_pem.encode())
    except ValueError:
        raise Problem("security.certificate_foreign") from None
    verify_issued(certificate, uow.ports.authority.certificate)
    check(certificate, wanted.csr_pem, wanted.proof, uow.now)
    serial = f"{certificate.serial_number:x}"
    old = await uow.first(select(enrolments).where(enrolments.c.serial == serial).with_for_update())
    if old is None:
        raise Problem("security.certificate_foreign")
    if old.revoked:
        raise Problem("security.certificate_revoked", hospital=old.hospital)
    hospital, node = hospital_of(certificate)
    as_hospital(uow, hospital)
    good = check_age(certificate, uow.now, settings.dark_days)
    digest = hashlib.sha256(read_request(wanted.csr_pem).public_bytes(Encoding.DER)).hexdigest()
    mine = (enrolments.c.csr_digest == digest) & (enrolments.c.hospital == hospital)
    if (known := await uow.first(select(enrolments).where(mine, enrolments.c.replaces == serial))) is not None:
        uow.unchanged()
        return state_of(known, uow)
    enrolment = new_id()
    approval = old.approval if good else await ask_for_approval(uow, hospital, node, enrolment, digest, old.organisation_key)
    values: dict[str, Any] = {
        "enrolment": enrolment,
        "hospital": hospital,
        "node": node,
        "csr_pem": wanted.csr_pem,
        "csr_digest": digest,
        "organisation_key": old.organisation_key,
        "approval": approval,
        "replaces": serial,
        "state": "pending",
        "created_at": uow.now,
    }
    await uow.execute(insert(enrolments).values(values))
    entities = (Entity("hospital", hospital), Entity("enrolment", enrolment, digest=digest))
    uow.audit(AuditEntry("node.renew", "C", entities=entities, detail={"expired": not good}))
    if good:
        await issue_certificate(uow, enrolment)
    made = await uow.first(select(enrolments).where(enrolments.c.enrolment == enrolment))
    return state_of(made, uow)


@HANDLERS.on(RevokeNode)
async def revoke_node(command: Envelope[RevokeNode], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Every certificate of a hospital's node, or of all its nodes, counts no longer, and what it asked for is not issued."""
    wanted = command.data
    theirs = enrolments.c.hospital == wanted.hospital
    if wanted.node is not None:
        theirs &= enrolments.c.node == wanted.node
    rows = await uow.all(select(enrolments).where(theirs).with_for_update())
    if not rows:
        raise Problem("request.not_found", kind="node", id=wanted.node or wanted.hospital)
    await uow.execute(update(enrolments).where(theirs).values(revoked=True))
    await uow.execute(update(enrolments).where(theirs, enrolments.c.state == "pending").values(state="refused"))
    serials = tuple(sorted(row.serial for row in rows if row.serial and not row.revoked))
    if serials:
        uow.emit(NodeRevoked(hospital=wanted.hospital, serials=serials, reason=wanted.reason))
    nodes = [Entity("node", node) for node in sorted({row.node for row in rows})]
    detail: dict[str, str | int | bool] = {"certificates": len(serials), "reason": wanted.reason}
    uow.audit(AuditEntry("node.revoke", "D", entities=(Entity("hospital", wanted.hospital), *nodes), detail=detail))
    return {"revoked": list(serials)}


@HANDLERS.answers(ListRevocations)
async def list_revocations(query: Envelope[ListRevocations], uow: UnitOfWork[Ports]) -> Revocations:
    """Those that would still be good, and a day more for clocks that are wrong."""
    still = enrolments.c.expires_at > uow.now - timedelta(days=1)
    nodes = select(enrolments.c.serial).where(enrolments.c.revoked, still)
    people = select(certificates.c.serial).where(
        certificates.c.revoked_at.is_not(None), certificates.c.expires_at > uow.now - timedelta(days=1)
    )
    return Revocations(serials=tuple(sorted(row.serial for row in await uow.all(nodes.union(people)))))

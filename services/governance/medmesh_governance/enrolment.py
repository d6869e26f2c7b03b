"""Hospitals and the enrolment of their nodes: one-time code, signing request, a second person's approval, certificate."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from medmesh.contracts.governance import (
    ApprovalRequested,
    Enrol,
    EnrolmentState,
    GetEnrolment,
    HospitalRegistered,
    Hospitals,
    HospitalView,
    ListHospitals,
    NodeEnrolled,
    NodeView,
    OneTimeCode,
    RegisterHospital,
)
from medmesh.contracts.message import Envelope, new_id
from medmesh.errors import Problem
from medmesh.ledger.note import parse_key
from medmesh.security.authority import fingerprint, read_request
from medmesh.security.codes import code_hash, new_code, same
from medmesh.security.signing import key_fingerprint
from medmesh.security.statements import enrolment_digest
from medmesh.security.tokens import Actor
from medmesh.store.unit import AuditEntry, Context, Entity, UnitOfWork
from medmesh_governance.domain import ApprovalState
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.signatures import evidence
from medmesh_governance.tables import approvals, enrolments, hospitals

PROTOCOL = 1
"""The newest edge protocol this platform speaks."""


@HANDLERS.answers(RegisterHospital)
async def register_hospital(query: Envelope[RegisterHospital], uow: UnitOfWork[Ports]) -> OneTimeCode:
    """Register an organisation, or issue a new code for one that is known (its node is new, or was dark too long)."""
    wanted = query.data
    code = new_code()
    expires = uow.now + timedelta(hours=uow.ports.settings.enrolment_hours)
    codes = {"code_hash": code_hash(code), "code_expires": expires}
    known = await uow.first(select(hospitals.c.hospital).where(hospitals.c.hospital == wanted.hospital).with_for_update())
    if known is None:
        values = {"hospital": wanted.hospital, "display_name": wanted.display_name, "created_at": uow.now, **codes}
        await uow.execute(insert(hospitals).values(values))
        uow.emit(HospitalRegistered(hospital=wanted.hospital, display_name=wanted.display_name))
    else:
        await uow.execute(update(hospitals).where(hospitals.c.hospital == wanted.hospital).values(codes))
    uow.audit(AuditEntry("hospital.register", "C" if known is None else "U", entities=(Entity("hospital", wanted.hospital),)))
    return OneTimeCode(code=code, expires=expires)


@HANDLERS.answers(Enrol)
async def enrol(query: Envelope[Enrol], uow: UnitOfWork[Ports]) -> EnrolmentState:
    """Redeem a code with a signing request. The same code with the same request answers the same; with another, it is refused."""
    wanted = query.data
    if wanted.protocol > PROTOCOL:
        raise Problem("governance.protocol", node=wanted.protocol, platform=PROTOCOL)
    request = read_request(wanted.csr_pem)
    key = organisation_key(wanted.organisation_key, wanted.hospital)
    digest = hashlib.sha256(request.public_bytes(Encoding.DER)).hexdigest()
    given = code_hash(wanted.code)
    used = await uow.first(select(enrolments).where(enrolments.c.code_hash == given))
    if used is not None:
        if (used.csr_digest, used.hospital, used.organisation_key) != (digest, wanted.hospital, key):
            raise Problem("governance.code_refused")
        uow.unchanged()
        return state_of(used, uow)
    row = await uow.first(select(hospitals).where(hospitals.c.hospital == wanted.hospital).with_for_update())
    if row is None or row.code_hash is None or not same(row.code_hash, given) or row.code_expires < uow.now:
        raise Problem("governance.code_refused")
    enrolment = new_id()
    approval = await ask_for_approval(uow, wanted.hospital, wanted.node, enrolment, digest, key)
    await uow.execute(update(hospitals).where(hospitals.c.hospital == wanted.hospital).values(code_hash=None, code_expires=None))
    values: dict[str, Any] = {
        "enrolment": enrolment,
        "hospital": wanted.hospital,
        "node": wanted.node,
        "code_hash": given,
        "csr_pem": wanted.csr_pem,
        "csr_digest": digest,
        "organisation_key": key,
        "approval": approval,
        "state": "pending",
        "created_at": uow.now,
    }
    try:
        await uow.execute(insert(enrolments).values(values))
    except IntegrityError:
        raise Problem("governance.code_refused") from None
    uow.audit(
        AuditEntry("hospital.enrol", "C", entities=(Entity("hospital", wanted.hospital), Entity("enrolment", enrolment, digest=digest)))
    )
    return EnrolmentState(enrolment=enrolment, state="pending", approval=approval)


def as_hospital(uow: UnitOfWork[Ports], hospital: str) -> None:
    """Let the audit records of this transaction name the hospital whose proof was just checked."""
    actor = Actor("hospital", hospital, hospital, frozenset(("hospital",)))
    uow.context = Context(uow.context.service, uow.context.cause, actor, None, uow.context.traceparent)


def organisation_key(vkey: str, hospital: str) -> str:
    """The hospital's own key, named as it is. Raises `Problem`."""
    if not vkey:
        raise Problem("statement.missing", what="An enrolment")
    key = parse_key(vkey)
    if key.name != f"hospital:{hospital}":
        raise Problem("statement.other", what="hospital")
    return str(key)


async def ask_for_approval(uow: UnitOfWork[Ports], hospital: str, node: str, enrolment: str, request: str, key: str) -> str:
    """Open the approval of exactly this hospital, its own key and this signing request (its SHA-256); answers its id."""
    approval, requester = new_id(), f"hospital:{hospital}"
    digest = enrolment_digest(hospital, node, key, request)
    values: dict[str, Any] = {
        "approval": approval,
        "action": "hospital.enrol",
        "target": enrolment,
        "digest": digest,
        "requester": requester,
        "summary": {"hospital": hospital, "node": node, "request": request, "organisation_key": key, "fingerprint": key_fingerprint(key)},
        "state": ApprovalState.OPEN.value,
        "needed": uow.ports.settings.approvals_needed,
        "created_at": uow.now,
        "expires_at": uow.now + timedelta(hours=uow.ports.settings.enrolment_hours),
    }
    await uow.execute(insert(approvals).values(values))
    uow.emit(ApprovalRequested(approval=approval, action="hospital.enrol", target=enrolment, digest=digest, requester=requester))
    return approval


@HANDLERS.answers(GetEnrolment)
async def get_enrolment(query: Envelope[GetEnrolment], uow: UnitOfWork[Ports]) -> EnrolmentState:
    """What became of it; only who has the code may ask."""
    row = await uow.first(select(enrolments).where(enrolments.c.enrolment == query.data.enrolment))
    if row is None or row.hospital != query.data.hospital or not same(row.code_hash or "", code_hash(query.data.code)):
        raise Problem("request.not_found", kind="enrolment", id=query.data.enrolment)
    return state_of(row, uow)


def state_of(row: Any, uow: UnitOfWork[Ports]) -> EnrolmentState:
    """An enrolment as its node may see it."""
    trust = uow.ports.trust().document() if row.certificate_pem else None
    return EnrolmentState(enrolment=row.enrolment, state=row.state, approval=row.approval, certificate_pem=row.certificate_pem, trust=trust)


async def issue_certificate(uow: UnitOfWork[Ports], enrolment: str) -> None:
    """The approval was granted, or the one of the former certificate still holds: sign the request."""
    row = await uow.first(select(enrolments).where(enrolments.c.enrolment == enrolment).with_for_update())
    if row is None or row.state != "pending":
        return
    certificate = uow.ports.authority.sign_node(row.csr_pem, row.hospital, row.node, days=uow.ports.settings.node_days, now=uow.now)
    values = {
        "state": "enrolled",
        "certificate_pem": certificate.public_bytes(Encoding.PEM).decode(),
        "fingerprint": fingerprint(certificate),
        "serial": f"{certificate.serial_number:x}",
        "expires_at": certificate.not_valid_after_utc,
    }
    await uow.execute(update(enrolments).where(enrolments.c.enrolment == enrolment).values(values))
    uow.emit(NodeEnrolled(hospital=row.hospital, node=row.node, fingerprint=values["fingerprint"], expires=certificate.not_valid_after_utc))
    about = (Entity("node", row.node, digest=fingerprint(certificate)), Entity("hospital", row.hospital))
    approval = await uow.first(select(approvals).where(approvals.c.approval == row.approval))
    assert approval is not None
    # The record holds all that the approval's digest is made from, so that an auditor computes it and checks what was signed.
    detail: dict[str, str | int | bool] = {"organisation_key": row.organisation_key, "request": approval.summary["request"]}
    uow.audit(AuditEntry("node.enrolled", "C", entities=about, approval=await evidence(uow, approval), detail=detail))


async def refuse_enrolment(uow: UnitOfWork[Ports], enrolment: str) -> None:
    """The approval was refused: the code is used up and nothing was issued."""
    await uow.execute(
        update(enrolments).where(enrolments.c.enrolment == enrolment, enrolments.c.state == "pending").values(state="refused")
    )


@HANDLERS.answers(ListHospitals)
async def list_hospitals(query: Envelope[ListHospitals], uow: UnitOfWork[Ports]) -> Hospitals:
    """Every hospital with its nodes."""
    newest: dict[tuple[str, str], Any] = {}
    for row in await uow.all(select(enrolments).where(enrolments.c.state == "enrolled").order_by(enrolments.c.created_at)):
        newest[row.hospital, row.node] = row  # a node is what its last certificate says
    nodes: dict[str, list[NodeView]] = {}
    for row in newest.values():
        view = NodeView(node=row.node, fingerprint=row.fingerprint, expires=row.expires_at, revoked=row.revoked)
        nodes.setdefault(row.hospital, []).append(view)
    views = []
    for row in await uow.all(select(hospitals).order_by(hospitals.c.hospital)):
        mine = tuple(nodes.get(row.hospital, ()))
        views.append(
            HospitalView(hospital=row.hospital, display_name=row.display_name, state="enrolled" if mine else "registered", nodes=mine)
        )
    return Hospitals(hospitals=tuple(views))

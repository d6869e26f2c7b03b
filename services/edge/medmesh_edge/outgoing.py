"""What leaves the node: commands in order, each exactly once in effect, and audit records until their receipt."""

from __future__ import annotations

import base64
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, null, select, update

from medmesh.client.gateway import Gateway
from medmesh.contracts.audit import AuditBatch, AuditRecord, Receipts
from medmesh.contracts.message import new_id
from medmesh.errors import Problem
from medmesh.store.prepared import Look, Prepared
from medmesh.store.unit import UnitOfWork
from medmesh.telemetry import log
from medmesh_edge.ports import Site
from medmesh_edge.tables import federations, given, requests

TRANSIENT = frozenset(
    (
        "client.unreachable", "client.tls", "client.slow", "client.answer", "request.failed", "request.in_progress",
        "bus.no_responder", "bus.unavailable", "query.failed",
    )
)  # fmt: skip
WHO_WE_ARE = ("security.certificate_", "security.token_", "security.request_")
AUDIT_BATCH = 64
_LAST = Prepared(select(func.coalesce(func.max(requests.c.seq), 0).label("seq")))
_QUEUE = Prepared(insert(requests).values(given(requests)))
_OLDEST = Prepared(select(requests).where(requests.c.state == "waiting").order_by(requests.c.seq).limit(1))
_LEFT = Prepared(
    select(federations.c.federation).where(federations.c.federation == bindparam("federation"), federations.c.state == "withdrawn")
)
_OURS = requests.c.id == bindparam("request")
_DONE = Prepared(delete(requests).where(_OURS))
_REFUSED = Prepared(update(requests).where(_OURS).values(state="refused", answer=bindparam("why", type_=requests.c.answer.type)))


def is_transient(problem: Problem) -> bool:
    """Whether trying the same again later may help: the platform is away or full, or does not believe who we are, which a renewed
    certificate or a clock that was set right mends. What waits to be sent must outlive both."""
    return problem.code in TRANSIENT or problem.status in (502, 503, 504, 507) or problem.code.startswith(WHO_WE_ARE)


async def has_left(look: Look, event: Any) -> bool:
    """Whether a person has taken this hospital out of an event's federation."""
    return bool(await look(_LEFT, federation=event.federation))


async def unsay(uow: UnitOfWork[Any], federation: str) -> None:
    """What still waits to be said to a federation that this hospital leaves is not said, but that it once took part."""
    path = f"/v1/federations/{federation}/"
    waiting = (requests.c.state == "waiting") & requests.c.path.startswith(path, autoescape=True) & (requests.c.path != f"{path}answer")
    await uow.execute(delete(requests).where(waiting))


async def queue(uow: UnitOfWork[Any], path: str, body: dict[str, Any]) -> str:
    """Leave a command with this transaction; it is sent after those before it."""
    request = new_id()
    (last,) = await uow.rows(_LAST)
    await uow.rows(_QUEUE, id=request, seq=last.seq + 1, path=path, body=body, state="waiting", answer=null(), at=uow.now)
    uow.on_commit(lambda: uow.ports.changed.set("requests"))
    return request


async def send_one(site: Site, gateway: Gateway) -> bool:
    """Send the oldest waiting command; True when there may be more. One that was done is forgotten, a permanent refusal kept with its
    reason."""
    if not (found := await site.database.look(_OLDEST)):
        return False
    (row,) = found
    refused: Problem | None = None
    try:
        await gateway.command("POST", row.path, row.body, key=row.id)
    except Problem as problem:
        if is_transient(problem):
            raise
        refused = problem
        log("edge.refused_by_platform", level=30, path=row.path.rsplit("/", 1)[-1], code=problem.code)
    async with site.unit(durable=False) as uow:  # should the disk forget that, it is sent once more: the platform answers a key as before
        if refused is None:
            await uow.rows(_DONE, request=row.id)
        else:
            await uow.rows(_REFUSED, request=row.id, why=refused.document())
    return True


async def ship_audit(site: Site, gateway: Gateway) -> bool:
    """Hand audit records in, in order; rows go only on the log's receipt. True when there may be more."""
    rows = await site.database.unreceipted(AUDIT_BATCH)
    if not rows:
        return False
    # What the log has and the node would not remember could be numbered again.
    await site.database.settle()
    records = tuple(AuditRecord(id=id_, n=n, body=base64.b64encode(body).decode()) for n, id_, body in rows)
    batch = AuditBatch(emitter=site.emitter, records=records)
    answer = await gateway.request("POST", "/v1/audit/records", batch.model_dump())
    receipts = Receipts.model_validate(answer, extra="ignore")
    if receipts.problem:
        raise Problem.from_document(dict(receipts.problem))
    kept = {receipt.id for receipt in receipts.receipts}
    await site.database.receipted([n for n, id_, _ in rows if id_ in kept])
    return len(rows) == AUDIT_BATCH

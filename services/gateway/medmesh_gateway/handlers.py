"""What the gateway hears: answers to commands, and facts for hospitals."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic_core import to_json
from sqlalchemy import ARRAY, Boolean, String, Text, bindparam, cast, column, func, update
from sqlalchemy.dialects.postgresql import JSONB

from medmesh.contracts.federation import (
    FederationCompleted,
    FederationFailed,
    FederationInvited,
    FederationPaused,
    FederationResumed,
    FederationRolledBack,
    FederationStarted,
    FederationWaiting,
    InvitationExpired,
    ModelGone,
    ParticipantDropped,
    ParticipantQuarantined,
    ParticipantReleased,
    ParticipantWithdrew,
    RoundExtended,
    RoundOpened,
    RoundStored,
    RoundVoided,
    SecureAdvanced,
    UpdateFlagged,
    UpdateLost,
)
from medmesh.contracts.governance import EmergencyEnded, EmergencyOpened, EmergencyOverdue, EmergencyReviewed
from medmesh.contracts.message import Envelope, HospitalEvent, OperationFinished
from medmesh.contracts.registry import ContributorsWithdrew, ModelReleased, ModelWithdrawn
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh_gateway.inbox import deliver
from medmesh_gateway.ports import HANDLERS, Ports
from medmesh_gateway.tables import operations

FOR_HOSPITALS: tuple[type[HospitalEvent], ...] = (
    FederationInvited,
    InvitationExpired,
    FederationStarted,
    RoundOpened,
    RoundStored,
    SecureAdvanced,
    RoundVoided,
    UpdateFlagged,
    UpdateLost,
    ModelGone,
    FederationWaiting,
    FederationPaused,
    FederationResumed,
    FederationRolledBack,
    ParticipantDropped,
    ParticipantQuarantined,
    ParticipantReleased,
    ParticipantWithdrew,
    RoundExtended,
    FederationCompleted,
    FederationFailed,
    ModelReleased,
    ModelWithdrawn,
    ContributorsWithdrew,
    EmergencyOpened,
    EmergencyEnded,
    EmergencyOverdue,
    EmergencyReviewed,
)
"""Every fact that hospitals get. A test holds this list against the contracts."""


_TOLD = {"operation": String, "owner": String, "succeeded": Boolean, "result": Text, "problem": Text}
_ANSWERS = (
    func.unnest(*(bindparam(name, type_=ARRAY(kind)) for name, kind in _TOLD.items()))
    .table_valued(*(column(name, kind) for name, kind in _TOLD.items()), name="answers")
    .render_derived()
)
_FINISH = Prepared(
    update(operations)
    .where(
        operations.c.operation == _ANSWERS.c.operation,
        ~operations.c.finished,
        # Only the service that owns a command may answer it; the event's subject proves which service spoke.
        operations.c.command.startswith(_ANSWERS.c.owner),
    )
    .values(
        finished=True,
        succeeded=_ANSWERS.c.succeeded,
        result=cast(_ANSWERS.c.result, JSONB),
        problem=cast(_ANSWERS.c.problem, JSONB),
        finished_at=bindparam("finished_at", type_=operations.c.finished_at.type),
    )
    .returning(operations.c.operation)
)


@HANDLERS.on(OperationFinished, batch=32)
async def operation_finished(event: Envelope[OperationFinished], uow: UnitOfWork[Ports]) -> None:
    """Keep the owner's answer and wake who waits for it; those that came together in one statement."""
    (await uow.once(_together)).append(event.data)
    uow.at_end(_finish)


async def _together(uow: UnitOfWork[Ports]) -> list[OperationFinished]:
    """The answers that came to a transaction."""
    return []


async def _finish(uow: UnitOfWork[Ports]) -> None:
    answers = await uow.once(_together)
    told = {
        "operation": [one.operation for one in answers],
        "owner": [f"{one.service}." for one in answers],
        "succeeded": [one.succeeded for one in answers],
        "result": [_document(one.result) for one in answers],
        "problem": [_document(one.problem) for one in answers],
    }
    taken = {row.operation for row in await uow.rows(_FINISH, **told, finished_at=uow.now)}
    for one in answers:
        if one.operation in taken:
            uow.on_commit(partial(uow.ports.waiting.finished, one))


def _document(value: Any) -> str | None:
    return None if value is None else to_json(value).decode()


@HANDLERS.on(*FOR_HOSPITALS, durable="inbox", concurrency=1)
async def into_inboxes(event: Envelope[HospitalEvent], uow: UnitOfWork[Ports]) -> None:
    """One at a time, so that a hospital reads facts in the order in which they were committed to the stream."""
    assert uow.context.raw is not None
    await deliver(event, uow, uow.context.raw)

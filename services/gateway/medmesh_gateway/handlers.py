"""What the gateway hears: answers to commands, and facts for hospitals."""

from __future__ import annotations

from sqlalchemy import bindparam, update

from medmesh.contracts.federation import (
    FederationCompleted,
    FederationFailed,
    FederationInvited,
    FederationPaused,
    FederationResumed,
    FederationRolledBack,
    FederationStarted,
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
from medmesh.contracts.registry import ModelReleased, ModelWithdrawn
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh_gateway.inbox import deliver
from medmesh_gateway.ports import HANDLERS, Ports
from medmesh_gateway.tables import operations

FOR_HOSPITALS: tuple[type[HospitalEvent], ...] = (
    FederationInvited,
    FederationStarted,
    RoundOpened,
    RoundStored,
    SecureAdvanced,
    RoundVoided,
    UpdateFlagged,
    UpdateLost,
    ModelGone,
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
    EmergencyOpened,
    EmergencyEnded,
    EmergencyOverdue,
    EmergencyReviewed,
)
"""Every fact that hospitals get. A test holds this list against the contracts."""


# Only the service that owns a command may answer it; the event's subject proves which service spoke.
_FINISH = Prepared(
    update(operations)
    .where(
        operations.c.operation == bindparam("which"),
        ~operations.c.finished,
        operations.c.command.startswith(bindparam("owner")),
    )
    .values(
        finished=True,
        succeeded=bindparam("succeeded"),
        result=bindparam("result"),
        problem=bindparam("problem"),
        finished_at=bindparam("finished_at"),
    )
    .returning(operations.c.operation)
)


@HANDLERS.on(OperationFinished, batch=32)
async def operation_finished(event: Envelope[OperationFinished], uow: UnitOfWork[Ports]) -> None:
    """Keep the owner's answer and wake who waits for it."""
    answer = event.data
    values = {"succeeded": answer.succeeded, "result": answer.result, "problem": answer.problem, "finished_at": uow.now}
    if await uow.rows(_FINISH, which=answer.operation, owner=f"{answer.service}.", **values):
        uow.on_commit(lambda: uow.ports.waiting.finished(answer))


@HANDLERS.on(*FOR_HOSPITALS, durable="inbox", concurrency=1)
async def into_inboxes(event: Envelope[HospitalEvent], uow: UnitOfWork[Ports]) -> None:
    """One at a time, so that a hospital reads facts in the order in which they were committed to the stream."""
    assert uow.context.raw is not None
    await deliver(event, uow, uow.context.raw)

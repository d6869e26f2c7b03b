"""Composition root of federation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from medmesh.contracts import federation
from medmesh.contracts.training import GetRehearsal
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh.store.objects.directory import DirectoryStore
from medmesh.store.objects.open import Stores, stores
from medmesh_federation import evaluation, handlers, invitations, lifecycle, quarantine, queries, rollback, secure, starting
from medmesh_federation.coordinator import Coordinator
from medmesh_federation.copies import Copies, workplace
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.settings import Settings
from medmesh_federation.sweeping import sweep
from medmesh_federation.tables import METADATA

DECLARING = (quarantine, rollback, evaluation, handlers, invitations, lifecycle, queries, secure, starting)


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """Stores and the coordinator's loop."""
    settings = cast(Settings, runtime.settings)
    # What was copied and decoded of updates lies there in the clear: it does not outlive its process for long.
    with workplace(settings.state) as place:
        settings = settings.model_copy(update={"state": place})
        async with stores(settings.objects) as opened:
            ports = runtime.ports = _ports(runtime, settings, opened)
            coordinator = Coordinator(runtime, ports)
            runtime.background(coordinator.run, "coordinator")
            runtime.background(coordinator.store_behind, "store")

            async def swept() -> None:
                await sweep(runtime, ports)

            runtime.background(swept, "scratch", every=3600)
            yield ports


def _ports(runtime: Runtime, settings: Settings, opened: Stores) -> Ports:
    # Committed models are written durably beside the scratch objects, where the gateway finds them at once.
    scratch = opened.scratch
    models = DirectoryStore(scratch.folder, durable=True) if isinstance(scratch, DirectoryStore) else opened.kept
    return Ports(settings, opened, models, runtime.trust, runtime.roster, runtime.ask, Copies(settings.state))


SERVICE = ServiceSpec(
    name="federation",
    purpose="Coordinates federations: invitations, rounds, aggregation.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(
        federation.ApprovalFailed,
        federation.FederationInvited,
        federation.InvitationAnswered,
        federation.InvitationExpired,
        federation.FederationReady,
        federation.FederationQueued,
        federation.FederationStarted,
        federation.FederationWaiting,
        federation.RoundOpened,
        federation.SecureAdvanced,
        federation.RoundCommitted,
        federation.UpdateFlagged,
        federation.UpdateLost,
        federation.ModelGone,
        federation.RoundStored,
        federation.RoundVoided,
        federation.RoundExtended,
        federation.FederationPaused,
        federation.FederationResumed,
        federation.FederationRolledBack,
        federation.ParticipantWithdrew,
        federation.ParticipantDropped,
        federation.ParticipantQuarantined,
        federation.ParticipantReleased,
        federation.ParticipantRejoined,
        federation.FederationCompleted,
        federation.FederationFailed,
    ),
    asks=(GetRehearsal,),
)

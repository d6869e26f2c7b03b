"""Composition root of governance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from medmesh.contracts.governance import (
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRefused,
    ApprovalRequested,
    ApprovalRevoked,
    CertificateRevoked,
    EmergencyEnded,
    EmergencyOpened,
    EmergencyOverdue,
    EmergencyReviewed,
    HospitalRegistered,
    NodeEnrolled,
    NodeRevoked,
    PolicyChanged,
    UserChanged,
    UserCreated,
)
from medmesh.security.authority import Authority
from medmesh.security.keyring.port import open_keys
from medmesh.security.sealing import Seal
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh_governance import (
    accounts,
    certificates,
    credentials,
    emergencies,
    enrolment,
    handlers,
    people,
    policies,
    renewal,
    sessions,
    signatures,
    systems,
)
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.settings import Settings
from medmesh_governance.tables import METADATA

DECLARING = (
    sessions,
    credentials,
    people,
    systems,
    enrolment,
    renewal,
    policies,
    signatures,
    handlers,
    emergencies,
    certificates,
    accounts,
)
"""The modules whose handlers this service runs."""


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """The authority's key is read here and nowhere else."""
    settings = cast(Settings, runtime.settings)
    token = settings.bootstrap_token

    async def housekeeping() -> None:
        async with runtime.unit() as uow:
            await sessions.prune(uow)
            await systems.prune(uow)
            await handlers.expire(uow)
            await people.disable_idle(uow)
            await accounts.disable_ended(uow)
            await credentials.reseal(uow)

    ports = Ports(
        settings=settings,
        identity=runtime.identity,
        authority=Authority.load(settings.authority),
        seal=Seal(open_keys(settings.seal_keys)),
        trust=runtime.trust,
        roster=runtime.roster,
        bootstrap_hash=token.read_text().strip() if token and token.exists() else None,
    )
    runtime.ports = ports
    runtime.background(housekeeping, "accounts", every=300)

    async def emergency_watch() -> None:
        async with runtime.unit() as uow:
            await emergencies.watch(uow)

    runtime.background(emergency_watch, "emergencies", every=15)
    yield ports


SERVICE = ServiceSpec(
    name="governance",
    purpose="People, roles, hospitals, enrolment and approvals.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(
        UserCreated,
        UserChanged,
        HospitalRegistered,
        NodeEnrolled,
        NodeRevoked,
        PolicyChanged,
        ApprovalRequested,
        ApprovalGranted,
        ApprovalRefused,
        ApprovalRevoked,
        ApprovalExpired,
        CertificateRevoked,
        EmergencyOpened,
        EmergencyEnded,
        EmergencyOverdue,
        EmergencyReviewed,
    ),
)

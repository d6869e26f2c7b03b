"""What must be shown before anything of a round is done here: the plan is the one this hospital signed, its code was approved here, who
approved and who accepted it signed with keys of the roster, its start is in the witnessed log, and the round continues those before it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from medmesh.client import download
from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import FederationStarted, RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.chain import check_agreed
from medmesh.federated.proof import MOST_BYTES, StartProof, check_round, unpack, verify_start
from medmesh.ledger.note import split
from medmesh.security import statements
from medmesh.security.statements import Acceptance
from medmesh_edge import chain, continuity, witnessed
from medmesh_edge import roster as rosters
from medmesh_edge.consent import permitted
from medmesh_edge.continuity import Continuity
from medmesh_edge.ports import Site
from medmesh_edge.tables import federations

PROOF_SECONDS = 60.0
"""How long a start that was proven is not proven again, while neither it nor the roster changes."""


@dataclass
class Proofs:
    """Remembers what was proven last."""

    site: Site
    gateway: Gateway
    continuity: Continuity = field(init=False)
    _shown: tuple[Any, ...] = ()
    _at: float = float("-inf")

    def __post_init__(self) -> None:
        self.continuity = Continuity(self.site, self.gateway)

    async def plan(self, event: RoundOpened) -> Plan:
        """As `allowed`, without the package."""
        return (await self.allowed(event))[0]

    async def allowed(self, event: RoundOpened) -> tuple[Plan, ObjectRef]:
        """The plan this hospital signed, and its package. Raises `Problem` when the code is not allowed to run here."""
        async with self.site.unit() as uow:
            await continuity.trusted_in(uow)
            row = await uow.first(select(federations).where(federations.c.federation == event.federation))
            if row is None or row.plan_hash != event.plan_hash:
                raise Problem("federation.plan_changed", federation=event.federation)
            package = ObjectRef.model_validate(row.package)
            if not await permitted(uow, self.site.policy(), package.sha256):
                raise Problem("policy.package", package=package.sha256[:16])
            on_record = await witnessed.known(uow, event.federation, row.plan_hash)
            seen = await chain.known(uow, event)
        plan = Plan.model_validate(row.plan)
        check_agreed(plan, event)
        await self._prove(row, plan, event)
        if not on_record:
            await witnessed.prove(self.site, self.gateway, event.federation, row.plan_hash)
        if not seen:
            await chain.follow(self.site, self.gateway, plan, event)
        return plan, package

    async def _prove(self, row: Any, plan: Plan, event: RoundOpened) -> None:
        """Where the roster here lacks a key, by the newest there is."""
        now = asyncio.get_running_loop().time()
        try:
            shown = (row.federation, row.start, event.everybody, self.site.roster())
            if shown == self._shown and now - self._at < PROOF_SECONDS:
                return
            started, proof = await self._start(row)
            proven(self.site, started, proof, plan, event)
        except Problem as problem:
            if not problem.code.startswith("roster.") or not await rosters.refresh(self.site, self.gateway):
                raise
            shown = (row.federation, row.start, event.everybody, self.site.roster())
            started, proof = await self._start(row)
            proven(self.site, started, proof, plan, event)
        for hospital in started.hospitals:
            if seen := statements.read(split(proof.acceptances[hospital])[0], Acceptance).seen:
                await self.continuity.compare(seen, f"hospital:{hospital}")
        self._shown, self._at = shown, now

    async def _start(self, row: Any) -> tuple[FederationStarted, StartProof]:
        """The start as the platform told it, and what should prove it. Raises `Problem`."""
        started = None if row.start is None else FederationStarted.model_validate(row.start)
        if started is None or started.proof is None or started.proof.bytes > MOST_BYTES:
            raise Problem("federation.unproven", federation=row.federation)
        if started.plan_hash != row.plan_hash:
            raise Problem("federation.plan_changed", federation=row.federation)
        folder = self.site.layout.cache / "objects"
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        path = await download(self.gateway, started.proof, folder / started.proof.sha256)
        return started, unpack(await asyncio.to_thread(path.read_bytes))


def proven(site: Site, started: FederationStarted, proof: StartProof, plan: Plan, event: RoundOpened) -> None:
    """Raise a `Problem` unless the start of this federation and everybody in this round is proven by keys of the roster."""
    verify_start(started, proof, site.trust().governance, site.roster(), datetime.now(UTC))
    check_round(started, event.everybody)
    if len(set(event.everybody)) < plan.min_participants or site.settings.hospital not in event.everybody:
        raise Problem("federation.unproven", federation=event.federation)

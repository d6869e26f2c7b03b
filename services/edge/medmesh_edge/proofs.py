"""What must be shown before anything of a round is done here: the plan is the one this hospital signed, its code was approved here, who
approved and who accepted it signed with keys of the roster, its start is in the witnessed log, and the round continues those before it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, select

from medmesh.client import download
from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import FederationStarted, RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.chain import agreed
from medmesh.federated.plan import plan_of
from medmesh.federated.proof import MOST_BYTES, check_round, unpack, verify_start
from medmesh.ledger.note import split
from medmesh.security import statements
from medmesh.security.roster import Roster
from medmesh.security.statements import Acceptance
from medmesh.store.attempts import attempt, of_attempt
from medmesh.store.prepared import Prepared, as_text
from medmesh_edge import chain, continuity, witnessed
from medmesh_edge import roster as rosters
from medmesh_edge.continuity import Continuity
from medmesh_edge.policy import Policy
from medmesh_edge.ports import Site
from medmesh_edge.tables import chain as rounds
from medmesh_edge.tables import federations, log_views
from medmesh_edge.tables import witnessed as on_record

# Everything of the store that decides whether a round may be worked on, as it stands at one moment.
_STANDS = Prepared(
    select(
        federations.c.federation,
        federations.c.plan_hash,
        as_text(federations.c.plan),
        as_text(federations.c.package),
        as_text(federations.c.start),
        federations.c.approved,
        on_record.c.plan_hash.label("on_record"),
        rounds.c.value.label("seen"),
        log_views.c.size,
        log_views.c.fault,
    )
    .select_from(
        federations.outerjoin(on_record, on_record.c.federation == federations.c.federation)
        .outerjoin(rounds, of_attempt(rounds))
        .outerjoin(log_views, log_views.c.origin == bindparam("origin"))
    )
    .where(federations.c.federation == bindparam("federation"))
)


MOST_PROVEN = 16
"""How many federations' starts are remembered as proven."""


@dataclass(frozen=True, slots=True)
class Proven:
    """A start that was proven, by what, and until when that stands by itself."""

    by: tuple[Any, ...]
    """All it depends on beside the time: the platform's word, the roster, the governance's key."""
    until: datetime
    started: FederationStarted
    seen: tuple[tuple[str, str], ...]
    """Which checkpoint of the log each hospital knew when it accepted."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """That one attempt at a round may be worked on and handed in, by what, and until when that stands by itself."""

    by: tuple[Any, ...]
    until: datetime
    plan: Plan
    package: ObjectRef


@dataclass
class Proofs:
    """Remembers what was proven: a start, and that the newest attempt is allowed, are proven again only when something changed that the
    proof depends on. `proven` may be shared by nodes in one process: whose it is does not matter to it."""

    site: Site
    gateway: Gateway
    proven: dict[str, Proven] = field(default_factory=dict)
    continuity: Continuity = field(init=False)
    _compared: Proven | None = None
    _allowed: Allowed | None = None

    def __post_init__(self) -> None:
        self.continuity = Continuity(self.site, self.gateway)

    async def plan(self, event: RoundOpened) -> Plan:
        """As `allowed`, without the package."""
        return (await self.allowed(event))[0]

    async def allowed(self, event: RoundOpened) -> tuple[Plan, ObjectRef]:
        """The plan this hospital signed, and its package. Raises `Problem` when the code is not allowed to run here."""
        origin = continuity.keys(self.site)[0].name
        row = next(iter(await self.site.database.look(_STANDS, origin=origin, **attempt(event))), None)
        if row is None or row.plan_hash != event.plan_hash:
            raise Problem("federation.plan_changed", federation=event.federation)
        policy = self.site.policy()
        by = (event, row, policy, *self._vouchers())
        # In a round it is asked before the work and before what was made leaves.
        if (known := self._allowed) is None or known.by != by or datetime.now(UTC) >= known.until:
            known = self._allowed = await self._allow(event, row, policy, by)
        return known.plan, known.package

    async def _allow(self, event: RoundOpened, row: Any, policy: Policy, by: tuple[Any, ...]) -> Allowed:
        if (problem := continuity.against(row)) is not None:
            raise problem
        package = ObjectRef.model_validate_json(row.package)
        if package.sha256 not in policy.packages and row.approved is None:
            raise Problem("policy.package", package=package.sha256[:16])
        seen = chain.known(row.seen, event)
        plan = agreed(plan_of(row), event)
        proven = await self._prove(row, plan, event)
        if row.on_record != row.plan_hash:
            await witnessed.prove(self.site, self.gateway, event.federation, row.plan_hash)
        if not seen:
            await chain.follow(self.site, self.gateway, plan, event)
        return Allowed(by, proven.until, plan, package)

    def _vouchers(self) -> tuple[Roster, str]:
        """By whose keys everything is believed."""
        return self.site.roster(), self.site.trust().governance

    async def _prove(self, row: Any, plan: Plan, event: RoundOpened) -> Proven:
        """Raise a `Problem` unless the start of this federation and everybody in this round is proven by keys of the roster: where that
        lacks one, by the newest there is."""
        try:
            known = await self._start(row)
        except Problem as problem:
            if not problem.code.startswith("roster.") or not await rosters.refresh(self.site, self.gateway):
                raise
            known = await self._start(row)
        check_round(known.started, event.everybody)
        if len(set(event.everybody)) < plan.min_participants or self.site.settings.hospital not in event.everybody:
            raise Problem("federation.unproven", federation=event.federation)
        if self._compared is not known:
            await self.continuity.compare(*((seen, f"hospital:{hospital}") for hospital, seen in known.seen))
            self._compared = known
        return known

    async def _start(self, row: Any) -> Proven:
        """The start as the platform told it, proven. Raises `Problem`."""
        (roster, governance), now = self._vouchers(), datetime.now(UTC)
        by = (row.start, row.plan_hash, governance, roster)
        known = self.proven.get(row.federation)
        if known is not None and known.by == by and now < known.until:
            return known
        started = None if row.start is None else FederationStarted.model_validate_json(row.start)
        if started is None or started.proof is None or started.proof.bytes > MOST_BYTES:
            raise Problem("federation.unproven", federation=row.federation)
        if started.plan_hash != row.plan_hash:
            raise Problem("federation.plan_changed", federation=row.federation)
        path = await download(self.gateway, started.proof, self.site.layout.cached("objects") / started.proof.sha256)
        proof = unpack(await asyncio.to_thread(path.read_bytes))
        verify_start(started, proof, governance, roster, now)
        said = {name: statements.read(split(proof.acceptances[name])[0], Acceptance).seen for name in started.hospitals}
        known = Proven(by, roster.stands_until(now), started, tuple((name, seen) for name, seen in said.items() if seen))
        while len(self.proven) >= MOST_PROVEN:
            self.proven.pop(next(iter(self.proven)))
        self.proven[row.federation] = known
        return known

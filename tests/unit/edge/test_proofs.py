"""A start is proven once, and again whenever something changed that its proof depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.rosters import acceptance, decision, roster_of
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.contracts.federation import FederationStarted
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import plan_hash
from medmesh.errors import Problem
from medmesh.federated.proof import ACTION, StartProof, pack
from medmesh.security import approvals
from medmesh.security.keys import Identity
from medmesh.security.roster import Roster
from medmesh.security.signing import Signer
from medmesh_edge import proofs
from medmesh_edge.ports import Site, site
from medmesh_edge.proofs import Proofs

PLAN, NAMES = plan(participants=("a", "b", "c"), min_participants=2), ("a", "b", "c")
SIGNERS = {name: Signer.create(f"hospital:{name}") for name in NAMES}
CHECKER = Signer.create("person:checker@platform")


@dataclass
class World:
    """A start, its proof, and the roster and governance's key by which a node looks at it; how often it did."""

    governance: Identity
    roster: Roster
    data: bytes = b""
    row: Any = None
    looked: int = 0
    proofs: Proofs = field(init=False)

    async def look(self, everybody: Sequence[str] = NAMES) -> int:
        """Have a round's start proven; answers how often the proof was read until then. Raises `Problem`."""
        await self.proofs._prove(self.row, PLAN, opened(PLAN, 1).model_copy(update={"hospitals": everybody}))
        return self.looked


def started(world: World, **changed: Any) -> Any:
    """The row of a federation whose start is told like this."""
    proof = ObjectRef(sha256=hashlib.sha256(world.data).hexdigest(), bytes=len(world.data))
    values = {"federation": "f", "plan_hash": plan_hash(PLAN), "hospitals": NAMES, "proof": proof, **changed}
    return SimpleNamespace(federation="f", plan_hash=plan_hash(PLAN), start=FederationStarted(**values).model_dump_json())


@pytest.fixture
async def world(private: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    governance = Identity.ensure(private / "governance.nk")
    made = World(governance, roster_of(CHECKER, *SIGNERS.values()))
    ends = datetime.now(UTC) + timedelta(hours=1)
    about = {"approval": "x", "action": ACTION, "target": "f", "digest": plan_hash(PLAN), "requester": "person:li@platform"}
    token = approvals.issue(governance, **about, statements=[decision(CHECKER, **about, expires=ends)], expires=ends)
    signed = {name: acceptance(SIGNERS[name], "f", plan_hash(PLAN)) for name in NAMES}
    made.data = pack(StartProof(approval=token, acceptances=signed))
    made.row = started(made)

    async def download(_: Any, ref: ObjectRef, target: Path) -> Path:
        made.looked += 1
        target.write_bytes(made.data)
        return target

    async def no_newer(*_: Any) -> bool:
        return False

    monkeypatch.setattr(proofs, "download", download)
    monkeypatch.setattr(proofs.rosters, "refresh", no_newer)
    SETTINGS.save(private)
    async with site(private) as node:
        made.proofs = Proofs(_seeing(node, made), None)  # type: ignore[arg-type]
        yield made


def _seeing(node: Site, world: World) -> Site:
    node.roster_file = lambda: world.roster  # type: ignore[assignment]
    node.trust = lambda: SimpleNamespace(governance=world.governance.public)  # type: ignore[assignment]
    return node


async def test_a_start_is_proven_once(world: World) -> None:
    assert [await world.look(), await world.look(), await world.look(("a", "b"))] == [1, 1, 1]


async def test_who_is_in_a_round_is_looked_at_each_time(world: World) -> None:
    await world.look()
    for everybody, code in ((("a", "b", "d"), "federation.stranger"), (("a",), "federation.unproven"), (("b", "c"), "federation.unproven")):
        with pytest.raises(Problem) as caught:
            await world.look(everybody)
        assert caught.value.code == code


async def test_another_start_is_proven_anew(world: World) -> None:
    await world.look()
    world.row = started(world, hospitals=("a", "b"))
    assert await world.look(("a", "b")) == 2
    world.row = started(world, hospitals=(*NAMES, "d"))
    with pytest.raises(Problem) as caught:
        await world.look()
    assert caught.value.code == "statement.missing"


async def test_a_roster_or_governance_of_another_key_proves_anew(world: World, private: Path) -> None:
    await world.look()
    world.roster = world.roster.model_copy(update={"version": 2})
    assert await world.look() == 2
    world.roster = roster_of(CHECKER, SIGNERS["a"], SIGNERS["b"])
    with pytest.raises(Problem) as caught:
        await world.look()
    assert caught.value.code == "roster.unknown"
    world.roster, world.governance = roster_of(CHECKER, *SIGNERS.values()), Identity.ensure(private / "other.nk")
    with pytest.raises(Problem) as caught:
        await world.look()
    assert caught.value.code == "security.approval_signature"


async def test_what_a_compromised_key_signed_stands_until_the_key_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = datetime.now(UTC) + timedelta(hours=1)
    given = [m.model_copy(update={"until": ends, "compromised": True}) if m.name == "hospital:b" else m for m in world.roster.hospitals]
    world.roster = world.roster.model_copy(update={"hospitals": tuple(given)})
    assert [await world.look(), await world.look()] == [1, 1]

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return ends + timedelta(seconds=1)

    monkeypatch.setattr(proofs, "datetime", Later)
    with pytest.raises(Problem) as caught:
        await world.look()
    assert caught.value.code == "roster.ended"

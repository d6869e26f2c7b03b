"""A start is proven once, and again whenever something changed that its proof depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, update
from tests.ledgers import KEY, ORIGIN
from tests.rosters import acceptance, decision, roster_of
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.contracts.federation import FederationStarted, RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import plan_hash
from medmesh.errors import Problem
from medmesh.federated.chain import extend, round_digest, round_seed
from medmesh.federated.proof import ACTION, StartProof, pack
from medmesh.ledger.note import verifier_key
from medmesh.security import approvals
from medmesh.security.keys import Identity
from medmesh.security.roster import Roster
from medmesh.security.signing import Signer
from medmesh.store.attempts import attempt
from medmesh_edge import continuity, proofs
from medmesh_edge.policy import Policy
from medmesh_edge.ports import Site, site
from medmesh_edge.proofs import Proofs
from medmesh_edge.tables import chain, federations, log_views, witnessed

PLAN, NAMES = plan(participants=("a", "b", "c"), min_participants=2), ("a", "b", "c")
SIGNERS = {name: Signer.create(f"hospital:{name}") for name in NAMES}
LOG = verifier_key(ORIGIN, KEY.public_key())
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
    node.trust = lambda: SimpleNamespace(governance=world.governance.public, log_key=LOG)  # type: ignore[assignment]
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


async def _store(world: World, policy: Policy) -> RoundOpened:
    """As a node's store is before round 1: the federation accepted, its start on record, the round seen."""
    node = world.proofs.site
    node.policy = lambda: policy  # type: ignore[assignment]
    begun = {"base": ObjectRef(sha256=PLAN.initial, bytes=1), "steps": PLAN.local_steps, "seed": round_seed(PLAN, 1)}
    event = opened(PLAN, 1).model_copy(update={**begun, "hospitals": NAMES, "previous": plan_hash(PLAN), "committed": plan_hash(PLAN)})
    event = event.model_copy(update={"chain": extend(plan_hash(PLAN), [round_digest(event)])})
    about = {"federation": "f", "plan_hash": plan_hash(PLAN)}
    package = {"sha256": PLAN.package, "bytes": 1}
    async with node.unit() as uow:
        kept = {"plan": PLAN.model_dump(mode="json"), "package": package, "start": json.loads(world.row.start), "state": "running"}
        await uow.execute(insert(federations).values(**about, **kept, reason="", at=uow.now))
        await uow.execute(insert(witnessed).values(**about, evidence="", at=uow.now))
        await uow.execute(insert(chain).values(**attempt(event), value=event.chain))
        view = {"origin": continuity.keys(node)[0].name, "note": "", "size": 1, "fault": "", "shown": ""}
        await uow.execute(insert(log_views).values(**view, at=uow.now))
    return event


async def test_an_attempt_is_allowed_once_while_nothing_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    event, proven = await _store(world, Policy(packages=(PLAN.package,))), list[Any]()
    monkeypatch.setattr(proofs, "check_round", lambda *about: proven.append(about))
    for again in (
        event,
        event,
        RoundOpened.model_validate_json(event.model_dump_json()),
    ):  # before the work, before it leaves, after a kill
        assert await world.proofs.allowed(again) == (PLAN, ObjectRef(sha256=PLAN.package, bytes=1))
    assert (len(proven), world.looked) == (1, 1)
    await world.proofs.allowed(event.model_copy(update={"deadline": event.deadline + timedelta(minutes=1)}))
    assert len(proven) == 2, "another round"


@pytest.mark.parametrize("code", ["edge.log_forked", "policy.package", "federation.plan_changed", "federation.chain", "roster.unknown"])
async def test_what_was_allowed_may_not_leave_once_it_is_no_longer(world: World, code: str) -> None:
    """A training takes hours: what a person or the log took back meanwhile holds before anything is sent."""
    event = await _store(world, Policy(packages=(PLAN.package,)))
    await world.proofs.allowed(event)
    async with world.proofs.site.unit() as uow:
        match code:
            case "edge.log_forked":
                await uow.execute(update(log_views).values(fault=continuity.FORKED))
            case "federation.plan_changed":
                await uow.execute(update(federations).values(plan_hash="9" * 64))
            case "federation.chain":
                await uow.execute(update(chain).values(value="9" * 64))
            case "policy.package":
                world.proofs.site.policy = lambda: Policy()  # type: ignore[assignment]
            case "roster.unknown":
                world.roster = roster_of(CHECKER, SIGNERS["a"], SIGNERS["b"])
    with pytest.raises(Problem) as caught:
        await world.proofs.plan(event)
    assert caught.value.code == code


async def test_code_that_the_policy_does_not_name_runs_where_a_person_approved_the_plan(world: World) -> None:
    event = await _store(world, Policy())
    with pytest.raises(Problem, match="edge approve"):
        await world.proofs.allowed(event)
    async with world.proofs.site.unit() as uow:
        await uow.execute(update(federations).values(approved="as signed"))
    assert (await world.proofs.allowed(event))[0] == PLAN

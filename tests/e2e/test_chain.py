"""A node works only on rounds that continue what it saw, of a federation whose start is in the witnessed log: whatever the platform says.

Beside every lie the same thing told honestly is worked on. The platform that lies holds every key of the platform's services.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.federations import living, submit
from tests.hospitals import enrolled, federation, pacs, state_of, until
from tests.integration.test_witnesses import ORIGIN, Hospital
from tests.platform import Platform
from tests.records import left as in_the_log
from tests.rosters import acceptance
from tests.world import World, small_world

from medmesh.auditing import continued
from medmesh.bus.port import BusMessage
from medmesh.client import Gateway
from medmesh.client.federation import Federation
from medmesh.contracts.audit import Events
from medmesh.contracts.federation import (
    CandidateModel,
    Commitment,
    FederationStarted,
    FederationView,
    InvitationAnswered,
    RespondInvitation,
    RoundKind,
    RoundOpened,
    Undoing,
)
from medmesh.contracts.message import MAX_MESSAGE_BYTES, ObjectRef, encode, envelope
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.federated.chain import Left, after, extend, round_digest
from medmesh.federated.proof import pack, unpack, verify_start
from medmesh.federated.undoing import rollback_digest
from medmesh.learning import isolation
from medmesh.ledger import note
from medmesh.ledger.policy import parse_policy
from medmesh.ledger.proof import read_evidence, verify_evidence
from medmesh.security.keys import Identity
from medmesh.security.signing import Signer
from medmesh.store.objects.port import load
from medmesh.witness.site import create
from medmesh_edge import consent, intake, invitation, memorised
from medmesh_edge import roster as rosters
from medmesh_edge.node import Node, running
from medmesh_edge.ports import site
from medmesh_edge.tables import chain, tasks, witnessed
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_registry.service import SERVICE as REGISTRY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
MADE_UP = "f" * 64


@dataclass
class Scene:
    """One real hospital, `huashan`; `renji` is played by the test. The log has one witness, whom the roster demands."""

    world: World
    researcher: Gateway
    approver: Gateway
    folder: Path
    witness: Hospital


@pytest.fixture
async def scene(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[Scene]:
    vkey = note.verifier_key(ORIGIN, Identity.ensure(private / "keys" / "log.nk").private_key.public_key())
    witness = Hospital(create(private / "witness", "regulator/witness", [vkey], port=ports.take("witness")[0]))
    policy = f"log {vkey}\nwitness regulator {witness.site.vkey} http://127.0.0.1:{witness.site.port}\nquorum regulator\n"
    (private / "policy.txt").write_text(policy)
    settings: dict[str, dict[str, Any]] = {
        "federation": {"tick_seconds": 0.1},
        "audit": {"witness_policy": private / "policy.txt", "witness_seconds": 0.1, "witness_patience_seconds": 1.0},
    }
    witness.start()
    try:
        async with small_world(servers, private, ports, FEDERATION, REGISTRY, settings=settings) as world:
            rosters = world.p.rosters
            rosters.book = rosters.book.edited(datetime.now(UTC), policy=policy).signed(rosters.keeper)
            rosters.lay_down()
            admin = await world.admin()
            researcher, approver = [await world.user(admin, who, role) for who, role in (("li", "researcher"), ("wu", "approver"))]
            folder = await enrolled(world, admin, approver, "huashan", witness_seconds=3)
            async with site(folder) as opened:
                await intake.ingest(opened, pacs(world.p.folder, "huashan", 40), "brain")
            world.p.hospital("renji")
            yield Scene(world, researcher, approver, folder, witness)
    finally:
        witness.stop()


async def begun(scene: Scene, node: Node, **changed: Any) -> dict[str, Any]:
    """A federation that both hospitals accepted and a person approved."""
    wanted = {"rounds": 6, "local_steps": 5, "baseline": False, "min_participants": 1, "lease_seconds": 8, "accept_seconds": 60}
    wanted |= changed
    made = await federation(scene.world, scene.researcher, scene.approver, ("huashan", "renji"), **wanted)
    await until(lambda: state_of(node, made))
    # Before the last has answered: what was approved here once is accepted at once the second time.
    link = await Federation(scene.researcher, made["federation"]).link("huashan")
    assert (await invitation.open_link(node.site, link)).plan_hash == made["plan_hash"]
    with pytest.raises(Problem, match="opened already"):
        await invitation.open_link(node.site, link)

    async def recorded() -> bool:
        found = await in_the_log(scene.world.p, "federation.open")
        return any((r["src"]["service"], r["entities"][0]["id"]) == ("edge:huashan", made["federation"]) for r in found)

    await until(recorded)
    signed = acceptance(scene.world.p.rosters.signer("hospital:renji"), made["federation"], made["plan_hash"])
    answer = RespondInvitation(federation=made["federation"], plan_hash=made["plan_hash"], accept=True, signature=signed)
    assert (await scene.world.p.send(answer, scene.world.p.hospital("renji"))).succeeded
    await consent.approve(node.site, made["federation"], "doctor-zhao")
    node.site.changed.set()
    return made


async def round_of(scene: Scene, made: dict[str, Any], number: int) -> RoundOpened:
    def wanted(found: Any) -> bool:
        return found.data.federation == made["federation"] and found.data.round == number

    return (await scene.world.p.wait(RoundOpened, wanted, timeout=60)).data


async def became(node: Node, made: dict[str, Any], number: int, attempt: int = 1) -> tuple[str, str, int]:
    """(state, code, how often it was trained) of a node's part in a round, once it is decided."""

    async def settled() -> Any:
        where = (tasks.c.federation == made["federation"]) & (tasks.c.round == number) & (tasks.c.attempt == attempt)
        async with node.site.unit() as uow:
            row = await uow.first(select(tasks).where(where))
        return row if row is not None and row.state != "received" else None

    row = await until(settled, 60)
    return row.state, row.code, row.trained


def follows(event: RoundOpened, previous: str | None, **changed: Any) -> RoundOpened:
    """A round after `previous`, as the platform would write it."""
    number = changed.get("round", event.round)
    values = {"seed": event.seed + number - event.round, "links": (), **changed, "deadline": datetime.now(UTC) + timedelta(seconds=60)}
    made = event.model_copy(update=values)
    return made.model_copy(update={"previous": previous, "chain": extend(previous or "", [round_digest(made)])})


def undoing(p: Platform, event: RoundOpened, number: int, model: ObjectRef) -> Undoing:
    """Approvers' word that a federation goes on from a model."""
    digest = rollback_digest(event.federation, event.plan_hash, number, model.sha256)
    token = p.approval("federation.rollback", f"{event.federation}/{number}", digest)
    return Undoing(round=number, approval=token)


def left(event: RoundOpened, *links: Commitment) -> dict[str, Any]:
    """What a round says that begins with what these left after the rounds before `event`."""
    found = after(Left(event.committed or "", event.base.sha256), links)
    return {"links": links, "committed": found.value, "base": ObjectRef(sha256=found.model, bytes=event.base.bytes)}


def contradictions(records: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, str, int]]:
    looking = continued.Continued()
    return [one for seq, record in records for one in looking.look(seq, record, whole=True)]


def committed(number: int, model: ObjectRef) -> Commitment:
    return Commitment(round=number, kind=RoundKind.TRAIN, model=model.sha256)


def back_to(event: RoundOpened, word: Undoing, model: ObjectRef) -> dict[str, Any]:
    """What a round says that begins with an earlier model by the word of approvers."""
    link = Commitment(round=word.round, kind=None, model=model.sha256, approval="approval-1")
    return {**left(event, link), "undoing": word}


async def test_a_node_refuses_rounds_that_do_not_continue_what_it_saw(scene: Scene) -> None:
    p, policy_file = scene.world.p, scene.folder / "policy.toml"
    policy_file.write_text(policy_file.read_text("utf-8").replace('memorised = "off" ', 'memorised = "note"'), "utf-8")
    async with living(scene.world.p, "renji"), AsyncExitStack() as stack:
        async with running(scene.folder) as node:
            made = await begun(scene, node)
            first = await round_of(scene, made, 1)
            assert first.previous == made["plan_hash"], "rounds chain from the plan"
            assert (await became(node, made, 1))[0] in ("trained", "sent", "releasable", "released")
            await submit(p, first, "renji", 1.0)

            async def on_record() -> Any:
                async with node.site.unit() as uow:
                    return await uow.first(select(witnessed))

            kept = await until(on_record)
            policy = parse_policy((p.folder / "policy.txt").read_bytes())
            record, believed = verify_evidence(read_evidence(kept.evidence), policy)
            assert (record["detail"]["to"], set(believed.witnesses)) == ("running", {"regulator"}), "the hospital keeps what proves it"
            second = await round_of(scene, made, 2)
            if "huashan" in second.everybody:
                await became(node, made, 2)
        await submit(p, second, "renji", 2.0)

        # It was away for a round or more: what it missed is shown to it, and continues what it saw.
        number = 3
        while "huashan" in (missed := await round_of(scene, made, number)).everybody:
            await submit(p, missed, "renji", float(missed.round))
            number += 1
        node = await stack.enter_async_context(running(scene.folder))
        await asyncio.sleep(0.5)
        await submit(p, missed, "renji", float(missed.round))
        while "huashan" not in (back := await round_of(scene, made, number)).everybody:
            await submit(p, back, "renji", float(back.round))
            number += 1
        state, code, trained = await became(node, made, number)
        assert (state in ("trained", "sent"), code, trained) == (True, "", 1)

        # What it wrote down lies in the log beside what the coordinator wrote down, and fits.
        async def logged() -> Any:
            found = await node.gateway.ask("/v1/audit/events", Events, entity=f"federation:{made['federation']}")
            records = [(one.seq, one.record) for one in found.events if one.record["sub"] in continued.VERBS and one.record["out"] == 0]
            mine = [r["detail"]["round"] for _, r in records if r["sub"] == "federation.train"]
            return records if {1, number} <= set(mine) else None

        records = await until(logged)
        assert contradictions(records) == []
        seq, record = next((seq, r) for seq, r in records if r["sub"] == "federation.train" and r["detail"]["round"] == 1)
        assert record["detail"]["base"] == first.base.sha256
        later = {**record, "detail": {**record["detail"], "round": 2}}
        swapped = [(n, later if n == seq else r) for n, r in records]
        assert contradictions(swapped) == [(seq, made["federation"], 2)], "what stood before is not what was committed since"

        # From here on the platform lies, to this hospital alone; the honest round waits for the other one.
        lie = {"round": number + 1, "hospitals": ("huashan", "renji")}
        other = ObjectRef(sha256=MADE_UP, bytes=back.base.bytes)
        twice = (committed(number, back.base), committed(number, other))
        lies = {
            "leaves out what was seen since": (follows(back, first.chain, **lie, attempt=1), "chain"),
            "another history": (follows(back, MADE_UP, **lie, attempt=2), "chain"),
            "altered afterwards": (follows(back, back.chain, **lie, attempt=3).model_copy(update={"hospitals": ("huashan",)}), "chain"),
            "no history": (follows(back, None, **lie, attempt=4), "chain"),
            "the gradient of one batch": (follows(back, back.chain, **lie, attempt=5, steps=1), "round"),
            "another seed": (follows(back, back.chain, **lie, attempt=6, seed=7), "round"),
            "an earlier model, by nobody's word": (
                follows(back, back.chain, **lie, attempt=7, **left(back, committed(number, first.base))),
                "rollback_unproven",
            ),
            "another model than it committed": (
                follows(back, back.chain, **lie, attempt=10, **{**left(back, committed(number, other)), "base": first.base}),
                "uncommitted",
            ),
            "another model, and nothing committed": (follows(back, back.chain, **lie, attempt=11, base=other), "uncommitted"),
            "two models of one round": (
                follows(back, back.chain, **lie, attempt=12, **{**left(back, committed(number, other)), "links": twice}),
                "uncommitted",
            ),
            "what is committed, untold": (
                follows(back, back.chain, **lie, attempt=13, **{**left(back, committed(number, other)), "links": ()}),
                "uncommitted",
            ),
            "an earlier model, by a word for another": (
                follows(back, back.chain, **lie, attempt=8, **back_to(back, undoing(p, back, 0, back.base), first.base)),
                "rollback_unproven",
            ),
            "evaluated after going back, by nobody's word": (
                follows(
                    back,
                    back.chain,
                    **lie,
                    attempt=15,
                    kind=RoundKind.EVALUATE,
                    models=(CandidateModel(name="federated", weights=first.base),),
                    **{**back_to(back, undoing(p, back, 0, back.base), first.base), "undoing": None},
                ),
                "rollback_unproven",
            ),
            "a round more than agreed": (follows(back, back.chain, **{**lie, "round": 99}), "round"),
        }
        for what, (told, code) in lies.items():
            await p.publish(told, source="federation")
            assert await became(node, made, told.round, told.attempt) == ("failed", f"federation.{code}", 0), what

        # The platform was set back to before the last round, and the node was started anew.
        await stack.aclose()
        node = await stack.enter_async_context(running(scene.folder))
        again = follows(back, back.previous, attempt=2, models=())
        await p.publish(again, source="federation")
        assert await became(node, made, number, 2) == ("failed", "federation.chain", 0)
        earlier = follows(first, made["plan_hash"], round=1, attempt=9)
        await p.publish(earlier, source="federation")
        assert await became(node, made, 1, 9) == ("failed", "federation.chain", 0)
        async with node.site.unit() as uow:
            values = {(row.round, row.attempt): row.value for row in await uow.all(select(chain))}
        assert values[number, 1] == back.chain
        assert not [place for place in values if place > (number, 1)], "what was refused is not part of the chain"
        async with node.site.unit() as uow:
            refused = sorted(row.code for row in await uow.all(select(tasks).where(tasks.c.state == "failed")))

        async def recorded() -> bool:
            return sorted(r["why"] for r in await in_the_log(p, "federation.train") if r["out"] == 8) == refused

        assert len(refused) > len(lies)
        await until(recorded, 30)

        # Where approvers of its roster signed just that, the node goes back with the others.
        told = follows(back, back.chain, **lie, attempt=14, **back_to(back, undoing(p, back, 0, first.base), first.base))
        await p.publish(told, source="federation")
        assert (await became(node, made, number + 1, 14))[2] == 1, "trained"

        scanned = await memorised.listed(node.site)
        places = {(one["round"], one["attempt"]) for one in scanned}
        assert {(1, 1), (number, 1), (number + 1, 14)} <= places, "what left was looked at, as the policy says"
        assert all(one["trained"] and one["held_out"] for one in scanned)


async def test_nothing_is_trained_before_the_start_is_in_the_witnessed_log(scene: Scene) -> None:
    scene.witness.stop()
    async with living(scene.world.p, "renji"), running(scene.folder) as node:
        made = await begun(scene, node, min_participants=2, lease_seconds=20, round_deadline_seconds=60)
        assert await became(node, made, 1) == ("failed", "federation.unwitnessed", 0)

        async def dropped() -> bool:
            view = await scene.researcher.ask(f"/v1/federations/{made['federation']}", FederationView)
            return {p.hospital: p.reason for p in view.participants}["huashan"] == "failed"

        await until(dropped)
        scene.witness.start()
        await submit(scene.world.p, await round_of(scene, made, 1), "renji", 1.0)
        await scene.researcher.command("POST", f"/v1/federations/{made['federation']}/cancel", {"reason": "no witness"})
        other = await begun(scene, node, min_participants=2, lease_seconds=20)
        state, code, trained = await became(node, other, 1)
        assert (state in ("trained", "sent"), code, trained) == (True, "", 1), "with its witness the same is trained"


async def test_a_start_with_240_acceptances_is_proven_and_one_that_is_forged_among_them_is_found(scene: Scene) -> None:
    p = scene.world.p
    others = tuple(f"hospital-{number:03d}" for number in range(239))
    p.rosters.add_hospitals(*others)
    wanted = {"rounds": 1, "local_steps": 5, "baseline": False, "min_participants": 1, "accept_seconds": 200, "round_deadline_seconds": 8}
    async with running(scene.folder) as node:
        assert await rosters.refresh(node.site, node.gateway)
        made = await federation(scene.world, scene.researcher, scene.approver, ("huashan", *others), lease_seconds=60, **wanted)
        about = {"federation": made["federation"], "plan_hash": made["plan_hash"]}

        answers = []
        for hospital in others:
            signed = acceptance(p.rosters.signer(f"hospital:{hospital}"), made["federation"], made["plan_hash"])
            answer = RespondInvitation(**about, accept=True, signature=signed)
            one = envelope(answer, source="test", actor=p.hospital(hospital))
            answers.append(BusMessage(one.id, one.type, encode(one)))
        assert not any(await p.bus.publish(answers))

        async def accepted() -> bool:
            return len(p.emitted(InvitationAnswered)) >= len(others)

        await until(accepted, 80)
        await until(lambda: state_of(node, made))
        async with living(scene.world.p, *others, every=5):
            await consent.approve(node.site, made["federation"], "doctor-zhao")
            node.site.changed.set()
            started = (await p.wait(FederationStarted, timeout=90)).data
            await round_of(scene, made, 1)
        assert set(started.hospitals) == {"huashan", *others}, await state_of(node, made)
        assert started.proof and started.proof.bytes > MAX_MESSAGE_BYTES, "more than a message may hold"
        state, code, trained = await became(node, made, 1)
        assert (state in ("trained", "sent"), code, trained) == (True, "", 1)
        assert len((await round_of(scene, made, 1)).everybody) == 240

        # The same with one of them signed by a key that the roster does not have, and with one left out.
        proof = unpack(await load(p.stores.kept, started.proof))
        forged = acceptance(Signer.create("hospital:hospital-100"), made["federation"], made["plan_hash"])
        for changed, expected in (({"hospital-100": forged}, "roster.unknown"), ({"hospital-100": ""}, "statement.missing")):
            ref = await p.stores.kept.put(pack(proof.model_copy(update={"acceptances": {**proof.acceptances, **changed}})))
            with pytest.raises(Problem) as refused:
                verify_start(
                    started.model_copy(update={"proof": ref}),
                    unpack(await load(p.stores.kept, ref)),
                    node.site.trust().governance,
                    node.site.roster(),
                    datetime.now(UTC),
                )
            assert refused.value.code == expected

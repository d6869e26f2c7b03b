"""Who owns the platform forges an approval, a hospital and a log: hospitals and auditors who pinned the roster refuse all of it.

The attacker holds the authority's key, every service's NKEY, the release and the log key, and is superuser of PostgreSQL. What he does
not hold are the keys of people, of hospitals and of the roster's keeper. Beside every forgery the same thing done honestly passes.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner
from sqlalchemy import select, update
from sqlalchemy.engine import make_url
from tests.federations import living
from tests.hospitals import enrolled, federation, pacs, state_of, until
from tests.ledgers import Entry, write
from tests.rosters import acceptance, decision
from tests.unit.serving.models import Authorities, manifest, saved
from tests.world import World, small_world

from medmesh.cli.audit import audit
from medmesh.cli.edge import edge
from medmesh.client import Gateway
from medmesh.client import approvals as approvals_client
from medmesh.client.approvals import ask, asking, look
from medmesh.client.audit import at_the_door, export_log, of_a_hospital
from medmesh.client.doors import open_door
from medmesh.contracts.audit import AlertRaised
from medmesh.contracts.federation import FederationView, RespondInvitation
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.ledger import note, tiles
from medmesh.ledger.cosignature import cosign, witness_key
from medmesh.security import approvals
from medmesh.security.authority import new_key, node_request
from medmesh.security.keys import Identity
from medmesh.security.signing import Signer
from medmesh.security.tokens import hospital_token
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge import consent, continuity, intake
from medmesh_edge import roster as rosters
from medmesh_edge.node import Node, running
from medmesh_edge.ports import site
from medmesh_edge.tables import log_views, releases, tasks
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_registry.service import SERVICE as REGISTRY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
REGULATOR = "regulator.example/witness"


@dataclass
class Attacker:
    """See the module. `wu` and `ghost` are keys of his own under the names of an approver and of a hospital nobody knows."""

    world: World
    database: str

    def __post_init__(self) -> None:
        self.wu, self.ghost = Signer.create("person:wu@platform"), Signer.create("hospital:ghost")

    def approval(self, action: str, target: str, digest: str) -> str:
        """Governance's genuine token, because he has its key, over a statement of his own making."""
        expires = datetime.now(UTC) + timedelta(hours=1)
        about = {"approval": f"forged-{target}", "action": action, "target": target, "digest": digest, "requester": "person:li@platform"}
        statements = [decision(self.wu, **about, expires=expires)]
        return approvals.issue(self.world.p.identities["governance"], **about, statements=statements, expires=expires)

    async def sql(self, statement: str, *values: Any) -> None:
        """As superuser."""
        connection = await asyncpg.connect(self.database)
        try:
            assert (await connection.execute(statement, *values)).split()[-1] != "0", "the forgery itself must succeed"
        finally:
            await connection.close()


@dataclass
class Scene:
    world: World
    attacker: Attacker
    researcher: Gateway
    approver: Gateway
    auditor: Gateway
    nodes: dict[str, Node]


@pytest.fixture
async def scene(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[Scene]:
    settings = {"federation": {"tick_seconds": 0.1}}
    async with small_world(servers, private, ports, FEDERATION, REGISTRY, settings=settings) as world, AsyncExitStack() as stack:
        name = make_url(world.p.runtimes["federation"].settings.database_url).database
        database = make_url(servers.postgres_url).set(drivername="postgresql", database=name).render_as_string(hide_password=False)
        admin = await world.admin()
        researcher, approver, auditor = [
            await world.user(admin, who, role) for who, role in (("li", "researcher"), ("wu", "approver"), ("qian", "auditor"))
        ]
        nodes = {}
        for name in ("huashan", "renji"):
            folder = await enrolled(world, admin, approver, name, log_every=timedelta(days=1))
            async with site(folder) as opened:
                await intake.ingest(opened, pacs(world.p.folder, name, 40), "brain")
            nodes[name] = await stack.enter_async_context(running(folder))
        yield Scene(world, Attacker(world, database), researcher, approver, auditor, nodes)


def _watched(world: World) -> None:
    """The roster demands a regulator's witness of the log; its key is the test's."""
    world.witness = Identity.create(world.p.folder / "keys" / "witness.nk").private_key  # type: ignore[attr-defined]
    desk = world.p.rosters
    log = desk.present().policy.splitlines()[0]
    vkey = witness_key(REGULATOR, world.witness)  # type: ignore[attr-defined]
    policy = f"{log}\nwitness regulator {vkey}\nquorum regulator\n"
    desk.book = desk.book.edited(datetime.now(UTC), policy=policy).signed(desk.keeper)
    desk.lay_down()


# --- releases -------------------------------------------------------------------------------------------------------


async def _installed(scene: Scene, node: Node, release: str) -> tuple[str, str]:
    async def settled() -> Any:
        async with node.site.unit() as uow:
            row = await uow.first(select(releases).where(releases.c.release == release))
        return row if row is not None and row.state != "received" else None

    row = await until(settled, 30)
    return row.state, row.code


async def _releases(scene: Scene) -> None:
    p, node = scene.world.p, scene.nodes["huashan"]
    stolen = Authorities(Identity.load(p.folder / "keys" / "release.nk"), p.identities["governance"])
    stolen.approver = scene.attacker.wu
    path = saved(p.folder)
    await p.stores.kept.put(path.read_bytes())
    made = manifest(path, hospitals=("huashan",))
    body = json.dumps(made.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    unsigned = approvals.issue(
        stolen.governance,
        approval="a",
        action="model.release",
        target="forged-2",
        digest=approvals.request_digest(json.loads(body)),
        requester="person:li@platform",
        statements=[],
        expires=datetime.now(UTC) + timedelta(hours=1),
    )
    for event, code in (
        (stolen.released(made, release="forged-1"), "roster.unknown"),
        (stolen.released(made, release="forged-2", approval=unsigned), "security.approval_unsigned"),
    ):
        await p.publish(event, source="registry")
        assert await _installed(scene, node, event.release) == ("refused", code)
    stolen.approver = p.rosters.signer("person:wu@platform")
    honest = stolen.released(made, release="honest")
    await p.publish(honest, source="registry")
    assert await _installed(scene, node, "honest") == ("installed", ""), "the same release, signed by the approver herself"


# --- federations ----------------------------------------------------------------------------------------------------


async def _invited(scene: Scene, hospitals: tuple[str, ...], *, approved: bool, **changed: Any) -> dict[str, Any]:
    """A federation whose real hospitals accept; who asked for the start, and got it, if anybody."""
    values = {"rounds": 1, "local_steps": 5, "baseline": False, "accept_seconds": 8, "round_deadline_seconds": 20, **changed}
    made = await federation(scene.world, scene.researcher, scene.approver if approved else None, hospitals, **values)
    for name in set(hospitals) & set(scene.nodes):
        node = scene.nodes[name]
        await until(lambda node=node: state_of(node, made))
        await consent.approve(node.site, made["federation"], "doctor-zhao")
        node.site.changed.set()

        async def accepted(node: Node = node) -> bool:
            return await state_of(node, made) == "accepted"

        await until(accepted)
    return made


async def _refused(node: Node, made: dict[str, Any]) -> str:
    """The code with which a node refused the first round; it trained nothing."""

    async def failed() -> Any:
        async with node.site.unit() as uow:
            rows = await uow.all(select(tasks).where(tasks.c.federation == made["federation"]))
        return rows if rows and rows[0].state not in ("received", "superseded") else None

    rows = await until(failed, 60)
    assert {row.trained for row in rows} == {0}, "nothing was trained"
    return str(rows[0].code or rows[0].state)


async def _forged_approval(scene: Scene) -> None:
    made = await _invited(scene, ("huashan", "renji"), approved=False)
    token = scene.attacker.approval("federation.start", made["federation"], made["plan_hash"])
    statement = "UPDATE federation.federations SET approval = $1, token = $2 WHERE federation = $3"
    await scene.attacker.sql(statement, "forged", token, made["federation"])
    assert [await _refused(node, made) for node in scene.nodes.values()] == ["roster.unknown"] * 2
    await _over(scene, made)


async def _invented_hospital(scene: Scene) -> None:
    """A ghost with a genuine certificate, because he has the authority's key, takes part beside one real hospital."""
    p, attacker = scene.world.p, scene.attacker
    key = new_key()
    token = hospital_token(key, p.authority.sign_node(node_request(key, "ghost", "node-1"), "ghost", "node-1"))
    made = await _invited(scene, ("ghost", "huashan"), approved=True)
    signature = acceptance(attacker.ghost, made["federation"], made["plan_hash"])
    answer = RespondInvitation(federation=made["federation"], plan_hash=made["plan_hash"], accept=True, signature=signature)
    refused = await p.send(answer, token)
    assert (refused.problem or {})["code"] == "roster.unknown", "the platform itself refuses, as long as it is honest"
    statement = "UPDATE federation.participants SET state = 'accepted', signature = $1 WHERE federation = $2 AND hospital = 'ghost'"
    await attacker.sql(statement, signature, made["federation"])
    async with living(scene.world.p, "ghost"):
        assert await _refused(scene.nodes["huashan"], made) == "roster.unknown"
    await _over(scene, made)


async def _honest(scene: Scene) -> None:
    made = await _invited(scene, ("huashan", "renji"), approved=True)

    async def completed() -> Any:
        view = await scene.researcher.ask(f"/v1/federations/{made['federation']}", FederationView)
        assert view.state not in ("failed", "cancelled"), view.failure
        return view.state == "completed"

    await until(completed, 60)


async def _over(scene: Scene, made: dict[str, Any]) -> None:
    await scene.researcher.command("POST", f"/v1/federations/{made['federation']}/cancel", {"reason": "forged"})


async def test_hospitals_train_and_install_nothing_that_was_forged(scene: Scene) -> None:
    await _releases(scene)
    await _forged_approval(scene)
    await _invented_hospital(scene)
    await _honest(scene)


async def test_nobody_can_be_made_to_have_asked_for_a_federation(scene: Scene) -> None:
    """Wu would approve what li asks for. The platform asks in li's name, and she approves; every hospital refuses nevertheless."""
    world, node = scene.world, scene.nodes["huashan"]
    li = Signer.create("person:li@platform")
    world.p.rosters.add(li.vkey, "requester")
    world.p.rosters.rule(signed_requests=("federation.start",))
    made = await _invited(scene, ("huashan", "renji"), approved=False)
    wanted = {"action": "federation.start", "target": made["federation"], "digest": made["plan_hash"]}
    with pytest.raises(Problem) as caught:
        await ask(scene.researcher, wanted)
    assert caught.value.code == "statement.missing", "the platform itself refuses, as long as it is honest"
    for forged in (asking(wanted, Signer.create("person:li@platform")), asking({**wanted, "target": "another"}, li)):
        with pytest.raises(Problem):
            await scene.researcher.command("POST", "/v1/approvals", {**wanted, "asking": forged})
    # Written past governance: a request in li's name, a genuine approver's genuine decision, governance's own key.
    expires = datetime.now(UTC) + timedelta(hours=1)
    about = {"approval": "in-her-name", **wanted, "requester": "person:li@platform"}
    signed = [decision(world.p.rosters.signer("person:wu@platform"), **about, expires=expires)]
    token = approvals.issue(world.p.identities["governance"], **about, statements=signed, expires=expires)
    statement = "UPDATE federation.federations SET approval = $1, token = $2 WHERE federation = $3"
    await scene.attacker.sql(statement, "in-her-name", token, made["federation"])
    assert await _refused(node, made) == "statement.missing"
    await _over(scene, made)
    forged_one = made["federation"]

    made = await _invited(scene, ("huashan", "renji"), approved=False)
    wanted = {"action": "federation.start", "target": made["federation"], "digest": made["plan_hash"]}
    asked = await ask(scene.researcher, wanted, lambda: li)
    view = await look(scene.approver, asked["approval"])
    assert approvals_client.asked(view, world.p.rosters.present()), "the approver sees who asked, before she signs"
    forged = view.model_copy(update={"requester": "person:zhao@platform"})
    with pytest.raises(Problem):
        approvals_client.asked(forged, world.p.rosters.present())
    await world.decide(scene.approver, asked["approval"])

    async def completed() -> Any:
        return (await scene.researcher.ask(f"/v1/federations/{made['federation']}", FederationView)).state == "completed"

    await until(completed, 60)
    for service in ("governance", "federation", "gateway"):
        await _logged(scene, service)
    _watched(world)
    copy = await _copy(scene, "asked")
    code, faults = await _verified(scene, copy)
    bodies = [json.loads(entry.body) for entry in _entries(copy)]
    named = {bodies[fault["seq"]]["entities"][0]["id"] for fault in faults}
    assert (code, named) == (1, {forged_one}), "the verifier names the forged one, and nothing about the honest one"
    assert any(body["sub"] == "approval.request" and "asking" in body["detail"] for body in bodies)


async def test_two_hospitals_that_were_shown_two_logs_find_it_out_by_what_they_sign(scene: Scene) -> None:
    huashan, renji = scene.nodes["huashan"], scene.nodes["renji"]
    log_key = Identity.load(scene.world.p.folder / "keys" / "log.nk").private_key

    async def looked(node: Node) -> Any:
        return await continuity.present(node.site)

    for node in (huashan, renji):
        await until(lambda node=node: looked(node))
    # The platform shows one of them, and it alone, a history of its own.
    other = note.Checkpoint("medmesh/log", 3, b"\1" * 32)
    async with renji.site.unit() as uow:
        shown = note.sign(other.text(), other.origin, log_key)
        await uow.execute(update(log_views).values(note=shown, size=3))
    made = await _invited(scene, ("huashan", "renji"), approved=True)
    assert await _refused(huashan, made) == "edge.log_forked"
    row = await continuity.present(huashan.site)
    assert (row.fault, note.parse_checkpoint(note.split(row.shown)[0])) == ("edge.log_forked", other), "both signed notes are kept"
    done = await asyncio.to_thread(CliRunner().invoke, edge, ["doctor", "--folder", str(huashan.site.layout.folder)], standalone_mode=False)
    assert done.return_value == 1
    assert "two histories of its log" in done.output
    folder = str(huashan.site.layout.folder)
    done = await asyncio.to_thread(CliRunner().invoke, edge, ["audit", "proof", "--folder", folder], standalone_mode=False)
    assert (done.return_value, done.output.count("medmesh/log\n")) == (1, 2)

    async def alerted() -> bool:
        found = scene.world.p.emitted(AlertRaised)
        return any((one.data.rule, one.data.about) == ("log_refused", "edge:huashan") for one in found)

    await until(alerted)


# --- the log --------------------------------------------------------------------------------------------------------


async def _copy(scene: Scene, name: str) -> Path:
    """The log as an auditor copies it, its checkpoint seen by the witness."""
    folder = scene.world.p.folder / name
    async with await open_door(scene.auditor, "audit", scene.world.audit) as door:
        await export_log(at_the_door(door), folder)
    _witnessed(scene, folder)
    return folder


def _witnessed(scene: Scene, folder: Path) -> None:
    checkpoint = (folder / "checkpoint").read_text()
    text = note.split(checkpoint)[0]
    now = int(datetime.now(UTC).timestamp())
    seen = cosign(text, REGULATOR, scene.world.witness, now)  # type: ignore[attr-defined]
    (folder / "checkpoint").write_text(checkpoint + seen)


async def _verified(scene: Scene, folder: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    """What the offline verifier says who pinned the roster: its exit code and its faults."""
    roster = scene.world.p.folder / "auditors-roster.json"
    roster.write_text(scene.world.p.rosters.book.believed().document())
    arguments = ["verify", "export", "--roster", str(roster), "--pin", scene.world.p.rosters.pin, "--json", *more, str(folder)]
    done = await asyncio.to_thread(CliRunner().invoke, audit, arguments, standalone_mode=False)
    return int(done.return_value), json.loads(done.output)["faults"]


def _entries(folder: Path) -> list[Entry]:
    """The records of a copy."""
    bodies = [json.loads(line) for line in (folder / "bodies.jsonl").read_text().splitlines()]
    leaves: list[bytes] = []
    for number in range(-(-len(bodies) // tiles.WIDTH)):
        width = min(tiles.WIDTH, len(bodies) - number * tiles.WIDTH)
        leaves += tiles.unbundle((folder / tiles.path("entries", number, width)).read_bytes())
    return [Entry(leaf, base64.b64decode(b["salt"]), base64.b64decode(b["body"])) for leaf, b in zip(leaves, bodies, strict=True)]


async def _logged(scene: Scene, service: str) -> None:
    """Everything a service recorded is in the log."""

    async def empty() -> bool:
        return not await scene.world.p.runtimes[service].database.unreceipted()

    await until(empty)


async def test_auditors_and_hospitals_see_what_was_forged_into_the_log_and_a_log_that_was_forked(scene: Scene) -> None:
    p, attacker = scene.world.p, scene.attacker
    await _honest(scene)
    for service in ("governance", "federation", "gateway", "registry"):
        await _logged(scene, service)
    _watched(scene.world)
    for node in scene.nodes.values():
        assert await rosters.refresh(node.site, node.gateway)
    honest = await _copy(scene, "honest")
    kept = p.folder / "kept"
    assert await _verified(scene, honest, "--keep", str(kept)) == (0, [])

    # Forked: the log's own key signs another history, which no witness saw.
    log_key = Identity.load(p.folder / "keys" / "log.nk").private_key
    content = _entries(honest)
    forked = p.folder / "forked"
    write(forked, content[: len(content) // 2], key=log_key, witnesses=False, origin="medmesh/log")
    code, faults = await _verified(scene, forked)
    assert (code, faults[0]["code"]) == (1, "ledger.quorum")
    _witnessed(scene, forked)  # and even if a witness were fooled, who kept a checkpoint is not
    code, faults = await _verified(scene, forked, "--from", str(kept))
    assert (code, faults[0]["code"]) == (1, "ledger.rolled_back")
    await _hospital_sees(scene, log_key)

    # Forged into the genuine log, by the key of the service whose record it is: the tree is whole, the signature is not there.
    token = attacker.approval("model.release", "release-9", "9" * 64)
    statements = tuple(_claims(token)["sts"])
    found = approvals.Approval("forged", "model.release", "release-9", "9" * 64, "person:li@platform", ("person:wu@platform",), statements)
    async with p.runtimes["registry"].unit() as uow:
        about = (Entity("release", "release-9", digest="9" * 64), Entity("model", "mri", "1"))
        uow.audit(AuditEntry("model.release", "E", entities=about, approval=found.evidence(), detail={"version": 1}))
    await _logged(scene, "registry")
    forged = await _copy(scene, "forged")
    code, faults = await _verified(scene, forged)
    assert (code, [(fault["check"], fault["code"], fault["verb"]) for fault in faults]) == (
        1,
        [("signature", "audit.unsigned", "model.release")],
    )
    seq = faults[0]["seq"]
    assert json.loads(_entries(forged)[seq].body)["entities"][0]["id"] == "release-9", "the first that is not signed is named"


def _claims(token: str) -> dict[str, Any]:
    import jwt

    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


async def _hospital_sees(scene: Scene, log_key: Any) -> None:
    """The same with a hospital's own copy and its pinned roster."""
    node = scene.nodes["renji"]
    copy = scene.world.p.folder / "renjis"
    async with node.site.gateway() as gateway:
        await export_log(of_a_hospital(gateway), copy)

    async def verified() -> tuple[int, str]:
        arguments = ["audit", "verify", "--folder", str(node.site.layout.folder), str(copy)]
        done = await asyncio.to_thread(CliRunner().invoke, edge, arguments, standalone_mode=False)
        return int(done.return_value), done.output

    code, output = await verified()
    assert (code, "witness" in output) == (1, True), "its roster demands a witness"
    _witnessed(scene, copy)
    code, output = await verified()
    assert code == 0, output
    text = note.split((copy / "checkpoint").read_text())[0]
    checkpoint = note.parse_checkpoint(text)
    other = note.Checkpoint(checkpoint.origin, checkpoint.size - 1, b"\1" * 32)
    (copy / "checkpoint").write_text(note.sign(other.text(), other.origin, log_key))
    _witnessed(scene, copy)
    code, output = await verified()
    assert code == 1, "what it kept is longer than what it is shown"

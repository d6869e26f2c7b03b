"""The platform's owner as an attacker, and what hospitals and auditors who pinned the roster make of what is forged."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
from click.testing import CliRunner
from sqlalchemy import select
from sqlalchemy.engine import make_url

from medmesh.cli.audit import audit
from medmesh.client import Gateway
from medmesh.client.audit import at_the_door, export_log
from medmesh.client.doors import open_door
from medmesh.contracts.federation import FederationView
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.ledger import note, tiles
from medmesh.ledger.cosignature import cosign, witness_key
from medmesh.security import approvals
from medmesh.security.keys import Identity
from medmesh.security.signing import Signer
from medmesh_edge import consent, intake
from medmesh_edge.node import Node, running
from medmesh_edge.ports import site
from medmesh_edge.tables import tasks
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_registry.service import SERVICE as REGISTRY
from tests.hospitals import enrolled, federation, pacs, state_of, until
from tests.ledgers import Entry
from tests.rosters import decision
from tests.world import World, small_world

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


@asynccontextmanager
async def small_scene(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[Scene]:
    """Two real hospitals with their nodes, and people; see the module."""
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
            folder = await enrolled(world, admin, approver, name, log_every=timedelta(days=1), log_compared_every=timedelta(days=365))
            async with site(folder) as opened:
                await intake.ingest(opened, pacs(world.p.folder, name, 40), "brain")
            nodes[name] = await stack.enter_async_context(running(folder))
        yield Scene(world, Attacker(world, database), researcher, approver, auditor, nodes)


def watched(world: World) -> None:
    """The roster demands a regulator's witness of the log; its key is the test's."""
    world.witness = Identity.create(world.p.folder / "keys" / "witness.nk").private_key  # type: ignore[attr-defined]
    desk = world.p.rosters
    log = desk.present().policy.splitlines()[0]
    vkey = witness_key(REGULATOR, world.witness)  # type: ignore[attr-defined]
    policy = f"{log}\nwitness regulator {vkey}\nquorum regulator\n"
    desk.book = desk.book.edited(datetime.now(UTC), policy=policy).signed(desk.keeper)
    desk.lay_down()


async def invited(scene: Scene, hospitals: tuple[str, ...], *, approved: bool, **changed: Any) -> dict[str, Any]:
    """A federation whose real hospitals accept; who asked for the start, and got it, if anybody."""
    values = {"rounds": 1, "local_steps": 5, "baseline": False, "round_deadline_seconds": 20, **changed}
    values |= {"accept_seconds": 60}
    made = await federation(scene.world, scene.researcher, scene.approver if approved else None, hospitals, **values)
    for name in set(hospitals) & set(scene.nodes):
        node = scene.nodes[name]
        await until(lambda node=node: state_of(node, made))
        await consent.approve(node.site, made["federation"], "doctor-zhao")
        node.site.changed.set()

        async def accepted(node: Node = node) -> bool:
            return await state_of(node, made) not in (None, "", "invited")  # where all have answered it runs already

        await until(accepted)
    return made


async def refusal(node: Node, made: dict[str, Any]) -> str:
    """The code with which a node refused the first round; it trained nothing."""

    async def failed() -> Any:
        async with node.site.unit() as uow:
            rows = await uow.all(select(tasks).where(tasks.c.federation == made["federation"]))
        return rows if rows and rows[0].state not in ("received", "superseded") else None

    rows = await until(failed, 60)
    assert {row.trained for row in rows} == {0}, "nothing was trained"
    return str(rows[0].code or rows[0].state)


async def honestly(scene: Scene) -> None:
    made = await invited(scene, ("huashan", "renji"), approved=True)

    async def completed() -> Any:
        view = await scene.researcher.ask(f"/v1/federations/{made['federation']}", FederationView)
        assert view.state not in ("failed", "cancelled"), view.failure
        return view.state == "completed"

    await until(completed, 60)


async def over(scene: Scene, made: dict[str, Any]) -> None:
    await scene.researcher.command("POST", f"/v1/federations/{made['federation']}/cancel", {"reason": "forged"})


async def copied(scene: Scene, name: str) -> Path:
    """The log as an auditor copies it, its checkpoint seen by the witness."""
    folder = scene.world.p.folder / name
    async with await open_door(scene.auditor, "audit", scene.world.audit) as door:
        await export_log(at_the_door(door), folder)
    witnessed(scene, folder)
    return folder


def witnessed(scene: Scene, folder: Path) -> None:
    checkpoint = (folder / "checkpoint").read_text()
    text = note.split(checkpoint)[0]
    now = int(datetime.now(UTC).timestamp())
    seen = cosign(text, REGULATOR, scene.world.witness, now)  # type: ignore[attr-defined]
    (folder / "checkpoint").write_text(checkpoint + seen)


async def verify_copy(scene: Scene, folder: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    """What the offline verifier says who pinned the roster: its exit code and its faults."""
    roster = scene.world.p.folder / "auditors-roster.json"
    roster.write_text(scene.world.p.rosters.book.believed().document())
    arguments = ["verify", "export", "--roster", str(roster), "--pin", scene.world.p.rosters.pin, "--json", *more, str(folder)]
    done = await asyncio.to_thread(CliRunner().invoke, audit, arguments, standalone_mode=False)
    return int(done.return_value), json.loads(done.output)["faults"]


def entries(folder: Path) -> list[Entry]:
    """The records of a copy."""
    bodies = [json.loads(line) for line in (folder / "bodies.jsonl").read_text().splitlines()]
    leaves: list[bytes] = []
    for number in range(-(-len(bodies) // tiles.WIDTH)):
        width = min(tiles.WIDTH, len(bodies) - number * tiles.WIDTH)
        leaves += tiles.unbundle((folder / tiles.path("entries", number, width)).read_bytes())
    return [Entry(leaf, base64.b64decode(b["salt"]), base64.b64decode(b["body"])) for leaf, b in zip(leaves, bodies, strict=True)]


async def logged(scene: Scene, service: str) -> None:
    """Everything a service recorded is in the log."""

    async def empty() -> bool:
        return not await scene.world.p.runtimes[service].database.unreceipted()

    await until(empty)

"""Who owns the platform forges an approval, a hospital and a request: hospitals that pinned the roster refuse all of it.

The attacker holds the authority's key, every service's NKEY, the release and the log key, and is superuser of PostgreSQL. What he does
not hold are the keys of people, of hospitals and of the roster's keeper. Beside every forgery the same thing done honestly passes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner
from sqlalchemy import select, update
from tests.federations import living
from tests.forging import (
    Scene,
    copied,
    entries,
    honestly,
    invited,
    logged,
    over,
    refusal,
    small_scene,
    verify_copy,
    watched,
)
from tests.hospitals import until
from tests.rosters import acceptance, decision
from tests.unit.serving.models import Authorities, manifest, saved

from medmesh.cli.edge import edge
from medmesh.client import approvals as approvals_client
from medmesh.client.approvals import ask, asking, look
from medmesh.contracts.audit import AlertRaised
from medmesh.contracts.federation import FederationView, RespondInvitation
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.ledger import note
from medmesh.security import approvals
from medmesh.security.authority import new_key, node_request
from medmesh.security.keys import Identity
from medmesh.security.signing import Signer
from medmesh.security.tokens import hospital_token
from medmesh_edge import continuity
from medmesh_edge.node import Node
from medmesh_edge.tables import log_views, releases
from medmesh_federation import inviting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]


@pytest.fixture
async def scene(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[Scene]:
    async with small_scene(servers, private, ports) as made:
        yield made


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


async def _forged_approval(scene: Scene) -> None:
    made = await invited(scene, ("huashan", "renji"), approved=False)
    token = scene.attacker.approval("federation.start", made["federation"], made["plan_hash"])
    statement = "UPDATE federation.federations SET approval = $1, token = $2 WHERE federation = $3"
    await scene.attacker.sql(statement, "forged", token, made["federation"])
    assert [await refusal(node, made) for node in scene.nodes.values()] == ["roster.unknown"] * 2
    await over(scene, made)


async def _invented_hospital(scene: Scene) -> None:
    """A ghost with a genuine certificate, because he has the authority's key, takes part beside one real hospital."""
    p, attacker = scene.world.p, scene.attacker
    key = new_key()
    token = hospital_token(key, p.authority.sign_node(node_request(key, "ghost", "node-1"), "ghost", "node-1"))
    with patch.object(inviting, "check"), patch.object(p.rosters, "known"):  # his platform asks whom he likes
        made = await invited(scene, ("ghost", "huashan"), approved=True)
    signature = acceptance(attacker.ghost, made["federation"], made["plan_hash"])
    answer = RespondInvitation(federation=made["federation"], plan_hash=made["plan_hash"], accept=True, signature=signature)
    refused = await p.send(answer, token)
    assert (refused.problem or {})["code"] == "roster.unknown", "the platform itself refuses, as long as it is honest"
    statement = "UPDATE federation.participants SET state = 'accepted', signature = $1 WHERE federation = $2 AND hospital = 'ghost'"
    await attacker.sql(statement, signature, made["federation"])
    async with living(scene.world.p, "ghost"):
        assert await refusal(scene.nodes["huashan"], made) == "roster.unknown"
    await over(scene, made)


async def test_hospitals_train_and_install_nothing_that_was_forged(scene: Scene) -> None:
    await _releases(scene)
    await _forged_approval(scene)
    await _invented_hospital(scene)
    await honestly(scene)


async def test_nobody_can_be_made_to_have_asked_for_a_federation(scene: Scene) -> None:
    """Wu would approve what li asks for. The platform asks in li's name, and she approves; every hospital refuses nevertheless."""
    world, node = scene.world, scene.nodes["huashan"]
    li = Signer.create("person:li@platform")
    world.p.rosters.add(li.vkey, "requester")
    world.p.rosters.rule(signed_requests=("federation.start",))
    made = await invited(scene, ("huashan", "renji"), approved=False)
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
    assert await refusal(node, made) == "statement.missing"
    await over(scene, made)
    forged_one = made["federation"]

    made = await invited(scene, ("huashan", "renji"), approved=False)
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
        await logged(scene, service)
    watched(world)
    copy = await copied(scene, "asked")
    code, faults = await verify_copy(scene, copy)
    bodies = [json.loads(entry.body) for entry in entries(copy)]
    named = {bodies[fault["seq"]]["entities"][0]["id"] for fault in faults}
    assert (code, named) == (1, {forged_one}), "the verifier names the forged one, and nothing about the honest one"
    assert any(body["sub"] == "approval.request" and "asking" in body["detail"] for body in bodies)


async def test_two_hospitals_that_were_shown_two_logs_find_it_out_by_what_they_sign(scene: Scene) -> None:
    huashan, renji = scene.nodes["huashan"], scene.nodes["renji"]
    log_key = Identity.load(scene.world.p.folder / "keys" / "log.nk").private_key

    for node in (huashan, renji):
        await until(lambda node=node: continuity.present(node.site))  # what both saw at first; they look again in a day
    # The platform shows one of them, and it alone, a history of its own.
    other = note.Checkpoint("medmesh/log", 3, b"\1" * 32)
    async with renji.site.unit() as uow:
        shown = note.sign(other.text(), other.origin, log_key)
        await uow.execute(update(log_views).values(note=shown, size=3))
    made = await invited(scene, ("huashan", "renji"), approved=True)
    assert await refusal(huashan, made) == "edge.log_forked"
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

"""What the platform's log keeps of a forgotten patient: everything, unaltered, and nothing that tells who it was."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.hospitals import enrolled, pacs, until
from tests.world import World, small_world

from medmesh.client.audit import export_log, of_a_hospital, withheld
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.ledger.copies import Folder
from medmesh.ledger.note import verifier_key
from medmesh.ledger.policy import demanding
from medmesh.ledger.verify import Wanted, verify_log
from medmesh.security.keys import Identity
from medmesh_edge import forgetting, intake, patients
from medmesh_edge.node import Node, running

pytestmark = pytest.mark.slow


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports) as made:
        yield made


async def copied(node: Node, folder: Path) -> Path:
    """A copy of the log as the hospital may see it, once it holds all that the node has told."""

    async def shipped() -> bool:
        return not await node.site.database.unreceipted()

    await until(shipped)
    told = 0
    while not told:
        await export_log(of_a_hospital(node.gateway), folder)
        told = sum(1 for _ in Folder(folder).bodies(0, 1 << 62) or ())
    return folder


def whole(node: Node, copy: Path) -> bool:
    signer = Identity.load(node.site.layout.folder.parent / "keys" / "log.nk").private_key.public_key()
    key = verifier_key("medmesh/log", signer)
    report = verify_log(Folder(copy), Wanted(demanding(key), partial=True))
    return bool(report.verified) and not withheld(copy, "xiehe")


async def test_the_log_stays_whole_and_forgets_who_it_was(world: World, private: Path) -> None:
    admin = await world.admin()
    approver = await world.user(admin, "wu", "approver")
    folder = await enrolled(world, admin, approver, "xiehe")
    source = pacs(private, "xiehe", 20)
    async with running(folder) as node:
        await intake.ingest(node.site, source, "brain")
        patient = forgetting.who(node.site, "PID-xiehe-003")
        before = await copied(node, private / "before")
        assert whole(node, before)
        assert [verb for _, _, verb in await forgetting.trace(node.site, patient, before)] == ["patient.ingest"]
        async with node.site.unit() as uow:
            key = (await patients.known(uow, node.site, [patient]))[patient]

        request, done = await forgetting.ask(node.site, patient, "withdrawn", "li")
        assert not done
        await forgetting.approve(node.site, request, "wu")

        after = await copied(node, private / "after")
        assert whole(node, after)
        lines = (after / "bodies.jsonl").read_text().splitlines()
        kept = (before / "bodies.jsonl").read_text().splitlines()
        assert lines[: len(kept)] == kept, "nothing that was recorded has changed"
        with pytest.raises(Problem) as caught:
            await forgetting.trace(node.site, patient, after)
        assert caught.value.code == "edge.patient_unknown"
        records = [(seq, json.loads(body)) for seq, _, body in Folder(after).bodies(0, 1 << 62) or ()]
        told = [record for _, record in records if record["sub"] == "patient.forget"]
        assert [record["detail"]["reason"] for record in told] == ["withdrawn"]
        text = json.dumps(records)
        assert patient not in text and "PID-xiehe-003" not in text
        # Only the key itself, had somebody kept it, would still find the record: it is the link, and it was destroyed.
        assert [verb for _, _, verb in patients.traces(node.site, patient, key, records)] == ["patient.ingest"]
        other = forgetting.who(node.site, "PID-xiehe-004")
        assert [verb for _, _, verb in await forgetting.trace(node.site, other, after)] == ["patient.ingest"]

        # Forgetting is no excuse for a body that is not there.
        (named,) = [n for n, (_, record) in enumerate(records) if record["sub"] == "patient.ingest"]
        (after / "bodies.jsonl").write_text("\n".join(line for n, line in enumerate(lines) if n != named) + "\n")
        assert not whole(node, after)

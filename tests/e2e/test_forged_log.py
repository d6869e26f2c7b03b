"""Who owns the platform forges its log, or shows another one: auditors and hospitals see it.

The attacker is that of `test_forging.py`. Beside every forgery the same thing done honestly passes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.forging import (
    Scene,
    copied,
    entries,
    honestly,
    logged,
    small_scene,
    verify_copy,
    watched,
    witnessed,
)
from tests.ledgers import write

from medmesh.cli.edge import edge
from medmesh.client.audit import export_log, of_a_hospital
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh.ledger import note
from medmesh.security import approvals
from medmesh.security.keys import Identity
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge import roster as rosters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]


@pytest.fixture
async def scene(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[Scene]:
    async with small_scene(servers, private, ports) as made:
        yield made


async def test_auditors_and_hospitals_see_what_was_forged_into_the_log_and_a_log_that_was_forked(scene: Scene) -> None:
    p, attacker = scene.world.p, scene.attacker
    await honestly(scene)
    for service in ("governance", "federation", "gateway", "registry"):
        await logged(scene, service)
    watched(scene.world)
    for node in scene.nodes.values():
        assert await rosters.refresh(node.site, node.gateway)
    honest = await copied(scene, "honest")
    kept = p.folder / "kept"
    assert await verify_copy(scene, honest, "--keep", str(kept)) == (0, [])

    # Forked: the log's own key signs another history, which no witness saw.
    log_key = Identity.load(p.folder / "keys" / "log.nk").private_key
    content = entries(honest)
    forked = p.folder / "forked"
    write(forked, content[: len(content) // 2], key=log_key, witnesses=False, origin="medmesh/log")
    code, faults = await verify_copy(scene, forked)
    assert (code, faults[0]["code"]) == (1, "ledger.quorum")
    witnessed(scene, forked)  # and even if a witness were fooled, who kept a checkpoint is not
    code, faults = await verify_copy(scene, forked, "--from", str(kept))
    assert (code, faults[0]["code"]) == (1, "ledger.rolled_back")
    await _hospital_sees(scene, log_key)

    # Forged into the genuine log, by the key of the service whose record it is: the tree is whole, the signature is not there.
    token = attacker.approval("model.release", "release-9", "9" * 64)
    statements = tuple(_claims(token)["sts"])
    who, until = ("person:li@platform", ("person:wu@platform",)), datetime.now(UTC) + timedelta(hours=1)
    found = approvals.Approval("forged", "model.release", "release-9", "9" * 64, *who, statements, until)
    async with p.runtimes["registry"].unit() as uow:
        about = (Entity("release", "release-9", digest="9" * 64), Entity("model", "mri", "1"))
        uow.audit(AuditEntry("model.release", "E", entities=about, approval=found.evidence(), detail={"version": 1}))
    await logged(scene, "registry")
    forged = await copied(scene, "forged")
    code, faults = await verify_copy(scene, forged)
    assert (code, [(fault["check"], fault["code"], fault["verb"]) for fault in faults]) == (
        1,
        [("signature", "audit.unsigned", "model.release")],
    )
    seq = faults[0]["seq"]
    assert json.loads(entries(forged)[seq].body)["entities"][0]["id"] == "release-9", "the first that is not signed is named"


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
    witnessed(scene, copy)
    code, output = await verified()
    assert code == 0, output
    text = note.split((copy / "checkpoint").read_text())[0]
    checkpoint = note.parse_checkpoint(text)
    other = note.Checkpoint(checkpoint.origin, checkpoint.size - 1, b"\1" * 32)
    (copy / "checkpoint").write_text(note.sign(other.text(), other.origin, log_key))
    witnessed(scene, copy)
    code, output = await verified()
    assert code == 1, "what it kept is longer than what it is shown"

"""A hospital's node that is killed: it goes on where it was, tells everything once and trains nothing twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.harness import EVENTS, KILLS, SETTLE_SECONDS, Stage, until
from tests.faults.hospital import Process, images
from tests.packages import TINY

from medmesh.client.federation import create_federation
from medmesh.learning import isolation
from medmesh.store.unit import AuditEntry
from medmesh_edge import consent
from medmesh_edge.outgoing import queue
from medmesh_edge.ports import site

pytestmark = [pytest.mark.faults, pytest.mark.slow]

REQUESTS = EVENTS // 10


async def killed(node: Process, progress: Callable[[], int], total: int, seed: int, *command: str) -> list[int]:
    """Start it, kill it at moments drawn from `seed`, start it again; answers how far it was each time."""
    dice = random.Random(seed)
    made = []
    node.start(*command)
    for place in sorted(dice.uniform(0.05, 0.85) * total for _ in range(KILLS)):

        async def there(place: float = place) -> bool:
            return progress() >= place

        await node.until(there, SETTLE_SECONDS, 0.01)
        await asyncio.sleep(dice.uniform(0, 0.2))
        assert node.running, "it ended before it could be killed"
        node.kill()
        made.append(progress())
        node.start(*command)
    return made


@pytest.mark.timeout(1200)
async def test_intake_goes_on_where_it_was_killed(stage: Stage, tmp_path: Path) -> None:
    node = Process(await stage.enrol(tmp_path / "ruijin", "ruijin"))
    source = await asyncio.to_thread(images, tmp_path / "pacs", EVENTS, 1)

    def stored() -> int:
        return node.number("SELECT count(*) FROM items")

    async def ended() -> bool:
        return not node.running

    try:
        kills = await killed(node, stored, EVENTS, 20_263, "ingest", str(source), "--dataset", "brain", "--json")
        await node.until(ended, SETTLE_SECONDS)
    finally:
        node.stop()
    print(f"killed at {kills}")
    assert node.process is not None
    assert node.process.returncode == 0, (node.folder / "process.log").read_text()[-2000:]
    assert all(0 < kill < EVENTS for kill in kills)
    assert node.rows("PRAGMA integrity_check") == [("ok",)]
    assert node.rows("SELECT count(*), count(DISTINCT item), count(DISTINCT object) FROM items") == [(EVENTS, EVENTS, EVENTS)]
    assert node.rows("SELECT label, count(*) FROM items GROUP BY 1") == [("none", EVENTS // 2), ("tumour", EVENTS // 2)]
    objects = [node.folder / "objects" / digest[:2] / f"{digest}.key" for (digest,) in node.rows("SELECT object FROM items")]
    assert all(path.stat().st_size > 0 for path in objects)
    # Only the run that came to its end says that it took something in.
    assert node.number("SELECT count(*) FROM audit_outbox WHERE CAST(body AS TEXT) LIKE '%\"edge.ingest\"%'") == 1
    assert node.number("SELECT count(*) FROM items WHERE patient NOT IN (SELECT patient FROM patients)") == 0


async def test_what_a_node_tells_arrives_once(stage: Stage, tmp_path: Path) -> None:
    node = Process(await stage.enrol(tmp_path / "zhongshan", "zhongshan"))
    async with site(node.folder) as opened:
        for start in range(0, EVENTS, 100):
            async with opened.unit() as uow:
                for number in range(start, start + 100):
                    uow.audit(AuditEntry("edge.ingest", "C", detail={"number": number}))
        keys = []
        async with opened.unit() as uow:
            for number in range(REQUESTS):
                descriptor = {"dataset": f"set-{number}", "version": 1, "modality": "MR", "samples": 20, "patients": 20, "labels": {}}
                keys.append(await queue(uow, "/v1/catalogue", {"descriptor": descriptor}))

    def told() -> int:
        shipped = EVENTS - node.number("SELECT count(*) FROM audit_outbox")
        return shipped + 5 * (REQUESTS - node.number("SELECT count(*) FROM requests"))

    try:
        kills = await killed(node, told, EVENTS + 5 * REQUESTS, 20_264)

        async def finished() -> bool:
            return told() == EVENTS + 5 * REQUESTS

        await until(finished, SETTLE_SECONDS)
    finally:
        node.stop()
    print(f"killed at {kills}")
    await stage.settled()
    assert node.rows("SELECT state, count(*) FROM requests GROUP BY 1") == [], "none was refused"
    operations = await stage.sql("SELECT idempotency_key, succeeded FROM gateway.operations WHERE idempotency_key = ANY($1)", keys)
    assert Counter(row["idempotency_key"] for row in operations) == Counter(keys)
    assert all(row["succeeded"] for row in operations)
    records = [record for record in await stage.log(tmp_path / "log") if record["src"]["service"] == "edge:zhongshan"]
    # The node has something of its own to tell, too: of its programs, for example.
    assert [record["n"] for record in records] == list(range(1, len(records) + 1))
    assert [record["detail"]["number"] for record in records if record["sub"] == "edge.ingest"] == list(range(EVENTS))


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
async def test_no_round_is_trained_again_once_its_update_was_durable(stage: Stage, tmp_path: Path) -> None:
    names = ("tongji", "xiehe")
    nodes = {name: Process(await stage.enrol(tmp_path / name, name)) for name in names}
    rounds, dice = 4, random.Random(20_265)
    try:
        for place, node in enumerate(nodes.values()):
            node.start("ingest", str(images(tmp_path / f"pacs-{place}", 60, 10 + place)), "--dataset", "brain")

        async def taken_in() -> bool:
            return not any(node.running for node in nodes.values())

        await until(taken_in, 60)
        for node in nodes.values():
            node.start()
        async with stage.door("li") as li, stage.door("wu") as wu:
            made = await create_federation(
                li,
                TINY,
                name="killed",
                purpose="a node is killed in its rounds",
                initiator="person:li@platform",
                hospitals=names,
                accept_seconds=30,
                rounds=rounds,
                local_steps=6000,
                batch_size=8,
                learning_rate="0.5",
                seed=3,
                min_participants=2,
                round_deadline_seconds=60,
                lease_seconds=30,
                rehearsal=False,
            )
            body = {"action": "federation.start", "target": made["federation"], "digest": made["plan_hash"]}
            asked = await li.command("POST", "/v1/approvals", body)
            await stage.decide(wu, asked["approval"])
            for node in nodes.values():
                await until(_has(node, "SELECT count(*) FROM federations"), 30)
                async with site(node.folder) as opened:
                    await consent.approve(opened, made["federation"], "doctor-zhao")

            victim = nodes["xiehe"]
            at_kill: dict[int, tuple[str, int]] = {}
            for number in range(1, rounds + 1):
                # While it trains, or as soon as the update is durable: turn about.
                moment = "trained > 0" if number % 2 else "state IN ('trained', 'sent')"
                await until(_has(victim, f"SELECT count(*) FROM tasks WHERE round = {number} AND {moment}"), 60, 0.003)
                await asyncio.sleep(dice.uniform(0, 0.05) if number % 2 else 0)
                victim.kill()
                at_kill.update({r: (s, t) for r, s, t in victim.rows("SELECT round, state, trained FROM tasks WHERE round = ?", number)})
                victim.start()

            async def ended() -> Any:
                view = await li.request("GET", f"/v1/federations/{made['federation']}")
                assert view["state"] not in ("failed", "cancelled"), view["failure"]
                return view if view["state"] == "completed" else None

            view = await until(ended, 60)
        print(f"at the kills: {at_kill}")
        trained: dict[int, int] = dict(victim.rows("SELECT round, trained FROM tasks"))
    finally:
        for node in nodes.values():
            node.stop()
    assert {r["round"] for r in view["rounds"] if r["state"] == "committed"} == set(range(1, rounds + 1))
    durable = {number for number, (state, _) in at_kill.items() if state != "received"}
    assert durable, "no kill came after an update was durable"
    assert {number: trained[number] for number in durable} == dict.fromkeys(durable, 1)
    # A round that was killed in the middle is trained once more; the platform took one answer of each.
    assert {trained[number] for number in set(trained) - durable} <= {1, 2}
    taken = await stage.sql(
        "SELECT round, count(*) AS n FROM federation.answers WHERE federation = $1 AND hospital = 'xiehe' GROUP BY 1", made["federation"]
    )
    assert {row["round"]: row["n"] for row in taken} == dict.fromkeys(range(1, rounds + 1), 1)


def _has(node: Process, query: str) -> Callable[[], Awaitable[bool]]:
    async def has() -> bool:
        return node.number(query) > 0

    return has

"""The gateway over real HTTPS: sessions, commands, objects, a hospital's inbox, and what it refuses."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from tests.world import World, small_world

from medmesh.client import Gateway, download, upload
from medmesh.client.credentials import Anonymous, Node, Person
from medmesh.contracts.federation import FederationFailed
from medmesh.contracts.governance import Hospitals
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.authority import node_request


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports) as made:
        yield made


async def test_people_sign_in_act_within_their_roles_and_sign_out(world: World) -> None:
    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    with pytest.raises(Problem) as caught:
        await researcher.request("GET", "/v1/users")
    assert caught.value.code == "access.denied"
    assert (await admin.ask("/v1/hospitals", Hospitals)).hospitals == ()
    await researcher.raw("DELETE", "/v1/sessions")
    with pytest.raises(Problem) as caught:
        await researcher.request("GET", "/v1/hospitals")
    assert caught.value.status == 401
    with pytest.raises(Problem) as caught:
        await world.anybody.request("GET", "/v1/hospitals")
    assert caught.value.code == "actor.missing"


async def test_a_command_repeated_with_its_key_has_one_effect_and_the_owners_refusal_comes_back(world: World) -> None:
    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    body = {"action": "federation.start", "target": "fed-1", "digest": "0" * 64}
    first, second = await asyncio.gather(
        researcher.command("POST", "/v1/approvals", body, key="a-fixed-key-1"),
        asyncio.sleep(0.3, None),
    )
    assert second is None
    assert await researcher.command("POST", "/v1/approvals", body, key="a-fixed-key-1") == first
    with pytest.raises(Problem) as caught:
        await researcher.command("POST", "/v1/approvals", {**body, "action": "anything"})
    assert caught.value.code == "governance.not_approvable"
    with pytest.raises(Problem) as caught:
        await researcher.command("POST", "/v1/approvals", {**body, "digest": "short"})
    assert caught.value.code == "request.invalid"
    assert "digest" in str(caught.value)
    chinese = world.anybody.acting_as(researcher.credentials)
    chinese.language = "zh"
    answer = await chinese._http.get("/v1/nowhere", headers={"Accept-Language": "zh-CN"})
    assert answer.json()["title"] == "路径 /v1/nowhere 不存在。"


async def test_objects_go_up_and_down_in_pieces(world: World, private: Path) -> None:
    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    data = os.urandom(20 * 2**20)
    (private / "data").write_bytes(data)
    steps: list[int] = []
    ref = await upload(researcher, private / "data", progress=lambda done, total: steps.append(done))
    assert steps == [8 * 2**20, 16 * 2**20, 20 * 2**20]
    assert await upload(researcher, private / "data") == ref
    (private / "copy.part").write_bytes(data[: 5 * 2**20])
    await download(researcher, ref, private / "copy")
    assert (private / "copy").read_bytes() == data
    with pytest.raises(Problem) as caught:
        await download(researcher, ref.model_copy(update={"sha256": "0" * 64}), private / "none")
    assert caught.value.code == "objects.missing"
    with pytest.raises(Problem) as caught:
        await download(admin, ref, private / "forbidden")
    assert caught.value.code == "access.denied"


async def test_a_hospital_reads_its_own_inbox_in_order_and_goes_on_after_its_cursor(world: World) -> None:
    async with world.node("renji") as renji, world.node("huashan") as huashan:
        for n in range(5):
            await world.p.publish(FederationFailed(federation=f"f{n}", code="x", hospitals=("renji",)), source="federation")
        await world.p.publish(FederationFailed(federation="both", code="x", hospitals=("huashan", "renji")), source="federation")
        got: list[tuple[int, str]] = []
        async with asyncio.timeout(20):
            async for cursor, event in renji.inbox(0):
                assert "actor" not in event
                got.append((cursor, event["data"]["federation"]))
                if len(got) == 6:
                    break
        assert got == [(1, "f0"), (2, "f1"), (3, "f2"), (4, "f3"), (5, "f4"), (6, "both")]
        assert [cursor for cursor, _ in await renji.poll(4, 0)] == [5, 6]
        assert [event["data"]["federation"] for _, event in await huashan.poll(0, 5)] == ["both"]
        waiting = asyncio.create_task(renji.poll(6, 20))
        await asyncio.sleep(0.3)
        await world.p.publish(FederationFailed(federation="late", code="x", hospitals=("renji",)), source="federation")
        assert [cursor for cursor, _ in await asyncio.wait_for(waiting, 5)] == [7]


async def test_a_request_of_a_node_needs_its_certificate_its_signature_and_is_good_once(world: World) -> None:
    async with world.node("renji") as renji:
        credentials = renji.credentials
        assert isinstance(credentials, Node)
        headers = credentials.headers("POST", "/v1/federations/f/answer", b"{}")
        first = await renji._http.post("/v1/federations/f/answer", content=b"{}", headers=headers)
        assert first.json()["code"] == "request.invalid"
        again = await renji._http.post("/v1/federations/f/answer", content=b"{}", headers=headers)
        assert again.json()["code"] == "security.request_replayed"
        altered = await renji._http.post("/v1/federations/f/answer", content=b'{"accept":true}', headers=headers)
        assert altered.json()["code"] == "security.request_unsigned"
        world.p.hospital("huashan")
        thief = renji.acting_as(Node(*world.p.nodes["huashan"]))
        with pytest.raises(Problem) as caught:
            await thief.poll(0, 0)
        assert caught.value.code == "security.certificate_foreign"
    bare = world.anybody.acting_as(Node(*world.p.nodes["renji"]))
    with pytest.raises(Problem) as caught:
        await bare.poll(0, 0)
    assert caught.value.code == "security.certificate_needed"


async def test_a_disk_that_fills_up_refuses_the_piece_and_the_upload_goes_on_when_there_is_room(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    researcher = await world.user(await world.admin(), "li", "researcher")
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(3_000_000))
    whole, room = os.pwrite, 1_000_000

    def limited(descriptor: int, data: bytes, offset: int) -> int:
        fits = max(0, min(len(data), room - offset))
        if not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(descriptor, data[:fits], offset)

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", limited)
        with pytest.raises(Problem) as caught:
            await upload(researcher, path)
    assert (caught.value.code, caught.value.status) == ("objects.full", 507)
    ref = await upload(researcher, path)
    assert (await download(researcher, ref, tmp_path / "back")).read_bytes() == path.read_bytes()


async def test_an_expired_certificate_is_named_before_anything_is_sent_and_opens_nothing(world: World) -> None:
    world.p.hospital("renji")
    key, _ = world.p.nodes["renji"]
    past = datetime.now(UTC) - timedelta(days=100)
    world.p.nodes["renji"] = key, world.p.authority.sign_node(node_request(key, "renji", "node-1"), "renji", "node-1", now=past)
    async with world.node("renji") as renji:
        with pytest.raises(Problem) as caught:
            await renji.poll(0, 0)
        assert caught.value.code == "security.certificate_expired"
        with pytest.raises(httpx.TransportError):
            await renji._http.get("/health/live")


async def test_every_refusal_is_in_the_log_and_an_auditor_proves_a_record_offline(world: World) -> None:
    import base64

    from medmesh.ledger import proof
    from medmesh.ledger.leaf import commitment, decode

    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    auditor = await world.user(admin, "qian", "auditor")
    with pytest.raises(Problem):
        await researcher.request("GET", "/v1/users")
    token = await auditor.request("POST", "/v1/tokens/audit")
    async with Gateway(world.audit, ca=world.ca, credentials=Person(token["token"])) as door:
        async with asyncio.timeout(15):
            while not (found := (await door.request("GET", "/v1/events", query={"verb": "access.denied"}))["events"]):
                await asyncio.sleep(0.2)
        record = found[0]["record"]
        assert record["agents"][0]["who"] == "person:li"
        assert record["detail"] == {"action": "user.list"}
        for query, expected in (({"actor": "person:li"}, 1), ({"entity": "user:qian"}, 1), ({"entity": "user:nobody"}, 0)):
            matching = await door.request("GET", "/v1/events", query=query)
            assert (len(matching["events"]) >= 1) == bool(expected), query
        evidence = await door.request("GET", f"/v1/events/{found[0]['seq']}/proof")
        key = world.p.runtimes["audit"].ports.sequencer.vkey
        leaf, salt, body = (base64.b64decode(evidence[name]) for name in ("leaf", "salt", "body"))
        assert proof.verify(evidence["proof"], leaf, key).size > found[0]["seq"]
        assert decode(leaf).commit == commitment(salt, body)
        with pytest.raises(Problem):
            proof.verify(evidence["proof"], leaf.replace(b"commit", b"Commit"), key)
        nobody = door.acting_as(Anonymous())
        with pytest.raises(Problem) as caught:
            await nobody.request("GET", "/v1/events")
        assert caught.value.code == "actor.missing"

"""Inference on real servers: what is served was signed, approved and unaltered; every answer is recorded."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.platform import Platform, platform
from tests.unit.serving.models import CLASSES, SIZE, Authorities, graph, manifest

from medmesh.contracts.inference import ListServed, ModelRejected, ModelServing, ServedModels
from medmesh.contracts.labels import LabelChanged, SecurityLabel
from medmesh.contracts.registry import Manifest, ModelReleased, ModelWithdrawn
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security import possession
from medmesh.security.keys import Identity
from medmesh.security.labels import INTERNAL, Label, Level
from medmesh.security.tokens import Actor, person_token
from medmesh.service.runtime import running
from medmesh.serving.onnxruntime_session import Session
from medmesh.serving.repository import Repository
from medmesh_inference.service import SERVICE

MODEL = "lung-nodule"
IMAGES = np.random.default_rng(1).normal(size=(2, 1, SIZE, SIZE)).astype(np.float32)
BODY = {"inputs": [{"name": "image", "shape": [2, 1, SIZE, SIZE], "datatype": "FP32", "data": IMAGES.ravel().tolist()}]}


class Inference:
    """The service, its door, and a registry's keys."""

    def __init__(self, p: Platform, port: int) -> None:
        self.p = p
        self.authorities = Authorities(Identity.load(p.folder / "keys" / "release.nk"), p.identities["governance"])
        p.rosters.add(self.authorities.approver.vkey, "approver")
        self.key = Ed25519PrivateKey.generate()
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, event_hooks={"request": [self.prove]})

    async def prove(self, request: httpx.Request) -> None:
        """As a client does with each request: the token is bound to its key."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind == "DPoP":
            request.headers["dpop"] = possession.prove(self.key, request.method, str(request.url), token)

    def bearer(self, *roles: str, audience: str = "inference", organisation: str = "renji", clearance: Label = INTERNAL) -> dict[str, str]:
        bound = possession.thumbprint(self.key.public_key())
        who = Actor("person", "chen", organisation, frozenset(roles), clearance=clearance, key=bound)
        return {"authorization": f"DPoP {person_token(self.p.identities['governance'], who, audience=audience)}"}

    async def infer(self, version: int | None = None, headers: dict[str, str] | None = None) -> httpx.Response:
        path = f"/v2/models/{MODEL}" + ("" if version is None else f"/versions/{version}")
        return await self.http.post(f"{path}/infer", json=BODY, headers=headers or self.bearer("clinician"))

    async def model(self, version: int, **options: Any) -> Manifest:
        """A graph in the kept store and its manifest."""
        path = self.p.folder / f"{version}.onnx"
        path.write_bytes(graph(seed=version, **options).SerializeToString())
        await self.p.stores.kept.put(path.read_bytes())
        return manifest(path, version)

    async def release(self, version: int, **options: Any) -> Manifest:
        """Release a version and wait until it is served."""
        made = await self.model(version, **options)
        await self.p.publish(self.authorities.released(made, release=f"release-{version}"), source="registry")
        await self.p.wait(ModelServing, lambda found: found.data.version == version)
        return made

    async def rejected(self, event: ModelReleased) -> str:
        """Publish a release that must be refused; answers why it was."""
        await self.p.publish(event, source="registry")
        found = await self.p.wait(ModelRejected, lambda found: found.data.release == event.release)
        return found.data.code

    async def withdraw(self, version: int) -> None:
        await self.p.publish(ModelWithdrawn(model=MODEL, version=version, reason="recalled", hospitals=()), source="registry")
        async with asyncio.timeout(20):
            while not [r for r in await self.p.audited("inference") if r["sub"] == "model.withdraw"]:
                await asyncio.sleep(0.01)

    async def served(self) -> list[tuple[int, str]]:
        answer = await self.p.ask(ListServed(), ServedModels, self.p.person("li", "researcher"))
        return [(found.version, found.state) for found in answer.models]


@pytest.fixture
async def inference(servers: RunningServers, private: Path) -> AsyncIterator[Inference]:
    ports = Ports(private / "ports.json")
    (port,) = ports.take("inference")
    async with platform(servers, private, SERVICE, settings={"inference": {"port": port}}) as p:
        made = Inference(p, port)
        async with made.http:
            yield made
    ports.close()


async def test_a_release_is_verified_served_answered_for_and_recorded(inference: Inference) -> None:
    made = await inference.release(1)
    answer = await inference.infer()
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output for output in answer.json()["outputs"]}
    expected = Session(inference.p.folder / "1.onnx").run(IMAGES)
    np.testing.assert_allclose(np.array(outputs["logits"]["data"]).reshape(2, 3), expected, rtol=1e-5, atol=1e-6)
    assert outputs["label"]["data"] == [CLASSES[i] for i in expected.argmax(axis=1)]
    assert await inference.served() == [(1, "serving")]

    records = {record["sub"]: record for record in await inference.p.audited("inference")}
    assert records["model.serve"]["entities"][0] == {"type": "model", "id": MODEL, "ver": "1", "digest": made.onnx.sha256}
    record = records["inference.infer"]
    assert (record["act"], record["out"], record["agents"][0]["who"]) == ("E", 0, "person:chen")
    assert record["entities"] == [{"type": "model", "id": MODEL, "ver": "1", "digest": made.onnx.sha256}]
    assert record["detail"] == {"inputs": 2}, "how many, and nothing of what they were or what was found"


async def test_only_who_may_infer_gets_an_answer(inference: Inference) -> None:
    await inference.release(1)
    stranger = await inference.http.post(f"/v2/models/{MODEL}/infer", json=BODY)
    assert (stranger.status_code, stranger.json()["code"]) == (401, "actor.missing")
    elsewhere = await inference.infer(headers=inference.bearer("clinician", audience="medmesh"))
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (401, "security.token_audience")
    auditor = await inference.infer(headers=inference.bearer("auditor"))
    assert (auditor.status_code, auditor.json()["code"]) == (403, "access.denied")
    assert (await inference.http.get("/v2/health/ready")).status_code == 200
    records = [(r["agents"][0]["who"], r["sub"], r["why"]) for r in await inference.p.audited("inference")]
    nobody = [("service:inference", "access.unproven", code) for code in ("actor.missing", "security.token_audience")]
    assert records[-3:] == [*nobody, ("person:chen", "access.denied", "access.denied")]


async def test_a_model_answers_only_whom_its_label_and_its_release_let_and_the_label_follows_the_registrys(inference: Inference) -> None:
    await inference.release(1)
    other = inference.bearer("clinician", organisation="xiehe")
    assert (await inference.infer(headers=other)).status_code == 404, "it was not released to them"
    assert (await inference.http.get(f"/v2/models/{MODEL}", headers=other)).status_code == 404
    assert (await inference.infer()).status_code == 200
    raised = LabelChanged(service="registry", kind="model", id=f"{MODEL}/1", label=SecurityLabel(level="sensitive"))
    await inference.p.publish(raised, source="registry")
    async with asyncio.timeout(20):
        while (await inference.infer()).status_code != 404:
            await asyncio.sleep(0.05)
    assert (await inference.infer(headers=inference.bearer("clinician", clearance=Label(Level.SENSITIVE)))).status_code == 200
    assert await inference.served() == [], "the researcher who asks is cleared for internal"
    refused = [r for r in await inference.p.audited("inference") if r["sub"] == "access.denied"]
    assert [r["policy"]["rules"][-1] for r in refused] == ["object.organisation", "object.organisation", "label"]
    done = [r for r in await inference.p.audited("inference") if r["sub"] == "inference.infer" and r["out"] == 0]
    assert done[-1]["policy"]["rules"] == ["label:sensitive", "role:clinician", "object.permit"]


async def test_a_newer_release_takes_over_and_an_older_one_does_not(inference: Inference) -> None:
    await inference.release(2)
    await inference.release(3)
    assert (await inference.infer()).json()["model_version"] == "3"
    assert (await inference.infer(2)).status_code == 404
    assert await inference.rejected(inference.authorities.released(await inference.model(1), release="release-1")) == "serving.older"
    assert await inference.served() == [(3, "serving")]


async def test_whatever_does_not_verify_is_rejected_and_what_was_served_stays(inference: Inference) -> None:
    await inference.release(1)
    good = await inference.model(2)
    released = inference.authorities.released
    forged = base64.b64encode(Identity.create(inference.p.folder / "forger.nk").sign(b"x")).decode()
    assert await inference.rejected(released(good, release="a", signature=forged)) == "serving.signature"
    assert await inference.rejected(released(good, release="b", approval="")) == "serving.approval"
    missing = good.model_copy(update={"onnx": good.onnx.model_copy(update={"sha256": "0" * 64})})
    assert await inference.rejected(released(missing, release="c")) == "objects.missing"
    assert await inference.rejected(released(await inference.model(3, bias=float("nan")), release="d")) == "serving.unhealthy"
    altered = await inference.model(4)
    (good_place, place) = (inference.p.folder / "objects" / "kept" / o.sha256[:2] / f"{o.sha256}.key" for o in (good.onnx, altered.onnx))
    place.write_bytes(good_place.read_bytes())
    assert await inference.rejected(released(altered, release="e")) == "keyring.refused", "another model under its name"

    assert (await inference.infer()).json()["model_version"] == "1"
    records = [r for r in await inference.p.audited("inference") if r["sub"] == "model.reject"]
    assert [r["why"] for r in records] == [
        "serving.signature",
        "serving.approval",
        "objects.missing",
        "serving.unhealthy",
        "keyring.refused",
    ]
    assert {r["out"] for r in records} == {8}


async def test_a_bad_copy_of_its_event_does_not_take_a_release_out_of_service(inference: Inference) -> None:
    made = await inference.release(1)
    await inference.rejected(inference.authorities.released(made, release="release-1", approval=""))
    assert await inference.served() == [(1, "serving")]


async def test_a_withdrawn_version_answers_nobody_and_does_not_come_back(inference: Inference) -> None:
    await inference.release(1)
    made = await inference.release(2)
    await inference.withdraw(2)
    answer = await inference.infer()
    assert (answer.status_code, answer.json()["code"]) == (404, "serving.not_served"), "nor does the version before answer instead"
    assert await inference.served() == []
    assert await inference.rejected(inference.authorities.released(made, release="late")) == "serving.withdrawn"
    await inference.p.publish(inference.authorities.released(await inference.model(1), release="again"), source="registry")
    await inference.p.wait(ModelServing, lambda found: found.data.release == "again")
    assert (await inference.infer()).json()["model_version"] == "1", "an older version comes back by a release of its own"


async def test_an_instance_with_an_empty_or_a_manipulated_disk_serves_what_was_released(inference: Inference) -> None:
    made = await inference.release(1)
    first = inference.p.runtimes["inference"].settings
    second = first.model_copy(update={"state": inference.p.folder / "state" / "second", "port": 0, "reconcile_seconds": 0.05})
    evil = inference.p.folder / "evil.onnx"
    evil.write_bytes(graph(seed=66).SerializeToString())
    planted = Repository(second.state / "models")
    planted.install(manifest(evil, 1), evil, "release-1")  # in the name of the real release
    planted.install(manifest(evil, 7, model="never-released"), evil, "release-7")

    async with running(SERVICE, second) as runtime:
        repository = runtime.ports.repository
        async with asyncio.timeout(20):
            while not [found for found in repository.list() if found.state == "active"]:
                await asyncio.sleep(0.01)
        assert [(found.model, found.version, found.state) for found in repository.list()] == [(MODEL, 1, "active")]
        assert repository.active(MODEL).manifest == made
        with pytest.raises(Problem):
            repository.active("never-released")

        # What the other instance heard of a withdrawal holds here too, before this one's folder follows.
        await inference.withdraw(1)
        async with asyncio.timeout(20):
            while repository.list():
                await asyncio.sleep(0.01)


async def test_an_answer_of_a_version_that_was_withdrawn_meanwhile_does_not_leave(inference: Inference) -> None:
    await inference.release(1)
    repository = inference.p.runtimes["inference"].ports.repository
    kept = inference.p.folder / "kept"
    shutil.copytree(inference.p.folder / "state" / "inference" / "models", kept)
    await inference.withdraw(1)
    repository._served[MODEL] = Repository(kept).active(MODEL)  # as on an instance that has not heard of it
    answer = await inference.infer()
    assert (answer.status_code, answer.json()["code"]) == (410, "serving.withdrawn")
    records = [r for r in await inference.p.audited("inference") if r["sub"] == "inference.infer"]
    assert [(r["out"], r["why"]) for r in records] == [(4, "serving.withdrawn")], "a refusal and no answer"


async def test_no_value_of_an_image_reaches_an_audit_record(inference: Inference) -> None:
    await inference.release(1)
    marked = json.loads(json.dumps(BODY))
    marked["id"] = "KANARY-77"
    marked["inputs"][0]["data"][0] = 123456.789
    path = f"/v2/models/{MODEL}/infer"
    assert (await inference.http.post(path, json=marked, headers=inference.bearer("clinician"))).status_code == 200
    text = json.dumps(await inference.p.audited("inference"))
    assert "inference.infer" in text
    assert "KANARY" not in text
    assert "123456" not in text

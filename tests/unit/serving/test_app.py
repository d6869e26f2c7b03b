"""The protocol's routes over a real repository."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import Request
from tests.unit.serving.models import CLASSES, SIZE, manifest, saved

from medmesh.errors import Problem
from medmesh.security.tokens import Actor
from medmesh.service.http import new_application
from medmesh.serving import app as serving
from medmesh.serving.repository import Repository, Served

MODEL = "/v2/models/lung-nodule"
WHO = Actor("person", "chen", "renji", frozenset({"clinician"}))


class Door:
    """A repository, its routes, and what was recorded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = Repository(folder / "models")
        self.recorded: list[tuple[str, int, int]] = []
        self.refusals: list[tuple[str, int | None, str]] = []
        self.fail = False
        self.hidden: set[int] = set()
        application = new_application("test")
        application.include_router(serving.router(self.repository, self.authorise, self.admit, self.record, self.refused))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://x", headers={"authorization": "yes"})

    async def authorise(self, request: Request) -> Actor:
        if request.headers.get("authorization") != "yes":
            raise Problem("actor.missing", type="inference")
        return WHO

    async def admit(self, who: Actor, served: Served) -> None:
        if served.manifest.version in self.hidden:
            raise Problem("request.not_found", kind="model version", id=str(served.manifest.version))

    async def record(self, who: Actor, served: Served, inputs: int) -> None:
        if self.fail:
            raise Problem("request.failed")
        self.recorded.append((who.text, served.manifest.version, inputs))

    async def refused(self, who: Actor, served: Served | None, problem: Problem) -> None:
        self.refusals.append((who.text, served.manifest.version if served else None, problem.code))

    def install(self, version: int, **options: Any) -> Served:
        path = saved(self.folder, f"{version}.onnx", seed=version, **options)
        return self.repository.install(manifest(path, version), path, f"release-{version}")


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    made = Door(tmp_path)
    async with made.client:
        yield made


def images(number: int) -> Any:
    return np.random.default_rng(number).normal(size=(number, 1, SIZE, SIZE)).astype(np.float32)


def body(array: Any, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
    return {"id": "42", "inputs": [tensor], **changes}


async def test_an_inference_answers_logits_probabilities_and_labels_and_is_recorded(door: Door) -> None:
    served = door.install(1)
    answer = await door.client.post(f"{MODEL}/infer", json=body(images(3)))
    assert answer.status_code == 200
    found = answer.json()
    assert (found["model_name"], found["model_version"], found["id"]) == ("lung-nodule", "1", "42")
    outputs = {output["name"]: output for output in found["outputs"]}
    assert list(outputs) == ["logits", "probabilities", "label"]
    logits = np.array(outputs["logits"]["data"]).reshape(outputs["logits"]["shape"])
    np.testing.assert_allclose(logits, served.session.run(images(3)), rtol=1e-5, atol=1e-6)
    probabilities = np.array(outputs["probabilities"]["data"]).reshape(3, 3)
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-5)
    assert outputs["label"] == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [3],
        "data": [CLASSES[i] for i in probabilities.argmax(axis=1)],
    }
    assert door.recorded == [("person:chen@renji", 1, 3)]


async def test_metadata_and_health_follow_the_protocol(door: Door) -> None:
    door.install(2)
    assert (await door.client.get("/v2")).json()["name"] == "medmesh"
    assert (await door.client.get("/v2/health/live")).json() == {"live": True}
    assert (await door.client.get("/v2/health/ready")).json() == {"ready": True}
    for path in (MODEL, f"{MODEL}/versions/2"):
        found = (await door.client.get(path)).json()
        assert (found["name"], found["versions"], found["platform"]) == ("lung-nodule", ["2"], "onnx_onnxruntime")
        assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, SIZE, SIZE]}]
        assert found["outputs"] == [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ]
        assert (await door.client.get(f"{path}/ready")).json() == {"name": "lung-nodule", "ready": True}
        assert (await door.client.post(f"{path}/infer", json=body(images(1)))).status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/other", f"{MODEL}/versions/3", f"{MODEL}/versions/two", f"{MODEL}/versions/-2"])
async def test_what_is_not_served_is_not_found(door: Door, path: str) -> None:
    door.install(2)
    for answer in (
        await door.client.get(path),
        await door.client.get(f"{path}/ready"),
        await door.client.post(f"{path}/infer", json=body(images(1))),
    ):
        assert answer.status_code == 404
        assert answer.json()["code"] == "serving.not_served"
        assert answer.json()["error"]


async def test_strangers_get_health_and_nothing_else(door: Door) -> None:
    door.install(1)
    stranger = {"authorization": "no"}
    for path in ("/v2", MODEL, f"{MODEL}/ready"):
        assert (await door.client.get(path, headers=stranger)).status_code == 401
    assert (await door.client.post(f"{MODEL}/infer", json=body(images(1)), headers=stranger)).status_code == 401
    assert (await door.client.get("/v2/health/live", headers=stranger)).status_code == 200
    assert door.recorded == []


async def test_the_client_chooses_its_outputs(door: Door) -> None:
    door.install(1)
    answer = await door.client.post(f"{MODEL}/infer", json=body(images(1), outputs=[{"name": "label"}, {"name": "logits"}]))
    assert [output["name"] for output in answer.json()["outputs"]] == ["label", "logits"]
    answer = await door.client.post(f"{MODEL}/infer", json=body(images(1), outputs=[{"name": "heatmap"}]))
    assert (answer.status_code, answer.json()["code"]) == (400, "serving.tensor")


async def test_mistakes_are_problems_in_the_clients_language_and_are_not_recorded(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    door.install(1)
    answer = await door.client.post(f"{MODEL}/infer", content=b"{", headers={"accept-language": "zh-CN"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"].startswith("请求无法处理")
    assert (await door.client.post(f"{MODEL}/infer", json=body(images(65)))).json()["code"] == "serving.tensor"
    binary = await door.client.post(f"{MODEL}/infer", content=b"{}", headers={"inference-header-content-length": "2"})
    assert (binary.status_code, binary.json()["code"]) == (400, "serving.tensor")
    monkeypatch.setattr(serving, "MAX_BODY_BYTES", 1000)
    large = await door.client.post(f"{MODEL}/infer", json=body(images(4)))
    assert (large.status_code, large.json()["code"]) == (413, "serving.too_large")
    assert door.recorded == []


async def test_an_answer_that_cannot_be_recorded_does_not_leave(door: Door) -> None:
    door.install(1)
    door.fail = True
    answer = await door.client.post(f"{MODEL}/infer", json=body(images(1)))
    assert answer.status_code == 500
    assert "outputs" not in answer.json()


async def test_a_sick_answer_is_an_error_and_not_a_diagnosis(door: Door) -> None:
    door.install(1)
    answer = await door.client.post(f"{MODEL}/infer", json=body(np.full((1, 1, SIZE, SIZE), 3e38, np.float32)))
    assert (answer.status_code, answer.json()["code"]) == (500, "serving.output")


async def test_versions_are_swapped_under_load_without_a_failure(door: Door) -> None:
    door.install(1)
    seen: set[str] = set()

    async def client() -> None:
        for _ in range(1000):
            answer = await door.client.post(f"{MODEL}/infer", json=body(images(1)))
            assert answer.status_code == 200
            seen.add(answer.json()["model_version"])
            if "2" in seen:
                return

    async def swap() -> None:
        while "1" not in seen:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(door.install, 2)

    await asyncio.gather(*(client() for _ in range(4)), swap())
    assert seen == {"1", "2"}


async def test_a_model_of_a_fixed_batch_takes_exactly_that(door: Door) -> None:
    door.install(1, batch=2)
    assert (await door.client.post(f"{MODEL}/infer", json=body(images(1)))).status_code == 400
    answers = await asyncio.gather(*(door.client.post(f"{MODEL}/infer", json=body(images(2))) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5


def test_softmax_does_not_overflow_and_sums_to_one() -> None:
    found = serving.softmax(np.array([[1000, 0, -1000], [0, 0, 0]], np.float32))
    third = 1 / 3
    np.testing.assert_allclose(found, np.array([[1.0, 0.0, 0.0], [third, third, third]]), atol=1e-6)
    assert found.dtype == np.float32

"""A hospital's own systems ask the node's page for an inference: each, answered or refused, leaves its record at the hospital."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.unit.edge.test_privacy import SETTINGS
from tests.unit.serving.models import SIZE, manifest, saved

from medmesh.service.asgi import serve
from medmesh_edge.node import Node, page
from medmesh_edge.ports import site

MODEL = "/v2/models/lung-nodule/infer"


@pytest.fixture
async def node(private: Path) -> AsyncIterator[Node]:
    SETTINGS.save(private)
    async with site(private) as opened:
        opened.layout.local_token.parent.mkdir(exist_ok=True)
        opened.layout.local_token.write_text(secrets.token_hex(32))
        opened.layout.local_token.chmod(0o600)
        made = Node(opened, None)  # type: ignore[arg-type]
        yield made
        made.archive.close()
        made.tiering.close()


async def said(node: Node) -> list[tuple[str, int, str, dict[str, Any]]]:
    found = [json.loads(body) for _, _, body in await node.site.database.unreceipted(1000)]
    return [(record["sub"], record["out"], record["why"], record["detail"]) for record in found]


async def test_an_inference_at_the_hospital_is_recorded_and_one_that_is_refused_too(node: Node, private: Path) -> None:
    path = saved(private, "1.onnx", seed=1)
    node.repository.install(manifest(path, 1), path, "release-1")
    images = np.zeros((2, 1, SIZE, SIZE), np.float32)
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    token = node.site.layout.local_token.read_text()
    async with serve(page(node), host="127.0.0.1", port=0) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        assert (await http.post(MODEL, json={"inputs": [tensor]})).status_code == 401
        http.headers["authorization"] = f"Bearer {token}"
        assert (await http.post(MODEL, json={"inputs": [tensor]})).status_code == 200
        assert (await http.post(MODEL, json={"inputs": [{**tensor, "datatype": "FP16"}]})).status_code in (400, 422)
    unknown, answered, refused = await said(node)
    assert unknown[:3] == ("access.unproven", 8, "actor.missing")
    assert answered == ("inference.infer", 0, "", {"inputs": 2})
    assert refused[:2] == ("inference.infer", 4)
    assert refused[2].startswith("serving."), refused

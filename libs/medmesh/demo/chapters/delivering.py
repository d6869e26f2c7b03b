"""Chapter 3: the model is registered, converted, released, installed and used."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np

from medmesh.client.doors import open_door
from medmesh.contracts.registry import ModelList
from medmesh.demo import source
from medmesh.demo.processes import medmesh
from medmesh.demo.stage import MODEL, PACKAGE, Stage
from medmesh.learning import metrics
from medmesh.learning.package import pack


async def release(stage: Stage, slices: list[source.Slice]) -> None:
    stage.say("the model is registered, converted, approved and released", "模型注册、转换、审批与发布")
    li = stage.people["li"]

    async def registered() -> Any:
        return next((m for m in (await li.ask("/v1/models", ModelList)).models if m.model == MODEL), None)

    version = (await stage.until("the registered model", registered)).version
    path = f"/v1/models/{MODEL}/versions/{version}"
    await li.command("POST", f"{path}/conversion", {}, seconds=300)

    async def converted() -> bool:
        found = await registered()
        return any(artefact.format == "onnx" for artefact in found.artefacts)

    await stage.until("the converted model", converted)
    found = await registered()
    stage.summary["parity_max_abs_diff"] = next(a.parity_max_abs for a in found.artefacts if a.format == "onnx")
    prepared = await li.command("POST", f"{path}/release", {"hospitals": list(stage.nodes)})
    body = {"action": "model.release", "target": prepared["release"], "digest": prepared["digest"]}
    await li.command("POST", "/v1/approvals", body)
    await stage.approve("model.release")
    stage.happened("model released")

    async def installed() -> Any:
        releases = (await registered()).releases
        done = [i for r in releases for i in r.installs if i.installed]
        return done if len(done) == len(stage.nodes) else None

    stage.summary["edge_installs"] = len(await stage.until("four installations", installed))
    stage.summary["released_model"] = f"{MODEL}:{version}"
    stage.happened("installed at every hospital")
    await classify(stage, slices)


async def classify(stage: Stage, slices: list[source.Slice]) -> None:
    stage.say("every node classifies its held-out images, and so does the inference service", "各节点与推理服务对留出图像分类")
    correct, truths, predicted = 0, [], []
    for node in stage.nodes.values():
        for entry in json.loads(await medmesh("edge", "classify", "--folder", str(node.folder), MODEL)):
            truths.append(source.CLASSES.index(entry["truth"]))
            predicted.append(source.CLASSES.index(entry["label"]))
    counts = np.zeros((2, 2), dtype=np.int64)
    np.add.at(counts, (truths, predicted), 1)
    stage.summary["edge_acc"] = metrics.balanced_accuracy(counts)
    data = pack(PACKAGE).manifest.images()
    x, y = await asyncio.to_thread(source.arrays, [s for s in slices if s.held_out][:64], data)

    async def served() -> bool:
        models = (await stage.people["li"].request("GET", "/v1/served"))["models"]
        return any(m["model"] == MODEL and m["state"] in ("serving", "active") for m in models)

    await stage.until("the inference service to serve it", served)
    async with await open_door(stage.people["li"], "inference", stage.urls["inference"]) as door:
        for start in range(0, len(x), 16):
            part = x[start : start + 16]
            tensor = {"name": "image", "datatype": "FP32", "shape": list(part.shape), "data": part.reshape(-1).tolist()}
            answer = await door.request("POST", f"/v2/models/{MODEL}/infer", {"inputs": [tensor]})
            logits = next(o for o in answer["outputs"] if o["name"] == "logits")
            labels = np.array(logits["data"]).reshape(logits["shape"]).argmax(axis=1)
            correct += int((labels == y[start : start + 16]).sum())
    stage.summary["inference_acc"] = correct / len(x)
    stage.happened("classified", images=len(truths))

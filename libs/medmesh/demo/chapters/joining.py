"""Chapter 1: the platform starts, hospitals enrol, each takes in its own images."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from medmesh.client.gateway import Gateway
from medmesh.client.people import Authenticator, sign_in
from medmesh.demo import source
from medmesh.demo.keeping import Keepers
from medmesh.demo.processes import Process, checker, medmesh, node
from medmesh.demo.stage import ETHICS, PASSWORD, ROUNDS, Stage
from medmesh.embedded.run import running


async def prepare(stage: Stage) -> list[source.Slice]:
    stage.say("images: clustering near-duplicates, wrapping as DICOM with canaries", "图像：近重复聚类，封装为带金丝雀标记的 DICOM")
    slices = await asyncio.to_thread(source.split, stage.images, stage.seed)
    stage.canaries = await asyncio.to_thread(source.wrap_all, slices, stage.folder / "pacs")
    stage.canaries.write(stage.folder / "canaries.txt")
    names = ",".join(source.HOSPITALS)
    seed_file = str(stage.folder / "choice.json")
    _, stage.choice = await checker("choose", "--hospitals", names, "--seed-file", seed_file, "--rounds", str(ROUNDS))
    return slices


async def up(stage: Stage) -> None:
    stage.say("medmesh up: servers and ten services", "medmesh up：启动服务器与十个服务")
    began = time.monotonic()
    await medmesh("up", "--data", str(stage.data))
    stage.happened("platform up", took=round(time.monotonic() - began, 1))
    run = running(stage.data)
    assert run is not None
    stage.urls, stage.ca = run.urls, run.paths["ca"]
    # The key an auditor verifies with, taken before anything happened.
    stage.log_key = json.loads((stage.data / "trust.json").read_text())["log_key"]
    stage.keepers = Keepers(stage.data)
    stage.keepers.add(stage.approver.vkey, stage.reviewer.vkey, roles=("approver",))
    anybody = Gateway(stage.urls["gateway"], ca=stage.ca)
    stage.people["anybody"] = anybody
    token = (stage.data / "secrets" / "bootstrap.token").read_text().strip()
    await anybody.request("POST", "/v1/bootstrap", {"token": token, "name": "sun", "display_name": "孙安全", "password": PASSWORD})
    admin = stage.people["sun"] = await sign_in(anybody, "sun", PASSWORD, Authenticator())
    for name, shown, role in (("li", "李研究", "researcher"), ("wu", "吴审批", "approver"), ("qian", "钱审计", "auditor")):
        body = {"name": name, "display_name": shown, "organisation": "platform", "roles": [role]}
        code = (await admin.request("POST", "/v1/users", body))["code"]
        await anybody.request("POST", "/v1/activations", {"name": name, "code": code, "password": PASSWORD})
        stage.people[name] = await sign_in(anybody, name, PASSWORD, Authenticator())


async def enrol(stage: Stage, hospitals: Sequence[str] = tuple(source.HOSPITALS)) -> None:
    stage.say(f"{len(hospitals)} hospitals enrol; a second person approves each", f"{len(hospitals)} 家医院注册；由第二人逐一审批")
    enrolling = []
    for name in hospitals:
        made = await stage.people["sun"].request("POST", "/v1/hospitals", {"hospital": name, "display_name": name})
        folder = stage.folder / "hospitals" / name
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        stage.nodes[name] = node(name, folder)
        arguments = ("--folder", str(folder), "--gateway", stage.urls["gateway"], "--ca", str(stage.ca), "--hospital", name)
        handed = ("--code", made["code"], "--roster", stage.keepers.pin)
        enrolling.append(asyncio.create_task(medmesh("edge", "enrol", *arguments, *handed, "--wait", "120")))
    await stage.approve("hospital.enrol", len(hospitals))
    await asyncio.gather(*enrolling)
    for one in stage.nodes.values():  # a public data set: its counts may be told as they are
        policy = one.folder / "policy.toml"
        policy.write_text(policy.read_text("utf-8").replace("small_cell = 5 ", "small_cell = 0 "), "utf-8")
    approved = ("--kind", "image", "--kind", "table", "--from", "2020-01-01", "--until", "2099-12-31", "--consent", "waived")
    for one in stage.nodes.values():
        await medmesh("edge", "ethics", "add", "--folder", str(one.folder), ETHICS, "--title", "public data", *approved)
    stage.keepers.add_hospitals(*(node.folder for node in stage.nodes.values()))
    stage.happened("hospitals enrolled, their keys in the roster")


async def ingest(stage: Stage) -> None:
    stage.say("each node takes in its own DICOM files, de-identified", "各节点导入本院 DICOM 并去标识化")
    room = asyncio.Semaphore(2)

    async def one(hospital: Process) -> dict[str, Any]:
        async with room:
            pacs = str(stage.folder / "pacs" / hospital.name)
            arguments = ("--folder", str(hospital.folder), pacs, "--dataset", "brain-mri", "--ethics", ETHICS, "--json")
            found: dict[str, Any] = json.loads(await medmesh("edge", "ingest", *arguments))
            await medmesh("edge", "publish", "--folder", str(hospital.folder), "brain-mri")
            return found

    outcomes = await asyncio.gather(*(one(hospital) for hospital in stage.nodes.values()))
    stage.summary["hospitals"] = [
        {"name": name, "samples": outcome["stored"], "rejected": sum(outcome["rejected"].values())}
        for name, outcome in zip(stage.nodes, outcomes, strict=True)
    ]
    for hospital in stage.nodes.values():
        hospital.start()

    async def published() -> bool:
        catalogue = await stage.people["li"].request("GET", "/v1/catalogue")
        return len(catalogue["descriptors"]) == len(stage.nodes)

    await stage.until("the four descriptors", published)
    stage.happened("data ingested and described", samples=sum(h["samples"] for h in stage.summary["hospitals"]))

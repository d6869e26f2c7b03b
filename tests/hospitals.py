"""Real nodes for tests: enrolled over the gateway, in the roster, with invented images of their own."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import select

from medmesh.client import Gateway
from medmesh.client.federation import create_federation
from medmesh.contracts.federation import FederationView
from medmesh.imaging.reading import wrap
from medmesh_edge import consent, intake
from medmesh_edge.enrolment import enrol
from medmesh_edge.node import Node
from medmesh_edge.ports import site
from medmesh_edge.settings import Settings
from medmesh_edge.tables import federations
from tests.packages import TINY
from tests.world import World


async def until(ready: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    while clock() < end:
        if found := await ready():
            return found
        await asyncio.sleep(0.1)
    raise TimeoutError(f"not after {seconds} s")


def pacs(folder: Path, hospital: str, count: int = 60) -> Path:
    """Bright images are tumours; every header names a patient who must never be seen outside."""
    target = folder / f"pacs-{hospital}"
    target.mkdir()
    dice = np.random.default_rng(len(hospital))
    rows = [("file", "label")]
    for n in range(count):
        tumour = n % 2
        pixels = (dice.integers(0, 90, (32, 32)) + 130 * tumour).astype(np.uint8)
        data = wrap(
            Image.fromarray(pixels),
            patient_id=f"PID-{hospital}-{n // 2:03d}",
            patient_name=f"Canary^{hospital}{n // 2:03d}",
            study_uid=f"2.25.{1000 + n}",
            series_uid=f"2.25.{2000 + n}",
            sop_uid=f"2.25.{int.from_bytes(hospital.encode()[:4], 'big')}{n}",
            modality="MR",
            study_date="20240102",
            extra={},
        )
        (target / f"{n}.dcm").write_bytes(data)
        rows.append((f"{n}.dcm", ("none", "tumour")[tumour]))
    with (target / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (target / "broken.dcm").write_bytes(b"not DICOM at all\0")  # nor text, which a hospital may have as well
    return target


async def enrolled(world: World, admin: Gateway, approver: Gateway, hospital: str, **further: Any) -> Path:
    """A hospital's folder, enrolled over the gateway; `further` are settings of its node."""
    code = (await admin.request("POST", "/v1/hospitals", {"hospital": hospital, "display_name": hospital}))["code"]
    folder = world.p.folder / f"node-{hospital}"
    settings = Settings(hospital=hospital, node="node-1", gateway=world.url, **{"holdout": 0.3, **further})
    enrolling = asyncio.create_task(enrol(folder, settings, world.ca.read_bytes(), code, seconds=30))

    async def open_one() -> Any:
        found = (await approver.request("GET", "/v1/approvals", query={"state": "open"}))["approvals"]
        return [a for a in found if a["action"] == "hospital.enrol"]

    for approval in await until(open_one):
        await world.decide(approver, approval["approval"])
    await enrolling
    world.roster(folder)
    policy = folder / "policy.toml"  # what is invented may be told exactly, and nobody reads the tests' code twice
    text = policy.read_text("utf-8").replace("small_cell = 5 ", "small_cell = 0 ").replace("reviewers = 2", "reviewers = 0")
    # Who is held out is the hospital's secret: of forty images fewer than twenty may be left, and it would decline now and then.
    text = text.replace("ethics = true", "ethics = false").replace("min_samples = 20 ", "min_samples = 1 ")
    # Two are enough for most of what is tested, and of invented images a few steps.
    text = text.replace("min_hospitals = 3 ", "min_hospitals = 1 ").replace("min_seen = 1000 ", "min_seen = 0 ")
    policy.write_text(text, "utf-8")
    return folder


async def with_images(world: World, names: Iterable[str]) -> tuple[Gateway, Gateway, dict[str, Path]]:
    """A researcher, an approver, and enrolled hospitals' folders by name, each with images of its own."""
    admin = await world.admin()
    researcher, approver = await world.user(admin, "li", "researcher"), await world.user(admin, "wu", "approver")
    folders = {name: await enrolled(world, admin, approver, name) for name in names}
    for name, folder in folders.items():
        async with site(folder) as opened:
            await intake.ingest(opened, pacs(world.p.folder, name), "brain")
    return researcher, approver, folders


async def federation(
    world: World, researcher: Gateway, approver: Gateway | None, hospitals: tuple[str, ...], package: Path = TINY, **changed: Any
) -> dict[str, Any]:
    """A federation of the tiny package or another; without an approver nobody has approved its start."""
    values = {
        "rounds": 3,
        "local_steps": 30,
        "batch_size": 8,
        "learning_rate": "0.5",
        "seed": 3,
        "min_participants": 2,
        "round_deadline_seconds": 60,
        "lease_seconds": 8,
        "baseline": True,
        "accept_seconds": 60,
        "small_cell": 0,
        "rehearsal": False,
        **changed,
    }
    world.p.rosters.known(*hospitals)
    made = await create_federation(
        researcher,
        package,
        name="tiny",
        purpose="a test of the node",
        initiator="person:li@platform",
        hospitals=hospitals,
        **values,
    )
    if approver is None:
        return made
    body = {"action": "federation.start", "target": made["federation"], "digest": made["plan_hash"]}
    asked = await researcher.command("POST", "/v1/approvals", body)
    await world.decide(approver, asked["approval"])
    return made


async def state_of(node: Node, made: dict[str, Any]) -> str | None:
    async with node.site.unit() as uow:
        row = await uow.first(select(federations.c.state).where(federations.c.federation == made["federation"]))
    return row.state if row else None


async def consented(nodes: Iterable[Node], made: dict[str, Any]) -> None:
    """Every hospital has approved the code of a federation it was invited to; its node signs by itself."""
    for node in nodes:
        await until(lambda node=node: state_of(node, made))
        await consent.approve(node.site, made["federation"], "doctor-zhao")
        node.site.changed.set()


async def completed(researcher: Gateway, made: dict[str, Any], seconds: float = 120) -> FederationView:
    """A federation as it is shown once it is over; that it failed is told at once."""

    async def over() -> FederationView | None:
        view = await researcher.ask(f"/v1/federations/{made['federation']}", FederationView)
        assert view.state not in ("failed", "cancelled"), view.failure
        return view if view.state == "completed" else None

    found: FederationView = await until(over, seconds)
    return found

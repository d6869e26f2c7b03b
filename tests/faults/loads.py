"""What the clients do: ask for approvals, or create federations and cancel them, which fills the hospitals' inboxes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tests.faults.harness import Load, Stage, Wish, Work
from tests.packages import TINY

from medmesh.client import Gateway, upload
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.learning import weights
from medmesh.learning.package import pack
from medmesh_edge.ports import site


def approvals(load: Load, prefix: str) -> list[Work]:
    """One approval each, of a target of its own."""

    def one(number: int) -> Work:
        target = f"{prefix}-{number:05d}"
        body = {"action": "federation.start", "target": target, "digest": hashlib.sha256(target.encode()).hexdigest()}
        wish = Wish(target, "/v1/approvals", body, "medmesh.evt.governance.approval.requested.v1", "approval.request")

        async def work(door: Gateway) -> None:
            await load.send(door, wish)

        return work

    return [one(number) for number in range(load.total)]


async def approvals_kept(stage: Stage, prefix: str) -> dict[str, int]:
    """Rows by target."""
    rows = await stage.sql("SELECT target, count(*) AS n FROM governance.approvals WHERE starts_with(target, $1) GROUP BY 1", prefix + "-")
    return {row["target"]: row["n"] for row in rows}


async def federations(load: Load, prefix: str, folder: Path, hospitals: tuple[str, ...] = ("huashan", "renji")) -> list[Work]:
    """Pairs of commands: create a federation, cancel it. Nothing natural makes two creations one."""
    load.stage.rosters.known(*hospitals)
    package = pack(TINY)
    (folder / "package").write_bytes(package.archive)
    weights.save({"weight": np.zeros((64, 2), np.float32), "bias": np.zeros(2, np.float32)}, folder / "initial")
    async with load.stage.door("li") as door:
        package_ref, initial_ref = await upload(door, folder / "package"), await upload(door, folder / "initial")
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    plan = Plan(
        name=prefix,
        purpose="many of them at once",
        initiator="person:li@platform",
        package=package.digest,
        initial=initial_ref.sha256,
        framework="numpy",
        data=package.manifest.data,
        signature=package.manifest.tensors,
        rounds=1,
        local_steps=1,
        batch_size=8,
        learning_rate="0.1",
        seed=1,
        participants=hospitals,
        min_participants=2,
        accept_by=later,
        start_at=later,
        round_deadline_seconds=60,
    )

    def one(number: int) -> Work:
        name = f"{prefix}-{number:05d}"
        body = {
            "plan": plan.model_copy(update={"name": name}).model_dump(mode="json"),
            "package": package_ref.model_dump(),
            "initial": initial_ref.model_dump(),
        }

        async def work(door: Gateway) -> None:
            invited = "medmesh.evt.federation.federation.invited.v1"
            made = await load.send(door, Wish(f"{name}-create", "/v1/federations", body, invited, "federation.create"))
            path, failed = f"/v1/federations/{made['federation']}/cancel", "medmesh.evt.federation.federation.failed.v1"
            await load.send(door, Wish(f"{name}-cancel", path, {"reason": "enough"}, failed, "federation.cancel"))

        return work

    return [one(number) for number in range(load.total // 2)]


async def federations_kept(stage: Stage, prefix: str) -> dict[str, int]:
    """Cancelled federations by name."""
    wanted = "SELECT name, count(*) AS n FROM federation.federations WHERE starts_with(name, $1) AND state = 'cancelled' GROUP BY 1"
    return {row["name"]: row["n"] for row in await stage.sql(wanted, prefix + "-")}


@dataclass
class Follower:
    """A hospital that reads its inbox from its cursor, and comes back when the connection breaks."""

    folder: Path
    cursor: int
    seen: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    broken: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with site(self.folder) as opened, opened.gateway(attempts=1) as door:
            while True:
                with suppress(Problem):
                    async for cursor, event in door.inbox(self.cursor):
                        self.seen.append((cursor, event))
                        self.cursor = cursor
                self.broken += 1
                await asyncio.sleep(0.2)

    async def read_up_to(self, last: int, seconds: float = 20) -> None:
        """Return when that cursor was read."""
        async with asyncio.timeout(seconds):
            while self.cursor < last:
                await asyncio.sleep(0.05)


async def inbox_end(stage: Stage, hospital: str) -> int:
    """The last cursor of a hospital."""
    rows = await stage.sql("SELECT last FROM gateway.inbox_cursors WHERE hospital = $1", hospital)
    return int(rows[0]["last"]) if rows else 0


@asynccontextmanager
async def following(stage: Stage) -> AsyncIterator[Follower]:
    """The enrolled hospital follows its inbox from now on."""
    follower = Follower(stage.hospital, await inbox_end(stage, "huashan"))
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

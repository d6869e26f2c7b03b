"""Creating a federation from a training package: pack, make the first weights in a sandbox, upload, invite."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from medmesh.client.gateway import Gateway
from medmesh.client.transfer import upload
from medmesh.contracts.plan import Plan
from medmesh.learning.host import worker
from medmesh.learning.package import Package, pack


async def initial_weights(package: Package, seed: int, target: Path) -> Path:
    """Write the weights a package begins with."""
    with tempfile.TemporaryDirectory() as folder:
        async with worker(package, Path(folder) / "worker") as running:
            await running.call("initial", seed=seed, out=str(running.folder / "initial"))
            target.write_bytes((running.folder / "initial").read_bytes())
    return target


async def create_federation(
    gateway: Gateway,
    folder: Path,
    *,
    name: str,
    purpose: str,
    initiator: str,
    hospitals: tuple[str, ...],
    accept_seconds: float,
    start_seconds: float | None = None,
    **plan: Any,
) -> dict[str, Any]:
    """Answers `{"federation", "plan_hash"}`. Times count from now. Raises `Problem`, pydantic's `ValidationError` for a bad plan."""
    package = pack(folder)
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "package.zip"
        archive.write_bytes(package.archive)
        initial = await initial_weights(package, plan["seed"], Path(scratch) / "initial.safetensors")
        package_ref, initial_ref = await upload(gateway, archive), await upload(gateway, initial)
    now = datetime.now(UTC).replace(microsecond=0)
    made = Plan(
        name=name,
        purpose=purpose,
        initiator=initiator,
        package=package.digest,
        initial=initial_ref.sha256,
        framework=package.manifest.package.framework,
        data=package.manifest.data,
        signature=package.manifest.tensors,
        participants=hospitals,
        accept_by=now + timedelta(seconds=accept_seconds),
        start_at=now + timedelta(seconds=accept_seconds if start_seconds is None else start_seconds),
        **plan,
    )
    body = {"plan": made.model_dump(mode="json"), "package": package_ref.model_dump(), "initial": initial_ref.model_dump()}
    return await gateway.command("POST", "/v1/federations", body)

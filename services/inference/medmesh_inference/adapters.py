"""From a verified release to a loaded model, and the disk kept in step with the tables."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from medmesh.contracts.registry import Manifest
from medmesh.errors import Problem
from medmesh.service.runtime import Runtime
from medmesh.serving.release import verify_release
from medmesh.serving.repository import Repository
from medmesh.store.objects.port import ObjectStore, fetch
from medmesh.telemetry import log
from medmesh_inference import queries
from medmesh_inference.ports import Ports


async def obtain(store: ObjectStore, manifest: Manifest, folder: Path) -> Path:
    """The release's graph as a file in `folder`, with the very bytes the manifest names. Raises `Problem` (`objects.*`)."""
    return await fetch(store, manifest.onnx, folder / "model.onnx")


async def prune(runtime: Runtime, ports: Ports) -> None:
    """Take out of service what ought not to be served. Verified again each time: a release key that is believed no longer
    serves no longer."""
    async with ports.changing:
        async with runtime.unit() as uow:
            wanted, known = await queries.serving(uow), await queries.installable(uow)
        for found in await asyncio.to_thread(ports.repository.list):
            if (found.release, found.model, found.version) not in known:
                await asyncio.to_thread(ports.repository.remove, found.model, found.version)
                log("inference.removed", model=found.model, version=found.version)
        for event in wanted:
            try:
                manifest = verify_release(event, ports.trust(), ports.roster(), hospital=None)
                served = ports.repository.active(event.model, event.version)
                if (served.release, served.manifest) != (event.release, manifest):
                    raise Problem("serving.manifest", release=event.release, reason="another one is installed")
            except Problem as problem:
                await asyncio.to_thread(ports.repository.remove, event.model, event.version)
                log("inference.unavailable", level=40, model=event.model, version=event.version, code=problem.code)


async def reconcile(runtime: Runtime, ports: Ports) -> None:
    """Remove what ought not to be served, then load what ought to be and is not: after a restart, a lost disk, or on a second
    instance, which shares the tables and the messages but not the folder."""
    await prune(runtime, ports)
    async with runtime.unit() as uow:
        wanted = await queries.serving(uow)
    for event in wanted:
        if _active(ports.repository, event.model, event.version):
            continue
        try:
            manifest = verify_release(event, ports.trust(), ports.roster(), hospital=None)
            with tempfile.TemporaryDirectory(dir=ports.incoming) as folder:
                path = await obtain(ports.kept, manifest, Path(folder))
                async with ports.changing:
                    async with runtime.unit() as uow:
                        if event not in await queries.serving(uow):
                            continue
                    await asyncio.to_thread(ports.repository.install, manifest, path, event.release)
            log("inference.restored", model=event.model, version=event.version)
        except Problem as problem:
            log("inference.unavailable", level=40, model=event.model, version=event.version, code=problem.code)


def _active(repository: Repository, model: str, version: int) -> bool:
    try:
        repository.active(model, version)
    except Problem:
        return False
    return True

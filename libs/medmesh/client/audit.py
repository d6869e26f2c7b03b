"""The auditor's side: searching, proofs, and a copy of the log that is verified offline."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from medmesh.client.gateway import Gateway, problem_of
from medmesh.contracts.audit import ExportView
from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.ledger import note, tiles
from medmesh.ledger.leaf import decode
from medmesh.ledger.second import PREFIX

PAGE = 500


ReadFile = Callable[[str], Awaitable[bytes]]
"""Path of a file of the log, `checkpoint` or `tile/…` -> its bytes."""


@dataclass(frozen=True)
class Source:
    """Where a copy comes from: the auditors' door, or the gateway for a hospital's own records."""

    gateway: Gateway
    bodies: str
    read: ReadFile


def at_the_door(door: Gateway) -> Source:
    """`door` is a client of the audit service: everything an auditor may see."""

    async def read(path: str) -> bytes:
        return (await door.raw("GET", f"/log/{path}")).content

    return Source(door, "/v1/bodies", read)


def of_a_hospital(gateway: Gateway) -> Source:
    """`gateway` is a client with a node's certificate: the whole tree, and the bodies about this hospital's data."""

    async def read(path: str) -> bytes:
        return base64.b64decode((await gateway.request("GET", "/v1/audit/log", query={"path": path}))["content"])

    return Source(gateway, "/v1/audit/bodies", read)


async def export_log(source: Source, folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Copy checkpoint, tiles, entries and the bodies one may read into `folder`; answers how many entries the log has."""
    folder.mkdir(parents=True, exist_ok=True)
    # Before the first tree's, which it follows: so it is never longer than what is copied.
    second = await _second(source)
    checkpoint = await source.read("checkpoint")
    size = _size(checkpoint)
    wanted = [tiles.path(level, number, width) for level, number, width in tiles.shape(size)]
    full, rest = divmod(size, tiles.WIDTH)
    wanted += [tiles.path("entries", number) for number in range(full)] + ([tiles.path("entries", full, rest)] if rest else [])
    if second:
        wanted += [f"{PREFIX}/{tiles.path(*place)}" for place in tiles.shape(_size(second))]
    for where in wanted:
        target = folder / where
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(await source.read(where))
    with (folder / "bodies.jsonl").open("w") as file:
        first: int | None = 0
        while first is not None and first < size:
            page = await source.gateway.request("GET", source.bodies, query={"first": first, "limit": PAGE})
            for body in page["bodies"]:
                if body["seq"] < size:
                    file.write(json.dumps(body) + "\n")
            first = page.get("next")
            progress(min(first or size, size), size)
    if second:
        (folder / PREFIX / "checkpoint").write_bytes(second)
    (folder / "checkpoint").write_bytes(checkpoint)
    return size


def _size(checkpoint: bytes) -> int:
    return note.parse_checkpoint(note.split(checkpoint.decode())[0]).size


async def _second(source: Source) -> bytes:
    """The second tree's checkpoint; empty where there is no second tree."""
    try:
        return await source.read(f"{PREFIX}/checkpoint")
    except Problem as problem:
        if problem.code != "request.not_found":
            raise
        return b""


def withheld(folder: Path, organisation: str) -> list[int]:
    """Numbers of the entries whose header names `organisation` and whose body is not in the copy: it should have been handed over.

    The headers are in the tree, so that a log which hides a record from its hospital is found by the hospital alone.
    """
    size = note.parse_checkpoint(note.split((folder / "checkpoint").read_text(encoding="utf-8"))[0]).size
    with (folder / "bodies.jsonl").open("rb") as lines:
        here = {json.loads(line)["seq"] for line in lines}
    missing = []
    for number in range((size + tiles.WIDTH - 1) // tiles.WIDTH):
        width = min(tiles.WIDTH, size - number * tiles.WIDTH)
        for place, entry in enumerate(tiles.unbundle((folder / tiles.path("entries", number, width)).read_bytes())):
            seq = number * tiles.WIDTH + place
            if organisation in decode(entry).compartment.split(",") and seq not in here:
                missing.append(seq)
    return missing


async def fetch_export(door: Gateway, export: str, file: Path, *, seconds: float = 600) -> ObjectRef:
    """Wait until an export is there and fetch it into `file`; its bytes are compared with the digest the log recorded.

    Raises `Problem`: its own code when it failed or was refused, `audit.export_pending` after `seconds`.
    """
    end = asyncio.get_running_loop().time() + seconds
    while True:
        view = ExportView.model_validate(await door.request("GET", f"/v1/exports/{export}"))
        if view.object is not None:
            break
        if view.state == "refused":
            raise Problem("audit.export_refused")
        if view.state == "failed":
            raise Problem(view.code)
        if asyncio.get_running_loop().time() > end:
            raise Problem("audit.export_pending", export=export, state=view.state)
        await asyncio.sleep(0.5)
    digest = hashlib.sha256()
    async with door.stream(f"/v1/exports/{export}/content") as answer:
        if answer.status_code >= 400:
            raise problem_of(await answer.whole())
        with file.open("wb") as target:
            async for parts in answer.parts():
                for part in parts:
                    digest.update(part)
                    target.write(part)
    if digest.hexdigest() != view.object.sha256:
        file.unlink()
        raise Problem("objects.digest", expected=view.object.sha256, found=digest.hexdigest())
    return view.object

"""Objects to and from the gateway: in pieces, resumable in both directions, verified."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx

from medmesh.client.gateway import Gateway, problem_of, unreachable
from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.store.objects.port import CHUNK, file_digest

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    return None


async def upload(gateway: Gateway, path: Path, *, media_type: str = "application/octet-stream", progress: Progress = _silent) -> ObjectRef:
    """Send a file, going on where an earlier attempt stopped. `progress(done, total)` in bytes."""
    sha256, total = await asyncio.to_thread(file_digest, path)
    target = f"/v1/uploads/{sha256}"
    offset, complete = _progress(await gateway.raw("HEAD", target))
    with path.open("rb") as file:
        while not complete:
            file.seek(offset)
            piece = await asyncio.to_thread(file.read, CHUNK)
            digest = base64.b64encode(hashlib.sha256(piece).digest()).decode()
            headers = {"Content-Digest": f"sha-256=:{digest}:", "Content-Type": "application/octet-stream"}
            try:
                answer = await gateway.raw("PUT", target, piece, query={"offset": offset, "total": total}, headers=headers)
            except Problem as problem:
                if problem.code != "objects.offset":
                    raise
                answer = await gateway.raw("HEAD", target)  # somebody else's attempt was further, or its file is gone
            offset, complete = _progress(answer)
            progress(offset, total)
    return ObjectRef(sha256=sha256, bytes=total, media_type=media_type)


def _progress(answer: httpx.Response) -> tuple[int, bool]:
    return int(answer.headers["upload-offset"]), answer.headers["upload-complete"] == "?1"


async def download(gateway: Gateway, ref: ObjectRef, target: Path, *, progress: Progress = _silent, attempts: int = 8) -> Path:
    """Fetch an object into `target`, going on where an earlier attempt stopped. Raises `Problem` when its bytes are not its own."""
    if target.exists() and (await asyncio.to_thread(file_digest, target))[0] == ref.sha256:
        return target
    partial = target.with_name(f"{target.name}.part")
    for attempt in range(attempts):
        try:
            await _fetch(gateway, ref, partial, progress)
            break
        except httpx.TransportError as error:
            if attempt + 1 == attempts:
                raise unreachable(gateway.url, error) from None
            await asyncio.sleep(min(0.2 * 2**attempt, 5))
    found, _ = await asyncio.to_thread(file_digest, partial)
    if found != ref.sha256:
        partial.unlink()
        raise Problem("objects.digest", expected=ref.sha256, found=found)
    partial.replace(target)
    return target


async def _fetch(gateway: Gateway, ref: ObjectRef, partial: Path, progress: Progress) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    if start >= ref.bytes:
        partial.touch()
        return
    async with gateway.stream(f"/v1/objects/{ref.sha256}", headers={"Range": f"bytes={start}-"}) as answer:
        if answer.status_code >= 400:
            await answer.aread()
            raise problem_of(answer)
        with partial.open("ab") as file:
            async for piece in answer.aiter_bytes(1 << 20):
                await asyncio.to_thread(file.write, piece)
                start += len(piece)
                progress(start, ref.bytes)

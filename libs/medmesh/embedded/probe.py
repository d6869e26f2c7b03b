"""Small questions to a server that is starting, asked until it answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from medmesh.embedded.ports import HOST


async def until(ask: Callable[[], Awaitable[bool]], every: float = 0.01) -> None:
    """Return when `ask` says yes; a refused or broken connection is a no. Bound it by `asyncio.timeout`."""
    while True:
        try:
            if await ask():
                return
        except (OSError, EOFError, ValueError):
            pass
        await asyncio.sleep(every)


async def exchange(port: int, question: bytes, limit: int) -> bytes:
    """Send `question` to a loopback port and read the answer, up to `limit` bytes or its end."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(question)
        answer = b""
        while len(answer) < limit and (part := await reader.read(limit - len(answer))):
            answer += part
        return answer
    finally:
        writer.close()


async def get(port: int, path: str) -> tuple[int, bytes]:
    """GET `path` over HTTP/1.0; answers (status, body). `ValueError` for what is not HTTP."""
    answer = await exchange(port, f"GET {path} HTTP/1.0\r\nHost: {HOST}:{port}\r\n\r\n".encode(), 2**20)
    head, _, body = answer.partition(b"\r\n\r\n")
    version, _, rest = head.partition(b" ")
    if not version.startswith(b"HTTP/"):
        raise ValueError("not an HTTP answer")
    return int(rest[:3]), body


async def get_json(port: int, path: str) -> Any:
    """GET `path` and read its JSON body; `ValueError` when it is anything but 200 and JSON."""
    status, body = await get(port, path)
    if status != 200:
        raise ValueError(f"status {status}")
    return json.loads(body)

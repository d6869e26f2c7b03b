"""The small HTTP listener of services without an application of their own: `/health/live`, `/health/ready`, `/metrics`.

Written on asyncio streams, because an HTTP framework would cost each of them start time and memory for three fixed answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

from medmesh.telemetry import metrics

Check = Callable[[], Awaitable[dict[str, str]]]


async def respond(path: str, ready: Check) -> tuple[int, str, bytes]:
    """(status, content type, body) of one of the three paths."""
    if path == "/health/live":
        return 200, "application/json", b'{"status":"live"}'
    if path == "/health/ready":
        failures = await ready()
        body = json.dumps({"status": "not ready" if failures else "ready", "failures": failures}).encode()
        return (503 if failures else 200), "application/json", body
    if path == "/metrics":
        return 200, "text/plain; version=0.0.4; charset=utf-8", metrics.exposition()
    return 404, "application/json", b'{"status":"not found"}'


async def listen(host: str, port: int, ready: Check) -> asyncio.Server:
    """Serve until the returned server is closed; `port` 0 takes a free one."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(10):
                request = (await reader.readline()).decode("latin-1").split()
                while (await reader.readline()) not in (b"\r\n", b"\n", b""):
                    pass
                path = request[1].split("?")[0] if len(request) == 3 and request[0] in ("GET", "HEAD") else ""
                status, kind, body = await respond(path, ready)
                head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                writer.write((head + "Connection: close\r\n\r\n").encode() + body)
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(handle, host, port, limit=16 * 1024)

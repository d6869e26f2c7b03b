"""What a node makes of an inbox that something else than a platform of ours answers: a problem to try again after, never its end."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from medmesh.client import http
from medmesh.client.gateway import Gateway
from medmesh.errors import Problem
from medmesh.security.authority import Authority


@asynccontextmanager
async def answering(folder: Path, kind: str, body: bytes) -> AsyncIterator[Gateway]:
    """A gateway's door behind which everything is answered with `body`."""
    for name, content in zip(("pem", "key"), Authority.ensure(folder).issue_server(["127.0.0.1"]), strict=True):
        (folder / name).write_bytes(content)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "pem", folder / "key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind.encode(), len(body)) + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Gateway(url, ca=folder / "ca.pem") as gateway:
            yield gateway


@pytest.mark.parametrize(
    "body",
    [
        b"id: one\ndata: {}\n\n",
        b"id: 1\nobject: A\ndata: {}\n\n",
        b"id: 1\nobject: QU?JD\ndata: {}\n\n",
        b"id: 1\ndata: {\n\n",
        b"id: 1\ndata: 5\n\n",
        b"id: 99999999999999999999\ndata: {}\n\n",
        b"id: 1\ndata: " + b"[" * 100_000 + b"\n\n",
        b"id: 1\nobject: " + b"A" * (http.LONGEST_LINE + 1),
    ],
    ids=[
        "no number",
        "no base64",
        "more than base64",
        "half a document",
        "no document",
        "no cursor",
        "nested without end",
        "a line without end",
    ],
)
async def test_a_stream_that_is_none_is_a_problem(tmp_path: Path, body: bytes) -> None:
    async with answering(tmp_path, "text/event-stream", b"id: 1\ndata: {}\n\n" + body) as gateway:
        stream = gateway.inbox(0, enclosed=lambda _: None)
        assert await anext(stream) == (1, {})
        with pytest.raises(Problem) as caught:
            await anext(stream)
        assert caught.value.code == "client.answer"


@pytest.mark.parametrize("document", [{}, {"events": [{"cursor": 1}]}, {"events": [5]}, {"events": [{"cursor": "1", "event": {}}]}])
async def test_a_poll_that_is_none_is_a_problem(tmp_path: Path, document: object) -> None:
    async with answering(tmp_path, "application/json", json.dumps(document).encode()) as gateway:
        with pytest.raises(Problem) as caught:
            await gateway.poll(0, 1)
        assert caught.value.code == "client.answer"

"""A platform, or what stands in its place, that never stops answering: it fills neither the memory nor the disk of who asks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from medmesh.client import download, http
from medmesh.client.gateway import Gateway
from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.security.authority import Authority

PIECE, PIECES = b"x" * 2**16, 500


@asynccontextmanager
async def endless(folder: Path, status: int) -> AsyncIterator[Gateway]:
    """A gateway's door behind which every answer is long, and never ends."""
    for name, content in zip(("pem", "key"), Authority.ensure(folder).issue_server(["127.0.0.1"]), strict=True):
        (folder / name).write_bytes(content)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "pem", folder / "key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d Said\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
        with suppress(ConnectionError):
            for _ in range(PIECES):
                if reader.at_eof():
                    break
                writer.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
                await writer.drain()
                await asyncio.sleep(0)
            await reader.read()  # there is more to come
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Gateway(url, ca=folder / "ca.pem") as gateway:
            yield gateway


@pytest.mark.parametrize("status", [200, 404])
async def test_an_answer_without_end_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(http, "LARGEST_ANSWER", 2**20)
    async with endless(tmp_path, status) as gateway:
        with pytest.raises(Problem) as caught:
            async with asyncio.timeout(5):
                await gateway.request("GET", "/v1/federations")
        assert caught.value.code == "client.answer"
        with pytest.raises(Problem) as caught:
            async with asyncio.timeout(5):
                await anext(gateway.inbox(0))
        assert caught.value.code == "client.answer"


@pytest.mark.parametrize("status", [200, 206, 404])
async def test_an_object_without_end_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(http, "LARGEST_ANSWER", 2**20)
    async with endless(tmp_path, status) as gateway:
        with pytest.raises(Problem) as caught:
            async with asyncio.timeout(5):
                await download(gateway, ObjectRef(sha256="0" * 64, bytes=2**20), tmp_path / "object")
        assert caught.value.code == ("client.answer" if status == 404 else "objects.digest")
        assert not list(tmp_path.glob("object*"))

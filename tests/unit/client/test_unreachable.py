"""What people are told of a gateway that cannot be reached: TLS is blamed only when TLS failed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from medmesh.client.gateway import unreachable
from medmesh.client.http import Broken, Pool
from medmesh.security.authority import Authority


async def said(url: str) -> str:
    """The code of what a request ends with."""
    pool = Pool(url, ssl.create_default_context())
    try:
        with pytest.raises(Broken) as caught:
            await pool.get("/v1/health")
    finally:
        await pool.aclose()
    return unreachable(url, caught.value).code


@asynccontextmanager
async def answering(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None], tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer(reader, writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_nobody_listens_or_hangs_up_in_the_middle() -> None:
    async with answering(lambda _, __: None, None) as url:
        assert await said(url) == "client.unreachable", "killed while a connection was made"
    assert await said(url) == "client.unreachable", "and gone"


async def test_something_else_answers_or_shows_a_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    async with answering(lambda _, writer: writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n"), None) as url:
        assert await said(url) == "client.tls"
    for name, content in zip(("pem", "key"), Authority.ensure(tmp_path).issue_server(["127.0.0.1"]), strict=True):
        (tmp_path / name).write_bytes(content)
    stranger = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    stranger.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    async with answering(lambda _, __: None, stranger) as url:
        assert await said(url) == "client.tls"

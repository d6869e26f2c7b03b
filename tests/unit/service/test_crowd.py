"""Many connections at a door, on both event loops, over TLS: who says nothing goes, who is honest is served meanwhile."""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medmesh.security.authority import Authority

SOON = 10.0
"""Seconds within which something happens on a machine however busy; whoever says nothing is waited for twice as long."""
DOOR = """
import asyncio, json, resource, sys
from pathlib import Path
from medmesh.service import crowd
from medmesh.service.asgi import serve

given = json.loads(sys.argv[1])
for name, value in given["constants"].items():
    assert hasattr(crowd, name)
    setattr(crowd, name, value)

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/stream":
        for number in range(10_000):
            await send({"type": "http.response.body", "body": b"tick", "more_body": True})
            await asyncio.sleep(0.1)
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.body", "body": b"%d bytes from %s" % (size, scope["client"][0].encode())})

async def main():
    certificate, key = (Path(given["folder"], name) for name in ("server.pem", "server.key"))
    async with serve(app, host="127.0.0.1", port=0, certificate=certificate, key=key, most=given["most"]) as port:
        if descriptors := given["descriptors"]:
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.read)

if given["loop"] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@dataclass
class Door:
    pid: int
    port: int
    tls: ssl.SSLContext

    async def connect(self, *, whence: str = "127.0.0.1", tls: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        how: dict[str, Any] = {"ssl": self.tls, "server_hostname": "127.0.0.1"} if tls else {}
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(whence, 0), **how)

    async def ask(self, *, whence: str = "127.0.0.1") -> bytes:
        """The answer to a request of somebody who comes now."""
        async with asyncio.timeout(SOON):
            reader, writer = await self.connect(whence=whence)
            with closing(writer):
                return await asked(reader, writer)

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[asyncio.StreamReader]:
        """An answer that goes on and on, once something of it came."""
        reader, writer = await self.connect()
        with closing(writer):
            writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"tick")
            yield reader

    @asynccontextmanager
    async def guests(self) -> AsyncIterator[tuple[asyncio.StreamReader, Callable[[], Awaitable[None]]]]:
        """Two who were there before others, of whom one was answered and the other still is: (its stream, look that both are served)."""
        reader, writer = await self.connect()
        with closing(writer):
            await asked(reader, writer)
            async with self.streaming() as stream:

                async def served() -> None:
                    async with asyncio.timeout(SOON):
                        await asked(reader, writer)
                        await stream.readuntil(b"tick")

                yield stream, served

    @asynccontextmanager
    async def silent(self, many: int, *, whence: str = "127.0.0.2") -> AsyncIterator[list[asyncio.StreamReader]]:
        """So many connections on which nobody says anything."""
        async with AsyncExitStack() as stack:
            readers = []
            for _ in range(many):
                reader, writer = await self.connect(whence=whence, tls=False)
                stack.callback(writer.close)
                readers.append(reader)
            await asyncio.sleep(0.5)
            yield readers


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, header: bytes = b"") -> bytes:
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n%sContent-Length: 0\r\n\r\n" % header)
    answer = await reader.readuntil(b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return answer


async def over(reader: asyncio.StreamReader, seconds: float = SOON) -> bool:
    """Whether a connection ends in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            with suppress(OSError):
                while await reader.read(1 << 16):
                    pass
            return True
    return False


Open = Callable[..., Any]


@pytest.fixture(params=["uvloop", "asyncio"])
def opened(request: pytest.FixtureRequest, private: Path) -> Open:
    (private / "ca").mkdir()
    authority = Authority.ensure(private / "ca")
    for name, content in zip(("server.pem", "server.key"), authority.issue_server(["127.0.0.1"]), strict=True):
        (private / name).write_bytes(content)
    tls = ssl.create_default_context(cafile=str(private / "ca" / "ca.pem"))

    @asynccontextmanager
    async def door(*, most: int = 1000, descriptors: int = 0, before: Callable[[], None] | None = None, **constants: float) -> Any:
        given = {"folder": str(private), "loop": request.param, "most": most, "descriptors": descriptors, "constants": constants}
        command = [sys.executable, "-c", DOOR, json.dumps(given)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=before) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                line = await asyncio.to_thread(process.stdout.readline)
                yield Door(process.pid, int(line), tls)
            finally:
                process.stdin.close()

    return door


HALVES = {
    "no handshake": None,
    "nothing": b"",
    "half a header": b"GET / HTTP/1.1\r\nHost",
    "half a body": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
}
AFTER = {"half a second header": b"GET / HT", "a blank line after an answer": b"\r\n"}


async def test_who_says_half_of_something_is_let_go_and_others_are_served_meanwhile(opened: Open) -> None:
    async with opened(HEAD_SECONDS=1.0, BODY_SECONDS=1.0) as door, door.guests() as (stream, served), AsyncExitStack() as stack:
        halves = {}
        for name, said in HALVES.items():
            reader, writer = await door.connect(tls=said is not None)
            stack.callback(writer.close)
            writer.write(said or b"")
            halves[name] = reader
        for name, said in AFTER.items():
            reader, writer = await door.connect()
            stack.callback(writer.close)
            await asked(reader, writer)
            writer.write(said)
            halves[name] = reader
        await asyncio.sleep(1.5)  # longer than any of them is waited for
        await door.ask()
        assert [name for name, reader in halves.items() if not await over(reader)] == []
        await served()  # who was answered may come back later
        assert not await over(stream, 1.5)


async def test_a_body_that_comes_slowly_but_steadily_is_taken(opened: Open) -> None:
    async with opened(HEAD_SECONDS=1.0, BODY_SECONDS=1.0, SLOWEST=1000.0) as door:
        reader, writer = await door.connect()
        with closing(writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8000\r\n\r\n")
            for _ in range(16):  # in 2.4 s
                await asyncio.sleep(0.15)
                writer.write(bytes(500))
            assert b"8000 bytes" in await reader.readuntil(b"0\r\n\r\n")


async def test_a_header_has_an_end(opened: Open) -> None:
    async with opened() as door:
        for begun in (b"GET /", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "):
            reader, writer = await door.connect()
            with closing(writer):
                writer.write(begun)
                for _ in range(40):
                    writer.write(b"x" * 4096)
                    await asyncio.sleep(0)
                assert await over(reader), begun
        reader, writer = await door.connect()
        with closing(writer):
            writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
            assert await over(reader), "a thousand requests at once"
        await door.ask()


async def test_when_all_places_are_taken_who_crowds_makes_room(opened: Open) -> None:
    async with opened(most=30) as door, door.guests() as (_, served), door.silent(60) as crowd:
        await door.ask()
        await served()
        assert [await over(reader) for reader in crowd[:20]] == [True] * 20  # the oldest went
        assert not await over(crowd[-1], 0.2)


async def test_who_is_served_is_not_cut_off_for_others(opened: Open) -> None:
    async with opened(most=3) as door, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(door.streaming()) for _ in range(3)]
        with pytest.raises(OSError):
            await door.connect()
        for reader in streams:
            await reader.readuntil(b"tick")


async def test_nobody_says_themselves_where_they_come_from(opened: Open) -> None:
    async with opened() as door:
        reader, writer = await door.connect()
        with closing(writer):
            assert b"from 127.0.0.1" in await asked(reader, writer, b"X-Forwarded-For: 192.0.2.7\r\n")


def busy(pid: int) -> int:
    """Ticks of the processor that a process took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_without_descriptors_the_process_goes_on(opened: Open) -> None:
    async with opened(descriptors=40) as door, door.streaming() as stream:
        async with door.silent(100):
            for _ in range(3):
                await door.ask()
            began = busy(door.pid)
            await asyncio.sleep(1.0)
            assert busy(door.pid) - began < 50  # of a hundred: it does not spin
            await stream.readuntil(b"tick")
        await door.ask()


async def test_there_are_no_more_connections_than_descriptors_for_them(opened: Open) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300))

    async with opened(before=few) as door, door.silent(100) as crowd:
        await door.ask()
        assert len(list(Path(f"/proc/{door.pid}/fd").iterdir())) < 64
        assert not await over(crowd[-1], 0.2)

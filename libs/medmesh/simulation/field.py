"""Simulated hospitals in processes of their own beside the platform's, so that more than one processor has work.

A process is a copy of this one (`fork`): samples are there already, whatever reads them. Its hospitals ask the platform through its
socket, and are told facts by it. It ends when the other end closes, also because that was killed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from multidict import CIMultiDict

from medmesh.client.gateway import Gateway
from medmesh.client.http import Answer, Body
from medmesh.errors import Problem
from medmesh.simulation.link import Link
from medmesh.simulation.wire import Wire
from medmesh.tasks import end

PIECE = 4 << 20
"""Bytes of an object that are asked for at once."""
SHELVED, MOST_SHELVED = 1 << 20, 8
"""Of a larger piece each hospital asks itself, and so many of the smaller are kept: those of a round's model."""
END_SECONDS = 30.0
"""How long a process may take to end its worker; then it is killed."""
Tell = Callable[[Collection[str], dict[str, Any]], None]
"""Hospitals, and the fact that each of them is told."""
Idle = Callable[[], bool]


class Shelf:
    """Small pieces of objects that one hospital of a process asked for, for the others: an object never changes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int], tuple[int, bytes]] = OrderedDict()

    async def read(self, ask: Callable[..., Awaitable[tuple[int, bytes]]], sha256: str, start: int, end: int) -> tuple[int, bytes]:
        """The size of an object, and some of its bytes: as `ask` answers it."""
        if (found := self._kept.get((sha256, start, end))) is None:
            found = await ask("read", sha256=sha256, start=start, end=end)
            if len(found[1]) <= SHELVED:
                self._kept[sha256, start, end] = found
                while len(self._kept) > MOST_SHELVED:
                    self._kept.popitem(last=False)
        return found


class Far(Gateway):
    """The gateway as a hospital in another process sees it: what it asks is answered by its `Link` there."""

    def __init__(self, wire: Wire, hospital: str, shelf: Shelf) -> None:
        self.url = "memory:"
        self._wire, self._hospital, self._shelf = wire, hospital, shelf

    async def _ask(self, name: str, body: Body = b"", **how: Any) -> tuple[Any, bytes]:
        parts = [body] if isinstance(body, bytes) else body
        return await self._wire.ask({"hospital": self._hospital, "name": name, "how": how}, *parts)

    async def command(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        seconds: float = 120,
        key: str | None = None,
        enclosed: Sequence[bytes] = (),
    ) -> dict[str, Any]:
        """As `Gateway.command`."""
        done: dict[str, Any] = (await self._ask("command", enclosed, path=path, document=document, key=key))[0]
        return done

    async def request(
        self, method: str, path: str, document: Any = None, *, query: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        """As `Gateway.request`."""
        return (await self._ask("request", path=path, document=document, query=query))[0]

    async def raw(
        self,
        method: str,
        path: str,
        body: Body = b"",
        *,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        digest: str | None = None,
    ) -> Answer:
        """Of uploads: where to go on, and a piece."""
        told, _ = await self._ask("upload", body, method=method, path=path, query=query, digest=digest)
        return Answer(204, CIMultiDict(told))

    def stream(self, path: str, *, query: dict[str, Any] | None = None, headers: dict[str, str] | None = None, read: float = 60.0) -> Any:
        """Of downloads: a range of an object."""
        return self._range(path.removeprefix("/v1/objects/"), (headers or {}).get("Range", ""))

    async def whole(self, sha256: str, size: int) -> bytes:
        """A small object."""
        return (await self._shelf.read(self._ask, sha256, 0, size))[1]

    @asynccontextmanager
    async def _range(self, sha256: str, wanted: str) -> AsyncIterator[_Ranged]:
        start, _, last = wanted.removeprefix("bytes=").partition("-")
        yield _Ranged(partial(self._shelf.read, self._ask), sha256, int(start or 0), int(last) + 1 if last else None)


@dataclass
class _Ranged:
    """The part of a response that a download reads."""

    read: Callable[[str, int, int], Awaitable[tuple[int, bytes]]]
    sha256: str
    start: int
    end: int | None
    status_code: int = 200

    async def parts(self) -> AsyncIterator[list[bytes]]:
        at, end = self.start, self.end
        while end is None or at < end:
            size, piece = await self.read(self.sha256, at, min(at + PIECE, at + PIECE if end is None else end))
            end = size if end is None else min(end, size)
            at += len(piece)
            yield [piece]


@dataclass
class Field:
    """One process of hospitals, as the platform's sees it."""

    pid: int
    wire: Wire
    hospitals: frozenset[str]

    def tell(self, hospitals: Collection[str], document: dict[str, Any]) -> None:
        """A fact, to those of them that are here; once for all of them."""
        if told := [name for name in hospitals if name in self.hospitals]:
            self.wire.tell({"told": told}, json.dumps(document).encode())

    async def idle(self) -> bool:
        """Whether none of its hospitals has anything to do."""
        try:
            return bool((await self.wire.ask({"name": "idle"}))[0])
        except ConnectionResetError:  # it is gone: that is told by `wire.over`
            return False

    async def end(self) -> None:
        """Let it end, and make it."""
        self.wire.close()
        if self.wire.over.done():
            self.wire.over.exception()  # looked at, so that nobody is told it was not
        for _ in range(int(END_SECONDS / 0.02)):
            if _waited(self.pid, os.WNOHANG):
                return
            await asyncio.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        _waited(self.pid)


Work = Callable[[Wire, Sequence[str]], Any]
"""`async with` what these hospitals are in their process: how they are told, whether they are idle, and what they do until the end."""


@asynccontextmanager
async def fields(links: Sequence[dict[str, Link]], work: Work) -> AsyncIterator[list[Field]]:
    """A process for each of these groups of hospitals, with `work` done in it. Raises `Problem` and what else a hospital raises when it
    comes to be; what it raises later is the exception of its `wire.over`."""
    pairs = [socket.socketpair() for _ in links]
    ready: list[asyncio.Future[None]] = []
    made: list[Field] = []
    pids: list[int] = []
    for n, group in enumerate(links):
        pids.append(_fork(pairs, n, work, list(group)))
    try:
        for (ours, theirs), group, pid in zip(pairs, links, pids, strict=True):
            theirs.close()
            ready.append(asyncio.get_running_loop().create_future())
            made.append(Field(pid, await _connected(ours, group, ready[-1]), frozenset(group)))
        for field, one in zip(made, ready, strict=True):
            await asyncio.wait([one, field.wire.over], return_when=asyncio.FIRST_COMPLETED)
            if not one.done():
                raise gone(field)
        yield made
    finally:
        for pair in pairs[len(made) :]:
            pair[0].close()
        await asyncio.gather(*(field.end() for field in made))
        for pid in pids[len(made) :]:
            _waited(pid)


def _waited(pid: int, how: int = 0) -> bool:
    """Whether a child is over; it is buried then."""
    return os.waitpid(pid, how)[0] == pid


def gone(field: Field) -> BaseException:
    """Why its other end is."""
    return field.wire.over.exception() or Problem("simulation.killed", hospital=min(field.hospitals))


async def _connected(end: socket.socket, group: dict[str, Link], ready: asyncio.Future[None]) -> Wire:
    async def answer(what: dict[str, Any], beside: bytes) -> tuple[Any, Sequence[bytes]]:
        link, how = group[what["hospital"]], what["how"]
        match what["name"]:
            case "command":
                return await link.command(beside, **how), ()
            case "request":
                return await link.request(**how), ()
            case "upload":
                return await link.upload(beside, **how), ()
            case _:
                return await link.read(**how)

    def hear(document: dict[str, Any], _: bytes) -> None:
        if document.get("ready"):
            ready.set_result(None)
        elif not wire.over.done():
            problem = document.get("problem")
            error = RuntimeError(f"in a process of simulated hospitals:\n{document.get('error')}")
            wire.over.set_exception(error if problem is None else Problem.from_document(problem))

    wire = await Wire.on(end, answer, hear)
    return wire


def _fork(pairs: Sequence[tuple[socket.socket, socket.socket]], n: int, work: Work, hospitals: Sequence[str]) -> int:
    """A copy of this process that does `work` on the n-th pair's other end, and nothing else of what this one does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        if pid := os.fork():
            return pid
        code = 1
        try:
            signal.set_wakeup_fd(-1)  # of this process's loop
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both: the platform's process ends us
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for place, (ours, theirs) in enumerate(pairs):
                ours.close()
                if place != n:
                    theirs.close()
            asyncio.run(_inside(pairs[n][1], work, hospitals))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _inside(other: socket.socket, work: Work, hospitals: Sequence[str]) -> None:
    tell: Tell
    idle: Idle

    async def answer(what: dict[str, Any], beside: bytes) -> tuple[Any, Sequence[bytes]]:
        return idle(), ()

    def hear(document: dict[str, Any], beside: bytes) -> None:
        tell(document["told"], json.loads(beside))

    wire = await Wire.on(other, answer, hear)
    with here(), suppress(ConnectionResetError):
        try:
            async with work(wire, hospitals) as (tell, idle, done):
                task = asyncio.ensure_future(done)
                try:
                    with settled():
                        wire.tell({"ready": True})
                        await asyncio.wait([task, wire.over], return_when=asyncio.FIRST_COMPLETED)
                    if task.done():
                        task.result()
                finally:
                    await end(task)
        except ConnectionResetError:
            raise
        except Problem as problem:
            wire.tell({"problem": problem.document()})
        except Exception:  # whatever it is, the platform's process raises it: this one has nobody who reads
            wire.tell({"error": traceback.format_exc()})
        await wire.over  # until it was heard


@contextmanager
def here() -> Iterator[None]:
    """`asyncio.to_thread` makes no threads meanwhile: what takes microseconds is done at once, instead of waiting for its turn at the
    interpreter twice and for the loop to come round."""
    loop: Any = asyncio.get_running_loop()

    def run(executor: object, work: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        done = loop.create_future()
        try:
            done.set_result(work(*args))
        except Exception as error:  # whoever waits for the work gets it, as from a thread
            done.set_exception(error)
        return done

    loop.run_in_executor = run
    try:
        yield
    finally:
        del loop.run_in_executor


@contextmanager
def settled() -> Iterator[None]:
    """The collector leaves alone what is there now: with hundreds of hospitals, looking through all of it took a twelfth of a round."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

"""Everybody who is connected to a door: how many there may be, who goes when there are too many, and for how long one is waited for.

Who has a request under way that is complete is being served, and stays. Of everybody else something is awaited: the first byte, the rest of
a header or of a body, the next request. Each is given a time; and when there is no room, who was heard last the longest ago goes, from the
address that has most of those: whoever opens thousands of connections displaces their own.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

from medmesh.security.asgi_tls import TlsProtocol
from medmesh.tasks import end
from medmesh.telemetry import log, metrics

MOST = 4096
"""Connections of a door: 240 hospitals with eight streams each, twice over."""
OWN_DESCRIPTORS = 256
"""File descriptors that are kept for everything but connections: database, bus, stores, files."""
HEAD_SECONDS = 20.0
"""Until a handshake is over, then until a whole header is there; after an answer that long from the next byte on."""
BODY_SECONDS = 60.0
"""For which a body may stand still in all, beside the time it takes at `SLOWEST`."""
SLOWEST = 4096.0
"""Bytes a second."""
MOST_HEAD = 64 * 1024
"""Bytes that are neither a whole header nor of a body."""
MOST_PIPELINED = 8
"""Requests that wait for the answer to another of their connection."""
AT_ONCE, PAUSE_SECONDS = 16, 0.1
"""How many are cut off when file descriptors run out, of which others than the door need some, and how long nobody is let in then."""
BACKLOG = 2048
_LOG_SECONDS = 60.0


@dataclass(eq=False)
class Guest:
    """Somebody connected; `cut` ends that at once."""

    address: str
    cut: Callable[[], object]


@dataclass
class Crowd:
    """See the module."""

    most: int
    _here: set[Guest] = field(default_factory=set)
    _awaited: dict[str, dict[Guest, None]] = field(default_factory=dict)
    """By address those of whom something is awaited: of both, what was heard last the longest ago comes first."""
    _logged: float = float("-inf")

    def enter(self, guest: Guest) -> bool:
        """Somebody came; false where there is no room, and nobody to be cut off for them."""
        if len(self._here) >= self.most and not self.make_room():
            self.turned_away("full")
            return False
        self._here.add(guest)
        self.awaits(guest)
        return True

    def awaits(self, guest: Guest) -> None:
        """It was heard just now, and more is to come of it."""
        if guest in self._here:
            theirs = self._awaited.pop(guest.address, {})
            theirs.pop(guest, None)
            theirs[guest] = None
            self._awaited[guest.address] = theirs

    def serves(self, guest: Guest) -> None:
        """It is for us to answer."""
        if theirs := self._awaited.get(guest.address):
            theirs.pop(guest, None)
            if not theirs:
                del self._awaited[guest.address]

    def leave(self, guest: Guest) -> None:
        """It is gone; also a second time."""
        self._here.discard(guest)
        self.serves(guest)

    def make_room(self) -> bool:
        """Cut somebody off; whether there was somebody."""
        if not self._awaited:
            return False
        most = max(len(theirs) for theirs in self._awaited.values())
        guest = next(next(iter(theirs)) for theirs in self._awaited.values() if len(theirs) == most)
        self.leave(guest)
        guest.cut()
        self.turned_away("room")
        return True

    def turned_away(self, why: str) -> None:
        """Count it; in the log it stands once a minute, for whoever opens connections could fill that, too."""
        metrics.HTTP_CUT.labels(why).inc()
        now = asyncio.get_running_loop().time()
        if why in ("room", "full", "descriptors") and now - self._logged > _LOG_SECONDS:
            self._logged = now
            log("door.crowded", level=30, why=why, connections=len(self._here), most=self.most)


class Connection(TlsProtocol):
    """Of a guest. What is awaited of it has a time, and a size."""

    crowd: Crowd
    guest: Guest
    _timer: asyncio.TimerHandle | None = None
    _since = 0.0
    _taken = 0
    """Bytes of the body that came since `_since`."""
    _idle = 0
    """Bytes that came since there was a whole header or something of a body."""

    def connection_made(self, transport: Any) -> None:
        """The handshake is over."""
        super().connection_made(transport)
        self.guest.cut = transport.abort
        self._await(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self.crowd.leave(self.guest)
        self._done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of what was awaited."""
        self._idle += len(data)
        super().data_received(data)
        if self._idle > MOST_HEAD:
            self._cut("head")
        elif not self._awaited:
            self._done()
            self.crowd.serves(self.guest)
        else:
            self.crowd.awaits(self.guest)
            if self._timer is None:
                self._await(HEAD_SECONDS)

    @property
    def _awaited(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def on_headers_complete(self) -> None:
        """A request, of whose body nothing is here yet."""
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ValueError("too many requests at once")  # answered with 400, and the connection ends
        super().on_headers_complete()
        self._idle, self._taken, self._since = 0, 0, self.loop.time()

    def on_body(self, body: bytes) -> None:
        """Some of it."""
        self._idle, self._taken = 0, self._taken + len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """What is awaited now is the next request: for that uvicorn has a time of its own until its first byte."""
        super().on_response_complete()
        if self._awaited:
            self.crowd.awaits(self.guest)

    def _await(self, seconds: float) -> None:
        self._since, self._taken = self.loop.time(), 0
        self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        now, cycle = self.loop.time(), self.cycle
        if cycle is None or cycle.response_complete:
            left = self._since + HEAD_SECONDS - now
        elif self.flow.read_paused or cycle.waiting_for_100_continue:  # it waits for us
            self._since, self._taken, left = now, 0, BODY_SECONDS
        else:
            left = self._since + BODY_SECONDS + self._taken / SLOWEST - now
        if left <= 0:
            self._cut("late")
        else:
            self._timer = self.loop.call_later(left, self._look)

    def _done(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut(self, why: str) -> None:
        self.crowd.turned_away(why)
        self._done()
        self.transport.abort()


class Doorman:
    """Lets people in, in place of the server that asyncio makes of a socket that listens: that one knows of nobody before the handshake,
    for which it waits a minute, and when file descriptors run out it turns away whoever comes, and holds on to who says nothing."""

    def __init__(self, listening: socket.socket, made: Callable[[], Connection], crowd: Crowd, tls: ssl.SSLContext | None) -> None:
        self._listening, self._made, self._crowd, self._tls = listening, made, crowd, tls
        self._greeting: set[asyncio.Task[None]] = set()
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._task = asyncio.create_task(self._run(), name="doorman")

    def close(self) -> None:
        """Nobody new comes in."""
        for task in (self._task, *self._greeting):
            task.cancel()

    async def wait_closed(self) -> None:
        """Nobody is on the doorstep any more."""
        await end(self._task, *self._greeting)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(self._listening)
            except ConnectionError:
                continue  # gone before it was let in
            except OSError:  # no descriptors, or no memory: who waits outside waits on
                self._crowd.turned_away("descriptors")
                for _ in range(AT_ONCE):
                    self._crowd.make_room()
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._let_in(accepted, _whence(address[0]))
            await asyncio.sleep(0)  # where many come at once, those inside have their turn

    def _let_in(self, accepted: socket.socket, address: str) -> None:
        guest = Guest(address, accepted.close)
        if not self._crowd.enter(guest):
            accepted.close()
            return
        task = asyncio.create_task(self._greet(accepted, guest))
        guest.cut = task.cancel
        self._greeting.add(task)

        def greeted(task: asyncio.Task[None]) -> None:
            self._greeting.discard(task)
            if task.cancelled() or (error := task.exception()) is not None:
                self._crowd.leave(guest)
                accepted.close()  # also where it was cut off before anything was said
                if not task.cancelled() and not isinstance(error, OSError):  # a handshake that fails is nobody's fault here
                    log("door.failed", level=40, error=error)

        task.add_done_callback(greeted)

    async def _greet(self, accepted: socket.socket, guest: Guest) -> None:
        connection = self._made()
        connection.crowd, connection.guest = self._crowd, guest
        times = {"ssl_handshake_timeout": HEAD_SECONDS, "ssl_shutdown_timeout": HEAD_SECONDS} if self._tls else {}
        # With Nagle's algorithm an answer of two pieces waits 40 ms for the ACK of the first.
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted, ssl=self._tls, **times)


def _whence(host: str) -> str:
    """An address, or the network of 64 bits that one of IPv6 is in, which somebody has as a whole."""
    return host if ":" not in host else str(int(IPv6Address(host.partition("%")[0])) >> 64)


def room(most: int) -> int:
    """How many connections file descriptors are there for, at most so many. One that reads a file takes two."""
    needed = 2 * most + OWN_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
            soft = min(needed, hard)
    if (found := max(1, (soft - OWN_DESCRIPTORS) // 2)) < most:
        log("door.few_descriptors", level=30, descriptors=soft, connections=found, wanted=most)
        return found
    return most

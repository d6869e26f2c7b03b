"""A bad network between a client and a server: a TCP proxy that counts, cuts, delays and stalls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

SEGMENT = 1460


@dataclass
class Network:
    """What happens to bytes on their way. `up` and `down` count what was passed on; it may be changed while it runs."""

    up: int = 0
    down: int = 0
    cut_after: list[int] = field(default_factory=list)
    """Break every connection off when this many more bytes have passed; then the next number counts."""
    delay: float = 0.0
    """Seconds that each piece takes longer, in each direction, pieces following each other as on a long line."""
    rate: float = 0.0
    """Bytes a second that each connection carries at most, in each direction; 0: as many as come."""
    loss: float = 0.0
    """The share of segments that come a retransmission (0.2 s) later, and hold up what follows them, as TCP does."""
    cuts: int = 0
    _dice: random.Random = field(default_factory=lambda: random.Random(20_266))
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        self._open |= {writer, back}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, back, "up"))
                group.create_task(self._pass(there, writer, "down"))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, back):
                self._open.discard(end)
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        clock = asyncio.get_running_loop().time

        async def send() -> None:
            while (item := await queue.get())[1]:
                await asyncio.sleep(max(0.0, item[0] - clock()))
                if any(self._dice.random() < self.loss for _ in range(-(-len(item[1]) // SEGMENT))):
                    await asyncio.sleep(0.2)
                if self.rate:
                    await asyncio.sleep(len(item[1]) / self.rate)
                writer.write(item[1])
                await writer.drain()
                setattr(self, way, getattr(self, way) + len(item[1]))
                self._count(len(item[1]))
            with suppress(OSError):
                writer.write_eof()

        sending = asyncio.create_task(send())
        try:
            while data := await reader.read(1 << 16):
                await queue.put((clock() + self.delay, data))
                if sending.done():
                    break
            await queue.put((0.0, b""))
            await sending
        finally:
            sending.cancel()

    def _count(self, size: int) -> None:
        if self.cut_after:
            self.cut_after[0] -= size
            if self.cut_after[0] <= 0:
                self.cut_after.pop(0)
                self.cuts += 1
                for end in list(self._open):
                    end.transport.abort()


@asynccontextmanager
async def network(port: int, at: int = 0) -> AsyncIterator[tuple[int, Network]]:
    """A port (`at`, or any that is free) that leads to `port`, and what lies between."""
    between = Network()
    server = await asyncio.start_server(lambda reader, writer: between.serve(port, reader, writer), "127.0.0.1", at)
    try:
        yield server.sockets[0].getsockname()[1], between
    finally:
        server.close()
        for end in list(between._open):
            end.transport.abort()
        await asyncio.sleep(0.1)  # what was broken off is closed by the loop, which must still run then

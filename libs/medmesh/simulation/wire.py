"""What two processes of one simulation say to each other over a socket pair: JSON with bytes beside it, and answers to what was asked.

A frame is the length of its JSON (4 bytes), that of the bytes beside it (8 bytes, both big-endian), and the two.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

from medmesh.errors import Problem

_HEAD = struct.Struct(">IQ")
_spell, _read = json.JSONEncoder(default=str).encode, json.JSONDecoder().decode
Answer = Callable[[dict[str, Any], bytes], Awaitable[tuple[Any, Sequence[bytes]]]]
"""Of a question and the bytes beside it: a document, and bytes in parts. Raises `Problem`."""
Hear = Callable[[dict[str, Any], bytes], None]


class Wire(asyncio.Protocol):
    """One end. `answer` is asked what the other end asks, `hear` told what it tells; `over` is done when the other end is gone, or has the
    exception that one of the two raised here."""

    def __init__(self, answer: Answer, hear: Hear) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer, self._hear = answer, hear
        self._came = bytearray()
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[tuple[Any, bytes]]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._transport: Any = None

    @classmethod
    async def on(cls, end: socket.socket, answer: Answer, hear: Hear) -> Wire:
        """On one socket of a pair."""
        _, made = await asyncio.get_running_loop().create_unix_connection(lambda: cls(answer, hear), sock=end)
        return made

    def tell(self, document: dict[str, Any], *beside: bytes) -> None:
        """Say something that has no answer."""
        text = _spell(document).encode()
        self._transport.writelines([_HEAD.pack(len(text), sum(map(len, beside))), text, *beside])

    async def ask(self, document: dict[str, Any], *beside: bytes) -> tuple[Any, bytes]:
        """The answer to a question, and the bytes beside it. Raises the `Problem` that the other end raised, and `ConnectionResetError`
        when it is gone."""
        if self.over.done():
            raise ConnectionResetError
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self.tell({"asks": number, "what": document}, *beside)
            return await self._asked[number]
        finally:
            del self._asked[number]

    def close(self) -> None:
        """Say nothing more; what was said still goes."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError())
        for task in self._answering:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        came, at = self._came, 0
        came += data
        while len(came) - at >= _HEAD.size:
            text, beside = _HEAD.unpack_from(came, at)
            begin = at + _HEAD.size
            if len(came) < begin + text + beside:
                break
            at = begin + text + beside
            self._take(_read(came[begin : begin + text].decode()), bytes(came[begin + text : at]))
        del came[:at]

    def _take(self, document: dict[str, Any], beside: bytes) -> None:
        if (number := document.get("answers")) is not None:
            waiting = self._asked.get(number)
            if waiting is not None and not waiting.done():
                if (problem := document.get("problem")) is not None:
                    waiting.set_exception(Problem.from_document(problem))
                else:
                    waiting.set_result((document["what"], beside))
        elif (number := document.get("asks")) is not None:
            task = asyncio.get_running_loop().create_task(self._reply(number, document["what"], beside))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        else:
            self._hear(document, beside)

    async def _reply(self, number: int, what: dict[str, Any], beside: bytes) -> None:
        try:
            document, parts = await self._answer(what, beside)
            self.tell({"answers": number, "what": document}, *parts)
        except Problem as problem:
            self.tell({"answers": number, "problem": problem.document()})
        except Exception as error:  # a mistake of ours: both ends are over, with this as the reason
            if not self.over.done():
                self.over.set_exception(error)

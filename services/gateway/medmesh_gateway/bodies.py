"""Bodies of requests: how much of one is taken, and how somebody is refused of whose body nothing is wanted."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medmesh.errors import Problem
from medmesh.service.http import language, problem_response
from medmesh.store.objects.port import CHUNK

MAX_BODY = 256 * 1024
MOST_UNHEARD = MAX_BODY + CHUNK
"""Bytes of a refused body that are thrown away before its connection ends: as many as an honest one has."""
LINGER_SECONDS = 10.0
"""For how long."""


class Unread(Problem):
    """Raised before a request's body was taken to its end: nothing more of the connection is used."""


def hung_up(problem: Problem, request: Request) -> ASGIApp:
    """A problem as it is told to somebody who is to go: at once, and the connection ends when what was under way has come, or soon. Over
    TLS of asyncio (not of uvloop) a connection that ends while something still comes is reset, and who reads nothing before it has sent
    everything would not get the answer."""
    answer = problem_response(problem, language(request), {"Connection": "close"})

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        async def begin(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        await answer(scope, receive, begin)
        await _throw_away(receive)
        await send({"type": "http.response.body"})

    return application


async def _throw_away(receive: Receive) -> None:
    left, more = MOST_UNHEARD, True
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while more and left > 0:
                message = await receive()
                more, left = message.get("more_body", False), left - len(message.get("body", b""))


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """A request's body of at most `limit` bytes. Raises `Unread`."""
    return b"".join(await read_parts(request, limit))


async def read_parts(request: Request, limit: int) -> list[bytes]:
    """The same as it came, not copied; nothing of one that says itself that it is longer."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > limit:
        raise Unread("request.too_large", limit=limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Unread("request.too_large", limit=limit)
        parts.append(part)
    return parts

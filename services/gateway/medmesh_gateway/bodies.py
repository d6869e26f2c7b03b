"""Bodies of requests: how much of one is taken, and how somebody is refused of whose body nothing is wanted."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from medmesh.errors import Problem
from medmesh.service.http import language, problem_response

MAX_BODY = 256 * 1024


class Unread(Problem):
    """Raised before a request's body was taken to its end: nothing more of the connection is used."""


def hung_up(problem: Problem, request: Request) -> Response:
    """A problem as it is told to somebody who is to go. TLS hears out what is under way before the connection is gone: who still sends
    gets the answer, too."""
    return problem_response(problem, language(request), {"Connection": "close"})


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

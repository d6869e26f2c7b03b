"""Requests to the gateway: problems become exceptions, interrupted requests are repeated where that is safe."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import pybase64

from medmesh.client.credentials import Anonymous, Credentials
from medmesh.client.http import Answer, Body, Broken, Pool
from medmesh.contracts.message import Record, new_id
from medmesh.dicomweb import multipart
from medmesh.dicomweb.media import MULTIPART
from medmesh.errors import Problem
from medmesh.store.objects.port import ENCLOSED

R = TypeVar("R", bound=Record)
ATTEMPTS = 9
"""About six seconds in all."""
_JSON, _OCTETS = "application/json", "application/octet-stream"
_WAIT = 30


class Gateway:
    """A connection pool with somebody's credentials. `ca` is the authority's certificate; `identity` (certificate file, key file)
    is shown in the TLS handshake by hospitals' nodes."""

    def __init__(
        self,
        url: str,
        *,
        ca: Path | None = None,
        identity: tuple[Path, Path] | None = None,
        credentials: Credentials | None = None,
        language: str = "en",
        proxy: str | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._ca, self._proxy = ca, proxy
        self.url = url
        self._http = self._pool(identity)
        self.credentials: Credentials = credentials or Anonymous()
        self.language = language
        self._attempts = attempts
        self._owner = True

    def _pool(self, identity: tuple[Path, Path] | None) -> Pool:
        context = ssl.create_default_context(cafile=str(self._ca) if self._ca else None)
        if identity:
            context.load_cert_chain(*map(str, identity))
        return Pool(self.url, context, self._proxy)

    async def present(self, identity: tuple[Path, Path], credentials: Credentials) -> None:
        """Show another certificate from now on. What is under way breaks off and is tried again, as when the network does."""
        before, self._http, self.credentials = self._http, self._pool(identity), credentials
        await before.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._owner:
            await self._http.aclose()

    def acting_as(self, credentials: Credentials) -> Gateway:
        """The same connections with other credentials."""
        other = object.__new__(Gateway)
        other.__dict__.update(self.__dict__)
        other.credentials, other._owner = credentials, False
        return other

    def at(self, url: str, credentials: Credentials) -> Gateway:
        """Connections of their own to another door of the same platform."""
        return Gateway(url, ca=self._ca, credentials=credentials, language=self.language, proxy=self._proxy, attempts=self._attempts)

    async def request(
        self, method: str, path: str, document: Any = None, *, query: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        """Send a document and get one. Raises the `Problem` the platform answers with, or `client.unreachable`."""
        return await self._exchange(method, path, document, query, headers)

    async def _exchange(
        self,
        method: str,
        path: str,
        document: Any,
        query: dict[str, Any] | None,
        headers: dict[str, str] | None,
        enclosed: Sequence[bytes] = (),
    ) -> Any:
        written = b"" if document is None else json.dumps(document, ensure_ascii=False, default=str).encode()
        body, kind, digest = _together(written, enclosed) if enclosed else (written, _JSON, None)
        answer = await self.raw(method, path, body, query=query, headers={"Content-Type": kind, **(headers or {})}, digest=digest)
        return answer.json() if answer.content else None

    async def ask(self, path: str, reply: type[R], **query: Any) -> R:
        """A query, its answer as its contract's model."""
        return reply.model_validate(await self.request("GET", path, query=query or None), extra="ignore")

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
        """Send a command and wait for its owner's answer; repeating it after a broken connection has one effect. `enclosed` are bytes that
        go with it and that it names by their SHA-256: the document is what is signed (decision 0132).

        Raises the owner's `Problem`, or `client.slow` with the operation's id when it takes longer than `seconds`.
        """
        headers = {"Prefer": f"wait={_WAIT}", "Idempotency-Key": key or new_id()}
        answer = await self._exchange(method, path, document if document is not None else {}, None, headers, enclosed)
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        while answer["state"] == "running":
            if clock() > end:
                raise Problem("client.slow", operation=answer["operation"], seconds=int(seconds))
            answer = await self.request("GET", f"/v1/operations/{answer['operation']}", headers={"Prefer": f"wait={_WAIT}"})
        result: dict[str, Any] = answer["result"]
        return result

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
        """One request, repeated with back-off while the gateway is away, and once more after the second factor was shown where it
        is asked for. `digest` is what is signed for the body: its SHA-256, or what else vouches for it (`transfer.send`); a body in parts
        needs it. Raises `Problem`."""
        try:
            return await self._insist(method, path, body, query, headers, digest)
        except Problem as problem:
            ask = getattr(self.credentials, "second_factor", None)
            if problem.code != "security.step_up" or ask is None:
                raise
        shown = json.dumps({getattr(self.credentials, "shows", "code"): await ask()}).encode()
        await self._insist("POST", "/v1/sessions/step-up", shown, None, {"Content-Type": "application/json"})
        return await self._insist(method, path, body, query, headers, digest)

    async def _insist(
        self,
        method: str,
        path: str,
        body: Body,
        query: dict[str, Any] | None,
        headers: dict[str, str] | None,
        digest: str | None = None,
    ) -> Answer:
        target = f"{path}?{urlencode(query)}" if query else path
        for attempt in range(self._attempts):
            signed = {
                **self.credentials.headers(method, target, body if isinstance(body, bytes) else b"", digest),
                "Accept-Language": self.language,
                **(headers or {}),
            }
            try:
                answer = await self._http.request(method, target, content=body, headers=signed)
            except Broken as error:
                if attempt + 1 == self._attempts:
                    raise unreachable(self.url, error) from None
                await asyncio.sleep(pause(attempt, 2))
                continue
            if answer.status_code in (502, 503, 504) and attempt + 1 < self._attempts:
                await asyncio.sleep(pause(attempt, 2))
                continue
            if answer.status_code >= 400:
                raise problem_of(answer)
            return answer
        raise AssertionError

    def stream(self, path: str, *, query: dict[str, Any] | None = None, headers: dict[str, str] | None = None, read: float = 60.0) -> Any:
        """An open response whose body is read piece by piece."""
        target = f"{path}?{urlencode(query)}" if query else path
        signed = {**self.credentials.headers("GET", target, b""), **(headers or {})}
        return self._http.stream(target, headers=signed, read=read)

    async def inbox(
        self, after: int, opened: Callable[[], None] = lambda: None, enclosed: Callable[[bytes], None] | None = None
    ) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """A hospital's facts after a cursor as they come; ends when the connection does. Raises `Problem`.

        `opened` is called when the gateway let us in, which may be long before the first fact. `enclosed` is called with the bytes of a
        small object just before the fact that names it, where the platform sends them along: whoever takes them looks at their SHA-256.
        """
        query = {"after": after} | ({"enclose": ENCLOSED} if enclosed else {})
        try:
            async with self.stream("/v1/inbox", query=query, headers={"Accept": "text/event-stream"}, read=15) as answer:
                if answer.status_code >= 400:
                    raise problem_of(await answer.whole())
                opened()
                cursor = after
                async for line in answer.lines():
                    if line.startswith(b"id: "):
                        cursor = int(line[4:])
                    elif enclosed and line.startswith(b"object: "):
                        enclosed(pybase64.b64decode(memoryview(line)[8:], validate=True))  # strictly: in a fourth of the time
                    elif line.startswith(b"problem: "):
                        raise Problem.from_document(json.loads(line[9:]))
                    elif line.startswith(b"data: "):
                        yield _fact(cursor, json.loads(line[6:]))
        except Broken as error:
            raise unreachable(self.url, error) from None
        except (ValueError, RecursionError):  # no events of ours
            raise Problem("client.answer", status=200) from None

    async def poll(self, after: int, wait: float) -> list[tuple[int, dict[str, Any]]]:
        """The same by long polling, for networks that break event streams."""
        answer = await self.request("GET", "/v1/inbox", query={"after": after, "wait": wait})
        try:
            return [_fact(entry["cursor"], entry["event"]) for entry in answer["events"]]
        except (ValueError, KeyError, TypeError):
            raise Problem("client.answer", status=200) from None


def pause(failures: int, most: float = 10.0) -> float:
    """Seconds before the next try. They grow slowly, because a gateway that was started anew is back within seconds, and are drawn, so that
    all who lost it at one moment do not come back at one."""
    return min(0.2 * 1.5 ** min(failures, 20), most) * random.SystemRandom().uniform(0.5, 1.0)


def _fact(cursor: object, document: object) -> tuple[int, dict[str, Any]]:
    """What an inbox tells. Raises `ValueError`."""
    if not isinstance(cursor, int) or not 0 < cursor < 2**63 or not isinstance(document, dict):
        raise ValueError("no fact")
    return cursor, document


def _together(document: bytes, enclosed: Sequence[bytes]) -> tuple[list[bytes], str, str]:
    """(body, its media type, the digest to sign) of a document and the bytes it names, which are not copied."""
    boundary = new_id()
    body = list(multipart.written(boundary, ((_JSON, (document,)), (_OCTETS, enclosed))))
    return body, f'{MULTIPART}; boundary={boundary}; type="{_JSON}"', hashlib.sha256(document).hexdigest()


def problem_of(answer: Answer) -> Problem:
    """The problem in an answer."""
    try:
        return Problem.from_document(answer.json())
    except (ValueError, AttributeError):
        return Problem("client.answer", status=answer.status_code)


def unreachable(url: str, error: Broken) -> Problem:
    """Why the gateway could not be reached, as far as it can be told."""
    reason = type(error.__cause__).__name__
    return Problem("client.tls", url=url, reason=reason) if error.tls else Problem("client.unreachable", url=url, reason=reason)

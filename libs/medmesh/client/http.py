"""One connection pool over aiohttp: its parser is C, which is what moves models at the speed of TLS (`docs/decisions/0063`)."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from yarl import URL

from medmesh.absent import no_authorities
from medmesh.errors import Problem
from medmesh.store.objects.port import PART

with no_authorities():  # each pool has a context of its own
    import aiohttp
    from aiohttp.abc import AbstractStreamWriter

CONNECT_SECONDS = 15.0
READ_SECONDS = 60.0
LARGEST_ANSWER = 64 * 2**20
"""Bytes of an answer that is taken whole: what is larger is read piece by piece. Whoever answers without end is no gateway of ours."""
LONGEST_LINE = 4 * 2**20
"""Bytes of a line of events: an object that comes along, base64, has fewer."""


Body = bytes | Sequence[bytes]
"""What is sent: at once, or in parts."""


class Broken(Exception):
    """The connection could not be made, or did not last. The cause says more; `tls`, that it was TLS that failed, not the line under it."""

    tls = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; names of headers in any case."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes = b""

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """The body's document. Raises `ValueError`."""
        return json.loads(self.content)


class Streaming:
    """An answer whose body is read piece by piece. Raises `Broken`."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.status_code = answer.status

    async def whole(self) -> Answer:
        """Everything at once. Raises `Problem` (`client.answer`) where it is too much."""
        with _told():
            return await _whole(self._answer)

    async def parts(self, size: int = 1 << 20) -> AsyncIterator[list[bytes]]:
        """The body as it comes, gathered until there are `size` bytes and not copied."""
        held: list[bytes] = []
        length = 0
        with _told():
            async for part in self._answer.content.iter_any():
                held.append(part)
                length += len(part)
                if length >= size:
                    yield held
                    held, length = [], 0
        if held:
            yield held

    async def lines(self) -> AsyncIterator[bytes]:
        """The body's lines as they come, each of at most `LONGEST_LINE` bytes. Raises `ValueError` for a longer one."""
        held: list[bytes] = []  # of a line that has not ended: it may be long, and is put together once
        size = 0
        with _told():
            async for part in self._answer.content.iter_any():
                start = 0
                while (end := part.find(b"\n", start)) >= 0:
                    yield b"".join((*held, part[start:end]))
                    held, size, start = [], 0, end + 1
                held.append(part[start:] if start else part)
                if (size := size + len(held[-1])) > LONGEST_LINE:
                    raise ValueError("a line without an end")


class _Parts(aiohttp.Payload):
    """A large body, a little at a time so that others get their turn, and not copied; it can be sent again."""

    _autoclose = True

    def __init__(self, value: Sequence[bytes]) -> None:
        super().__init__(value)
        self._size = sum(map(len, value))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for part in self._value:
            for start in range(0, len(part), PART):
                await writer.write(memoryview(part)[start : start + PART])


class Pool:
    """Connections to `url`; the proxy of the environment is never used, only one that is given. A session begins with the first request."""

    def __init__(self, url: str, context: ssl.SSLContext, proxy: str | None = None) -> None:
        self._url, self._context, self._proxy = url.rstrip("/"), context, proxy
        self._session: aiohttp.ClientSession | None = None
        self._streams: set[aiohttp.ClientResponse] = set()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._context, limit=100),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
                read_bufsize=PART,
                skip_auto_headers=("Content-Type",),
            )
        return self._session

    def _ask(self, method: str, target: str, **options: Any) -> Any:
        # The target is signed as it stands: it is sent as it stands.
        url = URL(f"{self._url}{target}", encoded=True)
        return self._opened().request(method, url, proxy=self._proxy, allow_redirects=False, **options)

    async def request(self, method: str, target: str, *, content: Body = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Send and get everything. Raises `Broken`, and `Problem` (`client.answer`) where it is too much."""
        parts = [content] if isinstance(content, bytes) else content
        data = _Parts(parts) if sum(map(len, parts)) > PART else b"".join(parts) or None
        with _told():
            async with self._ask(method, target, data=data, headers=headers) as answer:
                return await _whole(answer)

    async def get(self, target: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        """See `request`."""
        return await self.request("GET", target, headers=headers)

    async def post(self, target: str, *, content: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """See `request`."""
        return await self.request("POST", target, content=content, headers=headers)

    @asynccontextmanager
    async def stream(self, target: str, *, headers: Mapping[str, str], read: float = READ_SECONDS) -> AsyncIterator[Streaming]:
        """Get an answer to read from; `read` is how many seconds nothing may come. Raises `Broken`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=read)
        with _told():
            answer = await self._ask("GET", target, headers=headers, timeout=timeout)
        self._streams.add(answer)
        try:
            async with answer:
                yield Streaming(answer)
        finally:
            self._streams.discard(answer)

    async def aclose(self) -> None:
        """Close the connections; what is under way breaks."""
        session, self._session = self._session, None
        for answer in self._streams:
            answer.close()  # whoever reads it would wait on
        if session is not None:
            await session.close()


async def _whole(answer: aiohttp.ClientResponse) -> Answer:
    held: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        held.append(part)
        if (size := size + len(part)) > LARGEST_ANSWER:
            raise Problem("client.answer", status=answer.status)
    return Answer(answer.status, answer.headers, b"".join(held))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        broken = Broken(str(error) or type(error).__name__)
        broken.tls = _of_tls(error)
        raise broken from error


def _of_tls(error: BaseException | None) -> bool:
    """By what raised it: the words of any failed connection name the SSL context it was tried with."""
    while error is not None:
        if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError):
            return not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)  # hung up in the middle
        error = error.__cause__ or error.__context__
    return False

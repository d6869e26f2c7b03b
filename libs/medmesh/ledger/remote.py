"""A log that is served: C2SP tlog-tiles over HTTP, and from our audit service the records too. Standard library only."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from medmesh.errors import Problem
from medmesh.ledger import tiles
from medmesh.ledger.copies import Body, Signed, read_line
from medmesh.ledger.second import PREFIX, Stored

PAGE = 500
_MOST_BYTES = 64 << 20


@dataclass
class Served:
    """`url` is the log's prefix (`https://…/log`); `proof` answers the headers with which our audit service is asked for an address, and is
    told when the ones before were refused.

    Without one the tree is read and no bodies. Raises `Problem` (`ledger.unreachable`) for whatever is not a 200 or 404.
    """

    url: str
    proof: Callable[[str, bool], Mapping[str, str]] | None = None
    ca: Path | None = None
    seconds: float = 30
    removed_is_tampering: bool = False
    _connection: http.client.HTTPConnection | None = None
    _refused: bool = False
    _second: Served | None = None

    def checkpoint(self) -> bytes:
        """See `Copy`."""
        return self._get(f"{self._prefix}/checkpoint")

    def tile(self, level: int, number: int, width: int) -> bytes:
        """See `Copy`."""
        return self._tile(level, number, width)[: width * tiles.HASH]

    def entries(self, number: int, width: int) -> Sequence[bytes]:
        """See `Copy`."""
        return tiles.unbundle(self._tile("entries", number, width))[:width]

    def bodies(self, first: int, size: int) -> Iterator[Body] | None:
        """See `Copy`."""
        return self._pages(first, size) if self.proof is not None else None

    def second(self) -> Stored | None:
        """See `Copy`."""
        if self._second is None:
            self._second = Served(f"{self.url.rstrip('/')}/{PREFIX}", self.proof, self.ca, self.seconds)
        return self._second

    def history(self) -> Iterator[Signed]:
        """See `Copy`."""
        return iter(())

    def oddities(self) -> Iterator[Problem]:
        """See `Copy`."""
        return iter(())

    @property
    def _prefix(self) -> str:
        return urlsplit(self.url).path.rstrip("/")

    def _tile(self, level: int | str, number: int, width: int) -> bytes:
        """A partial tile may be gone once the full one is there (tlog-tiles, Partial Tiles)."""
        try:
            return self._get(f"{self._prefix}/{tiles.path(level, number, width)}")
        except LookupError:
            if width == tiles.WIDTH:
                raise
            return self._get(f"{self._prefix}/{tiles.path(level, number)}")

    def _pages(self, first: int, size: int) -> Iterator[Body]:
        service = self._prefix.rpartition("/")[0]
        while first < size:
            try:
                page = json.loads(self._get(f"{service}/v1/bodies?first={first}&limit={PAGE}"))["bodies"]
                last = int(page[-1]["seq"]) if page else -1
            except (ValueError, KeyError, TypeError):
                raise Problem("ledger.unreachable", reason="/v1/bodies") from None
            for body in page:
                found = read_line(json.dumps(body).encode())
                if found[0] < size:
                    yield found
            if last < first:
                return
            first = last + 1

    def _get(self, target: str) -> bytes:
        for attempt in (1, 2):
            try:
                status, body = self._once(target)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                # A connection that was idle may have been closed by the other side.
                if attempt == 1:
                    continue
                raise Problem("ledger.unreachable", reason=f"{type(error).__name__}: {error}") from None
            self._refused = status == http.client.UNAUTHORIZED
            if self._refused and self.proof is not None and attempt == 1:
                continue
            if status == http.client.OK:
                return body
            if status == http.client.NOT_FOUND:
                raise LookupError(target.removeprefix(f"{self._prefix}/"))
            raise Problem("ledger.unreachable", reason=f"HTTP {status}, {target}")
        raise AssertionError("the second attempt answers or raises")

    def _once(self, target: str) -> tuple[int, bytes]:
        if self._connection is None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise Problem("ledger.unreachable", reason=self.url)
            if parts.scheme == "https":
                context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
                self._connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=self.seconds, context=context)
            else:
                self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.seconds)
        parts = urlsplit(self.url)
        headers = self.proof(f"{parts.scheme}://{parts.netloc}{target}", self._refused) if self.proof is not None else {}
        self._connection.request("GET", target, headers=dict(headers))
        answer = self._connection.getresponse()
        body = answer.read(_MOST_BYTES + 1)
        if len(body) > _MOST_BYTES:
            raise Problem("ledger.unreachable", reason=f"> {_MOST_BYTES} bytes, {target}")
        return answer.status, body

    def close(self) -> None:
        """See `Copy`."""
        self._drop()
        if self._second is not None:
            self._second.close()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

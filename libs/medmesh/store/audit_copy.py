"""The audit log as it lies in PostgreSQL, for `medmesh audit verify db`: read past the service, by whoever may SELECT."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import asyncpg

from medmesh.errors import Problem
from medmesh.ledger import leaf as leaves
from medmesh.ledger.copies import Body, Signed
from medmesh.ledger.second import Stored
from medmesh.ledger.tiles import HASH, WIDTH, path
from medmesh.ledger.tree import fold

T = TypeVar("T")
PAGE = 4_096
_MOST_ODD = 1_000


class _Second:
    removed_is_tampering = True

    def __init__(self, rows: Rows) -> None:
        self.checkpoint, self.tile = rows.sm_checkpoint, rows.sm_tile


class Rows:
    """The schema `audit` at one moment (one REPEATABLE READ transaction), page by page. Raises `Problem` when it cannot be read."""

    removed_is_tampering = True

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._odd: list[Problem] = []
        self._page: tuple[int, list[Any]] = (-1, [])
        self._size = 0
        try:
            self._sql = self._wait(asyncpg.connect(dsn, timeout=30))
            self._wait(self._sql.execute("SET default_transaction_read_only = on"))
            self._wait(self._sql.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._loop.close()
            raise Problem("ledger.unreachable", reason=f"PostgreSQL: {error}") from None

    def close(self) -> None:
        """End the transaction and the connection."""
        self._wait(self._sql.close())
        self._loop.close()

    def checkpoint(self) -> bytes:
        """The newest one with all its cosignatures."""
        rows = self._fetch("SELECT size, note FROM audit.checkpoints ORDER BY size DESC LIMIT 1")
        if not rows:
            raise LookupError("checkpoint")
        self._size = rows[0]["size"]
        lines = ""
        if self._fetch("SELECT to_regclass('audit.cosignatures') AS there")[0]["there"]:
            found = self._fetch("SELECT line FROM audit.cosignatures WHERE size = $1 ORDER BY witness", self._size)
            lines = "".join(row["line"] for row in found)
        return f"{rows[0]['note']}{lines}".encode()

    def tile(self, level: int, number: int, width: int) -> bytes:
        """See `medmesh.ledger.copies.Copy`."""
        rows = self._fetch("SELECT hashes, root FROM audit.tiles WHERE level = $1 AND number = $2", level, number)
        if rows:
            hashes = bytes(rows[0]["hashes"])
            if fold([hashes[i : i + HASH] for i in range(0, len(hashes), HASH)]) != rows[0]["root"]:
                self._odd.append(Problem("ledger.column", seq=(number * WIDTH) << (8 * level), field="tiles.root"))
            return hashes[: width * HASH]
        if width == WIDTH:
            raise LookupError(path(level, number))
        # Only full tiles are stored; a partial one is what lies below it.
        below = "SELECT root AS hash FROM audit.tiles WHERE level = $3 AND number >= $1 AND number < $2 ORDER BY number"
        if level == 0:
            below = "SELECT hash FROM audit.entries WHERE $3 = 0 AND seq >= $1 AND seq < $2 ORDER BY seq"
        found = self._fetch(below, number * WIDTH, number * WIDTH + width, max(0, level - 1))
        return b"".join(row["hash"] for row in found)

    def entries(self, number: int, width: int) -> Sequence[bytes]:
        """See `Copy`: a missing row shifts nothing, it is missing."""
        first = number * 256
        begin = first // PAGE * PAGE
        if self._page[0] != begin:
            columns = "seq, emitter, n, leaf, hash"
            query = f"SELECT {columns} FROM audit.entries WHERE seq >= $1 AND seq < $2 ORDER BY seq"  # noqa: S608 - our own names
            self._page = begin, self._fetch(query, begin, begin + PAGE)
        rows = [row for row in self._page[1] if first <= row["seq"] < first + width]
        for row in rows:
            self._columns(row)
        return [row["leaf"] for row in rows]

    def bodies(self, first: int, size: int) -> Iterator[Body] | None:
        """See `Copy`."""
        return self._bodies(first)

    def second(self) -> Stored | None:
        """See `Copy`."""
        there = self._fetch("SELECT to_regclass('audit.sm_checkpoints') AS there")[0]["there"]
        return _Second(self) if there and self._fetch("SELECT 1 FROM audit.sm_checkpoints LIMIT 1") else None

    def history(self) -> Iterator[Signed]:
        """See `Copy`."""
        last = -1
        while rows := self._fetch("SELECT size, root, note FROM audit.checkpoints WHERE size > $1 ORDER BY size LIMIT $2", last, PAGE):
            for row in rows:
                yield row["size"], row["root"], row["note"]
            last = rows[-1]["size"]

    def oddities(self) -> Iterator[Problem]:
        """See `Copy`: columns beside the leaf that contradict it, and counters beside the entries."""
        state = self._fetch("SELECT size FROM audit.state")
        if [row["size"] for row in state] != [self._size]:
            self._odd.append(Problem("ledger.column", seq=self._size, field="state.size"))
        counted = (
            "SELECT e.emitter FROM audit.emitters e WHERE e.n IS DISTINCT FROM (SELECT max(n) FROM audit.entries WHERE emitter = e.emitter)"
        )
        for row in self._fetch(counted):
            self._odd.append(Problem("ledger.column", seq=self._size, field=f"emitters.n ({row['emitter']})"))
        return iter(self._odd)

    def _columns(self, row: Any) -> None:
        try:
            leaf = leaves.decode(row["leaf"])
        except Problem:
            return  # the verifier says so itself
        truth = {"emitter": leaf.emitter, "n": leaf.n, "hash": hashlib.sha256(b"\0" + row["leaf"]).digest()}
        for name, value in truth.items():
            if row[name] != value and len(self._odd) < _MOST_ODD:
                self._odd.append(Problem("ledger.column", seq=row["seq"], field=name))

    def _bodies(self, first: int) -> Iterator[Body]:
        while rows := self._fetch(
            "SELECT seq, salt, body FROM audit.entries WHERE seq >= $1 AND body <> '' ORDER BY seq LIMIT $2", first, PAGE
        ):
            for row in rows:
                yield row["seq"], row["salt"], row["body"]
            first = rows[-1]["seq"] + 1

    def sm_checkpoint(self) -> bytes:
        """The newest one of the second tree."""
        return str(self._fetch("SELECT note FROM audit.sm_checkpoints ORDER BY size DESC LIMIT 1")[0]["note"]).encode()

    def sm_tile(self, level: int, number: int, width: int) -> bytes:
        """A full one as it is stored; others follow from what lies below, and nothing is stored of the lowest."""
        rows = self._fetch("SELECT hashes FROM audit.sm_tiles WHERE level = $1 AND number = $2", level, number)
        if rows:
            return bytes(rows[0]["hashes"])[: width * HASH]
        if width == WIDTH:
            raise LookupError(path(level, number))
        from medmesh.ledger import sm

        first, end = number * WIDTH, number * WIDTH + width
        if level == 0:
            leaves_ = self._fetch("SELECT leaf FROM audit.entries WHERE seq >= $1 AND seq < $2 ORDER BY seq", first, end)
            return b"".join(sm.leaf_hash(row["leaf"]) for row in leaves_)
        below = "SELECT root FROM audit.sm_tiles WHERE level = $3 AND number >= $1 AND number < $2 ORDER BY number"
        return b"".join(row["root"] for row in self._fetch(below, first, end, level - 1))

    def _fetch(self, query: str, *values: Any) -> list[Any]:
        try:
            return list(self._wait(self._sql.fetch(query, *values)))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise Problem("ledger.unreachable", reason=f"PostgreSQL: {error}") from None

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

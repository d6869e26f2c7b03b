"""The few statements of every transaction, written for speed against one driver each (`postgres`, `sqlite`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from medmesh.store.prepared import Prepared

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class Outgoing(NamedTuple):
    """One message to be sent after the commit."""

    id: str
    subject: str
    body: bytes


class Journal(Protocol):
    """Transaction control and the base tables on one connection."""

    async def begin(self, durable: bool = True) -> None:
        """Start the transaction; see `Database.unit`."""

    async def commit(self) -> None:
        """Commit it."""

    async def rollback(self) -> None:
        """Undo it; also when nothing was begun."""

    async def rows(self, prepared: Prepared, values: Mapping[str, Any]) -> Sequence[Any]:
        """Run a prepared statement; its rows, with the columns as attributes."""

    async def remember(self, consumer: str, event_id: str, now: datetime) -> bool:
        """Note that `consumer` handles this message. False when it did before."""

    async def remember_all(self, consumer: str, event_ids: Sequence[str], now: datetime) -> set[str]:
        """The same for several at once; answers those it did not handle before."""

    async def send(self, messages: Sequence[Outgoing], now: datetime) -> None:
        """Write the messages into the outbox."""

    async def unsent(self, limit: int, before: datetime | None = None) -> list[Outgoing]:
        """Messages (made before an instant) that were not sent yet, oldest first, which no other relay has claimed."""

    async def sent(self, ids: Sequence[str], now: datetime) -> None:
        """Note that these were sent; one statement, which needs no transaction."""

    async def unreceipted(self, limit: int) -> list[tuple[int, str, bytes]]:
        """Audit rows (n, id, body) the log has not acknowledged, in order."""

    async def number(self, count: int, last_id: str) -> tuple[int, str]:
        """Take `count` audit numbers; answers the last number and record id taken before."""

    async def record(self, rows: Sequence[tuple[int, str, bytes]], now: datetime) -> None:
        """Write audit rows (n, id, body)."""

    async def receipted(self, numbers: Sequence[int]) -> None:
        """Drop the audit rows of these numbers."""


class Driver(Protocol):
    """How one database is opened and journalled."""

    def journal(self, connection: AsyncConnection, raw: Any) -> Journal:
        """The journal on a connection; `raw` is the driver's own connection object."""

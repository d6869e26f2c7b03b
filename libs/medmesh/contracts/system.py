"""What every service answers: its dead letters."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from medmesh.contracts.message import Exchange, Query, Record


class DeadLetter(Record):
    service: str
    consumer: str
    event: str
    subject: str
    code: str
    reason: str
    attempts: int
    first_error: datetime
    last_error: datetime
    body: str | None = None


class DeadLetters(Record):
    letters: tuple[DeadLetter, ...]


class ListDeadLetters(Query):
    """Dead letters of `service`, newest first; with `event`, that one with its body."""

    TYPE: ClassVar[str] = "*.dead-letters.v1"
    ACTION: ClassVar[str | None] = "dead.read"
    Reply: ClassVar[type[Record]] = DeadLetters

    service: str
    event: str | None = None
    limit: int = 100

    def address(self) -> str:
        return f"medmesh.qry.{self.service}.dead-letters.v1"


class Replayed(Record):
    replayed: bool


class ReplayDeadLetter(Exchange):
    """Handle a dead letter once more; it leaves the table when its handler succeeds. An exchange: it leaves an audit record."""

    TYPE: ClassVar[str] = "*.replay-dead-letter.v1"
    ACTION: ClassVar[str | None] = "dead.replay"
    Reply: ClassVar[type[Record]] = Replayed

    service: str
    consumer: str
    event: str

    def address(self) -> str:
        return f"medmesh.qry.{self.service}.replay-dead-letter.v1"

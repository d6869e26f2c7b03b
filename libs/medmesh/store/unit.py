"""The unit of work: one transaction holding a state change, its messages and its audit records.

Handlers never commit, publish or acknowledge; they call `emit` and `audit`, and the runtime does the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sqlalchemy import CursorResult, Executable, Row, insert, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from medmesh.contracts.message import Command, Envelope, Event, encode, envelope, new_id
from medmesh.errors import Problem
from medmesh.store.journal import Journal, Outgoing
from medmesh.store.prepared import Prepared
from medmesh.store.tables import node_metadata
from medmesh.telemetry import log

if TYPE_CHECKING:  # a node does without it, and with 6 MiB less
    from sqlalchemy.ext.asyncio import AsyncConnection

_DATA_EXCEPTION = "22"
"""The SQLSTATE class of numbers out of range and characters that no text may hold."""
_SPENT = node_metadata().tables["approvals_spent"]

Ports = TypeVar("Ports")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Entity:
    """What an action touched: `kind` is a word of ours (federation, model, dataset...), `digest` a SHA-256 in hexadecimal."""

    kind: str
    id: str
    version: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One sensitive action, as a handler tells it; the recorder adds who, when, where and the emitter's number."""

    verb: str
    """Our name of the action, e.g. `federation.create`."""
    action: str
    """C, R, U, D or E, as in DICOM PS3.15 A.5."""
    outcome: int = 0
    """0 success, 4 minor failure, 8 serious failure, 12 major failure."""
    why: str = ""
    """The problem's code when the outcome is not 0."""
    entities: Sequence[Entity] = ()
    approval: Mapping[str, str] | None = None
    purpose: str = ""
    """HL7 v3 PurposeOfUse, where it is not the verb's own."""
    hospitals: Sequence[str] = ()
    """Whose data it is about, beside the actor's hospital and those among `entities`: they may read the record."""
    detail: Mapping[str, str | int | bool] = field(default_factory=dict)
    at: datetime | None = None
    """When it happened, where that was neither now nor when the message was made."""


class Actor(Protocol):
    """Who is behind a message; `medmesh.security.tokens.Actor` in production."""

    @property
    def text(self) -> str:
        """For example `person:wang@platform`."""


class Decision(Protocol):
    """Whether it was allowed, and the rule that said so; `medmesh.security.roles.Decision` in production."""

    @property
    def allowed(self) -> bool:
        """The decision."""

    @property
    def rule(self) -> str:
        """The one that decided, for example `role:researcher`."""

    @property
    def rules(self) -> tuple[str, ...]:
        """Every rule that was asked, for example `role:researcher`."""

    @property
    def policy(self) -> str:
        """The digest of the rules as they stood; empty where whoever decided did not say."""


@dataclass(frozen=True, slots=True)
class Context:
    """Why a transaction runs: the message that caused it and who is behind that message."""

    service: str
    cause: Envelope[Any] | None = None
    actor: Any = None
    token: str | None = None
    traceparent: str | None = None
    raw: bytes | None = None
    """The bytes of `cause` as they were published."""
    decision: Decision | None = None
    """What was decided of it; None for what nobody asked for: a timer, a start."""


Recorder = Callable[[AuditEntry, Context, str, int, str], bytes]
"""(entry, context, record id, emitter's number, previous record's id) -> canonical bytes of the audit record."""


class UnitOfWork(Generic[Ports]):
    """A running transaction. `sql` is the SQLAlchemy connection inside it, `ports` what the service's composition root built."""

    def __init__(
        self, sql: AsyncConnection, journal: Journal, context: Context, recorder: Recorder, ports: Ports, emits: frozenset[type]
    ) -> None:
        self.sql = sql
        self.journal = journal
        self.context = context
        self.ports = ports
        self.now = datetime.now(UTC)
        self._recorder = recorder
        self._emits = emits
        self._messages: list[Outgoing] = []
        self.outgoing: list[Outgoing] = []
        """What stands in the outbox and goes out once this is committed."""
        self._entries: list[tuple[AuditEntry, Context]] = []
        self._after: list[Callable[[], None]] = []
        self._once: dict[Hashable, Any] = {}
        self._at_end: dict[tuple[Callable[..., Awaitable[None]], tuple[Hashable, ...]], None] = {}
        self.access: Any = None
        """What the runtime found when it let the message in (`medmesh.service.guard.Access`); None for what no message caused."""
        self.ahead: Any = None
        """What was found before the transaction (`medmesh.bus.declarations.Consumer.before`)."""
        self.same = False
        """Whether the handler said `unchanged`."""
        self.accounted = 0
        """How many audit records were told, or things said to be `unchanged`: a command that succeeds has at least one."""

    @property
    def actor(self) -> Any:
        """The verified actor of the message that caused this (`medmesh.security.tokens.Actor`)."""
        return self.context.actor

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run one statement. Raises `Problem` (`store.value`) for a value that a column cannot hold: trying again would not help."""
        try:
            return await self.sql.execute(statement, parameters)
        except DBAPIError as error:
            if str(getattr(error.orig, "sqlstate", None)).startswith(_DATA_EXCEPTION):
                log("store.value", level=30, error=error)
                raise Problem("store.value") from None
            raise

    async def rows(self, prepared: Prepared, **values: Any) -> Sequence[Any]:
        """Run a prepared statement; its rows, if it answers any. Raises `Problem` as `execute` does."""
        return await self.journal.rows(prepared, values)

    async def one(self, prepared: Prepared, **values: Any) -> Any:
        """The first row of a prepared statement, or None."""
        found = await self.rows(prepared, **values)
        return found[0] if found else None

    async def once(self, read: Callable[..., Awaitable[V]], *about: Hashable) -> V:
        """What `read(self, *about)` found when it was asked first in this transaction, for all messages that share it. Only for what stays
        so until its end, or is kept up by whoever changes it."""
        if (read, about) not in self._once:
            self._once[read, about] = await read(self, *about)
        found: V = self._once[read, about]
        return found

    def at_end(self, call: Callable[..., Awaitable[None]], *about: Hashable) -> None:
        """Run `call(self, *about)` in this transaction when everything else is done: once, however many of its messages ask for it."""
        self._at_end[call, about] = None

    async def first(self, statement: Executable) -> Row[Any] | None:
        """The first row, or None."""
        return (await self.execute(statement)).first()

    async def all(self, statement: Executable) -> Sequence[Row[Any]]:
        """Every row."""
        return (await self.execute(statement)).all()

    def emit(self, message: Event | Command, *, hospital: str | None = None, id: str | None = None) -> str:
        """Publish `message` when this transaction commits; answers its id, a new one by default. The class must be among the service's
        declared ones."""
        if type(message) not in self._emits:
            raise TypeError(f"{self.context.service} does not declare that it emits or sends {type(message).__name__}")
        made = envelope(
            message,
            source=self.context.service,
            cause=self.context.cause,
            actor=self.context.token,
            hospital=hospital,
            traceparent=self.context.traceparent,
            id=id,
        )
        self._messages.append(Outgoing(made.id, made.type, encode(made)))
        return made.id

    def audit(self, entry: AuditEntry) -> None:
        """Record a sensitive action with this transaction."""
        self._entries.append((entry, self.context))
        self.accounted += 1

    def unchanged(self) -> None:
        """Say that what was asked for was so already: the command succeeds and leaves no second record of one action."""
        self.same = True
        self.accounted += 1

    def on_commit(self, call: Callable[[], None]) -> None:
        """Run `call` right after the commit: a hint to wake something up, never something that must happen."""
        self._after.append(call)

    async def spend_approval(self, approval: str) -> None:
        """Use an approval up. Raises `Problem` (`approval.spent`) when it was used before."""
        try:
            await self.execute(insert(_SPENT).values(id=approval, at=self.now))
        except IntegrityError:
            raise Problem("approval.spent", approval=approval) from None

    async def withhold_approval(self, approval: str) -> None:
        """It was taken back: should its grant still be on the way, it comes too late. One that was used stays used."""
        known = await self.first(select(_SPENT.c.id).where(_SPENT.c.id == approval))
        if known is None:
            await self.spend_approval(approval)

    async def flush(self) -> None:
        """Do what waits for the end, and write messages and audit records; the audit counter's row lock is therefore held for the shortest
        time."""
        while self._at_end:
            call, about = next(iter(self._at_end))
            del self._at_end[call, about]
            await call(self, *about)
        if self._messages:
            messages, self._messages = self._messages, []
            await self.journal.send(messages, self.now)
            self.outgoing += messages
        if self._entries:
            entries, self._entries = self._entries, []
            ids = [new_id() for _ in entries]
            n, previous = await self.journal.number(len(entries), ids[-1])
            rows = []
            for place, ((entry, context), id_) in enumerate(zip(entries, ids, strict=True), start=n + 1):
                rows.append((place, id_, self._recorder(entry, context, id_, place, previous)))
                previous = id_
            await self.journal.record(rows, self.now)
            self.audited = True

    audited = False

    def committed(self) -> None:
        """Tell whoever waits; called by `Database.unit` after the commit."""
        for call in self._after:
            call()

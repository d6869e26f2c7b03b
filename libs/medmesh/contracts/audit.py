"""Audit: request and receipt, no stream between. The subject proves who emitted: `medmesh.audit.<emitter>.record.v1`.

Reading is by query and scoped: a hospital reads what is about its own data, an auditor of an organisation that organisation,
the platform's auditors everything. Each reading is recorded.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from medmesh.contracts.message import Command, Event, Identifier, Instant, ObjectRef, Query, Record, Sha256

ExportFormat = Literal["jsonl", "fhir", "dicom", "ocsf", "csv"]
MOST_EVENTS = 1_000
"""Records in one page of a search."""


class AuditRecord(Record):
    """`body` is base64 of the canonical bytes of the record (`medmesh.ledger.record`); `id` and `n` repeat what stands in it."""

    id: str
    n: int
    body: str


class AuditBatch(Record):
    """Records of one emitter in the order of their counters. A hospital's batch carries its actor token."""

    emitter: str
    records: tuple[AuditRecord, ...]
    actor: str | None = None


class Receipt(Record):
    """The record is in the log at `seq` with this leaf hash."""

    id: str
    seq: int
    leaf: Sha256


class Receipts(Record):
    """One receipt a record, or the problem document why the batch was refused."""

    receipts: tuple[Receipt, ...] = ()
    problem: dict[str, object] | None = None


class Sighting(Record):
    """A checkpoint that a hospital's node was shown, as the log signed it: a C2SP signed note of at most 4 KiB."""

    note: str = Field(max_length=4096)
    hospital: Identifier | None = None
    """Whose it is; unsaid by whom it was shown to, because the credentials say it."""


class Sightings(Record):
    """What a few other hospitals were shown lately."""

    others: tuple[Sighting, ...]


# --- reading --------------------------------------------------------------------------------------------------------


class EventFilter(Record):
    """Which records: all that are given must fit. Times are when it happened, `until` is not included."""

    since: Instant | None = None
    until: Instant | None = None
    actor: str | None = None
    """For example `person:li`, `hospital:renji`."""
    org: str | None = None
    """The organisation whose data a record is about."""
    patient: str | None = None
    """A patient's pseudonym."""
    entity: str | None = None
    """KIND:ID, for example `model:mri-cnn`."""
    verb: str | None = None
    """A verb, or the beginning of one with *."""
    type: str | None = None
    """DICOM event id (110100 …) or `rest`."""
    outcome: Literal["0", "4", "8", "12"] | None = None
    purpose: str | None = None
    """HL7 v3 PurposeOfUse."""
    correlation: str | None = None


class LoggedEvent(Record):
    """A record and its number in the log."""

    seq: int
    record: dict[str, Any]


class Events(Record):
    """A page, oldest first; the next one begins after `next`, which is absent at the end."""

    events: tuple[LoggedEvent, ...]
    next: int | None = None


class SearchEvents(Query, EventFilter):
    """A page of at most `limit` records after `cursor`; a page also ends where it would grow over half a megabyte."""

    TYPE: ClassVar[str] = "audit.search-events.v1"
    ACTION: ClassVar[str | None] = "audit.read"
    Reply: ClassVar[type[Record]] = Events

    cursor: int | None = Field(default=None, ge=0, lt=2**53)
    limit: int = Field(default=100, ge=1, le=MOST_EVENTS)


class Evidence(Record):
    """One record with all that proves it offline: leaf, salt and body in base64, `proof` a C2SP `.tlog-proof`; `witnesses` says
    whether enough of them saw its checkpoint."""

    seq: int
    leaf: str
    salt: str
    body: str
    proof: str
    witnesses: str


class ProveEvent(Query):
    """`event` is a record's id, or its number in the log."""

    TYPE: ClassVar[str] = "audit.prove-event.v1"
    ACTION: ClassVar[str | None] = "audit.read"
    Reply: ClassVar[type[Record]] = Evidence

    event: str


class Body(Record):
    """Salt and body of one record, base64."""

    seq: int
    salt: str
    body: str


class Bodies(Record):
    """Those of a range the asker may read; `next` is where to go on, absent at the end."""

    bodies: tuple[Body, ...]
    next: int | None = None


class ListBodies(Query):
    """Bodies from number `first` on, for a copy that is verified offline."""

    TYPE: ClassVar[str] = "audit.list-bodies.v1"
    ACTION: ClassVar[str | None] = "audit.read"
    Reply: ClassVar[type[Record]] = Bodies

    first: int = Field(default=0, ge=0)
    limit: int = Field(default=500, ge=1, le=MOST_EVENTS)


class LogFile(Record):
    """The bytes of a file of the log, base64."""

    content: str


class ReadLog(Query):
    """`checkpoint`, or a tile or entry bundle by its C2SP tlog-tiles path: hashes and headers, which tell no content."""

    TYPE: ClassVar[str] = "audit.read-log.v1"
    ACTION: ClassVar[str | None] = "audit.proof"
    Reply: ClassVar[type[Record]] = LogFile

    path: str = Field(max_length=200)


# --- exports --------------------------------------------------------------------------------------------------------


class RequestExport(Command):
    """Fix exactly what would be exported. Result: `{"export", "digest"}`; the digest is what `audit.export` is approved for."""

    TYPE: ClassVar[str] = "audit.request-export.v1"
    ACTION: ClassVar[str] = "audit.export"

    format: ExportFormat
    filter: EventFilter = EventFilter()
    complete: bool = False
    """Also open what does not fit, where headers alone do not prove that it does not: nothing that fits can be left out unseen."""


class ExportView(Record):
    """`state`: waiting, approved, ready, refused or failed; `done` of `size` entries of the log were looked at."""

    export: str
    requester: str
    format: ExportFormat
    filter: EventFilter
    digest: Sha256
    state: str
    size: int
    done: int
    object: ObjectRef | None = None
    code: str = ""
    created: datetime


class GetExport(Query):
    """How an export stands."""

    TYPE: ClassVar[str] = "audit.get-export.v1"
    ACTION: ClassVar[str | None] = "audit.report"
    Reply: ClassVar[type[Record]] = ExportView

    export: str


# --- retention ------------------------------------------------------------------------------------------------------


class RequestPruning(Command):
    """Fix up to where bodies would go: `below`, or as far as policy, holds and locks allow. Result: `{"change", "digest", "request"}`; the
    digest is what `log.prune` is approved for."""

    TYPE: ClassVar[str] = "audit.request-pruning.v1"
    ACTION: ClassVar[str] = "log.prune"

    below: int | None = Field(default=None, ge=0, lt=2**53)


class RequestRetention(Command):
    """Fix how long a class of records would be kept; 180 days are the law's floor. Result: as `RequestPruning`, for `retention.change`."""

    TYPE: ClassVar[str] = "audit.request-retention.v1"
    ACTION: ClassVar[str] = "retention.change"

    kind: Literal["security", "clinical", "operations"]
    days: int = Field(ge=180, le=36_500)


class PlaceHold(Command):
    """Keep every body about an organisation, or all of them (an empty `org`), until the hold is lifted. Result: `{"hold"}`."""

    TYPE: ClassVar[str] = "audit.place-hold.v1"
    ACTION: ClassVar[str] = "log.hold"

    org: str = Field(default="", max_length=80)
    reason: str = Field(min_length=1, max_length=500)


class RequestLift(Command):
    """Fix which hold would be lifted. Result: as `RequestPruning`, for `retention.change`."""

    TYPE: ClassVar[str] = "audit.request-lift.v1"
    ACTION: ClassVar[str] = "retention.change"

    hold: str


class Hold(Record):
    """A legal hold that stands."""

    hold: str
    org: str
    reason: str
    who: str
    placed: datetime


class Change(Record):
    """A request about retention: waiting, approved, done, refused or failed."""

    change: str
    action: str
    state: str
    code: str
    request: dict[str, Any]


class RetentionView(Record):
    """`days` by class; below `minimum` no bodies are, and a request may ask for up to `prunable` today."""

    days: dict[str, int]
    minimum: int
    prunable: int
    holds: tuple[Hold, ...]
    changes: tuple[Change, ...]


class GetRetention(Query):
    """How long bodies are kept."""

    TYPE: ClassVar[str] = "audit.get-retention.v1"
    ACTION: ClassVar[str | None] = "audit.report"
    Reply: ClassVar[type[Record]] = RetentionView


# --- what operators do ----------------------------------------------------------------------------------------------

MaintenanceVerb = Literal[
    "backup.create", "backup.restore", "backup.verify", "vault.export", "vault.import", "vault.retire", "vault.rotate"
]


class Thing(Record):
    """What a command touched: a backup, a domain of keys, a wrapping key; `digest` where it has one."""

    kind: str = Field(max_length=40)
    id: str = Field(max_length=200)
    digest: Sha256 | None = None


class RecordMaintenance(Command):
    """Something was done on the platform's own machine, at `at`, by this account of it; `code` says why it failed. No secrets, no paths."""

    TYPE: ClassVar[str] = "audit.record-maintenance.v1"
    ACTION: ClassVar[str] = "maintenance.record"

    verb: MaintenanceVerb
    at: Instant
    account: str = Field(max_length=100)
    code: str = Field(default="", max_length=80)
    things: tuple[Thing, ...] = Field(default=(), max_length=8)
    detail: dict[str, str | int | bool] = Field(default={}, max_length=8)


# --- facts ----------------------------------------------------------------------------------------------------------


class CheckpointPublished(Event):
    """A signed note; also the fact that the log lives."""

    TYPE: ClassVar[str] = "audit.checkpoint.published.v1"

    size: int
    root: Sha256
    note: str


class ExportFinished(Event):
    """An approved export is there, or failed with a problem's code."""

    TYPE: ClassVar[str] = "audit.export.finished.v1"

    export: str
    format: ExportFormat
    records: int
    object: ObjectRef | None = None
    code: str = ""


class LogChanged(Event):
    """An approved change of retention, of a hold or of the log's minimum index is done, or failed with a problem's code."""

    TYPE: ClassVar[str] = "audit.log.changed.v1"

    change: str
    action: str
    minimum: int
    code: str = ""


class AlertRaised(Event):
    """An anomaly of the log. `seq` is the record that showed it, `trace` the trace it belongs to, where there is one."""

    TYPE: ClassVar[str] = "audit.alert.raised.v1"

    alert: str
    rule: str
    severity: Literal["warning", "critical"]
    about: str
    seq: int | None = None
    trace: str = ""


def record_subject(emitter: str) -> str:
    """Where `emitter` (a service, or `edge` for hospitals through the gateway) hands its records in."""
    return f"medmesh.audit.{emitter}.record.v1"

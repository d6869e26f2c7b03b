"""Audit: request and receipt, no stream between. The subject proves who emitted: `medmesh.audit.<emitter>.record.v1`."""

from __future__ import annotations

from typing import ClassVar

from medmesh.contracts.message import Event, Record, Sha256


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


class CheckpointPublished(Event):
    """A signed note; also the fact that the log lives."""

    TYPE: ClassVar[str] = "audit.checkpoint.published.v1"

    size: int
    root: Sha256
    note: str


def record_subject(emitter: str) -> str:
    """Where `emitter` (a service, or `edge` for hospitals through the gateway) hands its records in."""
    return f"medmesh.audit.{emitter}.record.v1"

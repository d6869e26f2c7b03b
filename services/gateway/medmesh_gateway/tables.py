"""Tables of the gateway."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Index, LargeBinary, String, Table, Text, UniqueConstraint

from medmesh.store.tables import service_metadata
from medmesh.store.types import Counter, Json, Timestamp

METADATA = service_metadata()

operations = Table(
    "operations",
    METADATA,
    Column("operation", String(36), primary_key=True),
    Column("actor", String(160), nullable=False),
    Column("command", String(120), nullable=False),
    Column("idempotency_key", String(128)),
    Column("finished", Boolean, nullable=False),
    Column("succeeded", Boolean),
    Column("result", Json),
    Column("problem", Json),
    Column("created_at", Timestamp, nullable=False),
    Column("finished_at", Timestamp),
    # A client that repeats a request with the same key gets the operation it already started.
    UniqueConstraint("actor", "idempotency_key"),
)

cursors = Table(
    "inbox_cursors",
    METADATA,
    Column("hospital", String(63), primary_key=True),
    Column("last", Counter, nullable=False),
    comment="row-locked counter a hospital: its inbox has no gaps, whatever the stream's numbers are",
)

inboxes = Table(
    "inboxes",
    METADATA,
    Column("hospital", String(63), primary_key=True),
    Column("cursor", Counter, primary_key=True, autoincrement=False),
    Column("event_id", String(36), nullable=False),
    Column("type", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", Timestamp, nullable=False),
)
Index("ix_inboxes_created_at", inboxes.c.created_at)

sightings = Table(
    "sightings",
    METADATA,
    Column("hospital", String(63), primary_key=True),
    Column("note", Text, nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="the newest checkpoint of the log that each hospital's node says it was shown, as the log signed it",
)

nonces = Table(
    "nonces",
    METADATA,
    Column("nonce", String(64), primary_key=True),
    Column("until", Timestamp, nullable=False),
    comment="signed requests of hospitals, each good once",
)

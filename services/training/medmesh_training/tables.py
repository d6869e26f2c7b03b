"""Tables of training."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, String, Table, Text, text

from medmesh.store.tables import add_label_tables, service_metadata
from medmesh.store.types import Counter, Json, Timestamp

METADATA = add_label_tables(service_metadata())

jobs = Table(
    "jobs",
    METADATA,
    Column("job", String(36), primary_key=True),
    Column("submitter", String(160), nullable=False),
    Column("package", Json, nullable=False),
    Column("dataset", String(63), nullable=False),
    Column("version", Counter, nullable=False),
    Column("content", Json, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("seed", Counter, nullable=False),
    Column("schedule", Json, nullable=False, comment="what beside the data and the seed decides the weights, as it was at submission"),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("stalled", Integer, nullable=False, server_default=text("0"), comment="attempts begun since the last checkpoint"),
    Column("due_at", Timestamp, nullable=False, comment="when anybody may claim it: queued ones at once, running ones after the lease"),
    Column("step", Integer, nullable=False, server_default=text("0")),
    Column("weights", Json, comment="the last checkpoint"),
    Column("metrics", Json, nullable=False, server_default=text("'{}'")),
    Column("failure", Text),
    Column("submitted_at", Timestamp, nullable=False),
    Column("ended_at", Timestamp),
)
rehearsals = Table(
    "rehearsals",
    METADATA,
    Column("report", String(64), primary_key=True),
    Column("package", String(64), nullable=False),
    Column("object", Json, nullable=False),
    Column("found", Json, nullable=False),
    Column("by", String(160), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="what came of running a package on invented data, by the SHA-256 of the report",
)
Index("ix_rehearsals_package", rehearsals.c.package, rehearsals.c.at)
Index("ix_jobs_due", jobs.c.due_at, postgresql_where=text("state IN ('queued', 'running')"))

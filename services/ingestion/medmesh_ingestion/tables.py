"""Tables of ingestion."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Index, Integer, String, Table, UniqueConstraint, text

from medmesh.store.tables import add_label_tables, service_metadata
from medmesh.store.types import Json, Timestamp
from medmesh.timeline.tables import add_timeline_tables

METADATA = add_label_tables(service_metadata())

datasets = Table(
    "datasets",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("newest", Integer, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    comment="its row is locked while a version gets its number",
)

versions = Table(
    "versions",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("archive", String(64), nullable=False),
    Column("content", Json, nullable=False),
    Column("samples", Integer, nullable=False),
    Column("labels", Json, nullable=False),
    Column("rejected", Json, nullable=False),
    Column("tables", Json, nullable=False, server_default=text("'[]'"), comment="name, kind, rows, groups and splits of each"),
    Column("created_at", Timestamp, nullable=False),
    Column("maker", String(160), nullable=False),
    Column("organisation", String(63), nullable=False),
    Column("approval", String(64), comment="of its release"),
    Column("released_at", Timestamp),
    UniqueConstraint("dataset", "archive"),
    # Not released without an approval: held by the database too, whatever a program does.
    CheckConstraint("(approval IS NULL) = (released_at IS NULL)", name="released_with_approval"),
    comment="its content never changes; its maker's alone until it is released; the same archive is never two versions",
)

timelines = Table(
    "timelines",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("maker", String(160), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    comment="whose the timelines of a data set are: nobody else takes in, asks or exports",
)
add_timeline_tables(METADATA)

descriptors = Table(
    "descriptors",
    METADATA,
    Column("hospital", String(63), primary_key=True),
    Column("dataset", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("descriptor", Json, nullable=False),
    Column("published_at", Timestamp, nullable=False),
    comment="counts that hospitals publish of data that stays with them",
)
Index("ix_descriptors_published_at", descriptors.c.published_at)

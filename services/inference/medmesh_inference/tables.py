"""Tables of inference: what ought to be served; the files on disk follow them and may be lost."""

from __future__ import annotations

from sqlalchemy import Column, Index, String, Table

from medmesh.store.tables import add_door_table, add_label_tables, service_metadata
from medmesh.store.types import Counter, Json, Timestamp

METADATA = add_door_table(add_label_tables(service_metadata()))

releases = Table(
    "releases",
    METADATA,
    Column("release", String(64), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Counter, nullable=False),
    Column("state", String(16), nullable=False),
    Column("code", String(80), nullable=False),
    Column("event", Json, nullable=False),
    Column("changed_at", Timestamp, nullable=False),
    comment="each release with the event it came with: its signature and approval are verified again before it is loaded again",
)
# One version of a model is served at a time: held by the database too, whatever a program does.
Index("uq_releases_serving", releases.c.model, unique=True, postgresql_where=releases.c.state == "serving")

withdrawals = Table(
    "withdrawals",
    METADATA,
    Column("model", String(63), primary_key=True),
    Column("version", Counter, primary_key=True, autoincrement=False),
    Column("at", Timestamp, nullable=False),
    comment="a withdrawn version stays so, also when its release is heard of later",
)

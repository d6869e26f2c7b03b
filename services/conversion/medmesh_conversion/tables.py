"""Tables of conversion."""

from __future__ import annotations

from sqlalchemy import Column, Integer, String, Table

from medmesh.store.tables import service_metadata
from medmesh.store.types import Json, Timestamp

METADATA = service_metadata()

conversions = Table(
    "conversions",
    METADATA,
    Column("model", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("target", String(16), primary_key=True),
    Column("source", String(64), primary_key=True),
    Column("package", String(64), nullable=False),
    Column("artefact", String(64), nullable=False),
    Column("report", Json, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    comment="what was converted: the same weights are not converted twice",
)

refusals = Table(
    "refusals",
    METADATA,
    Column("operation", String(64), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("source", String(64), nullable=False),
    Column("problem", Json, nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="one row a refused command: told once, however often the command is delivered",
)

"""Tables of the registry. Whatever changes a version or its releases holds the lock of the version's row."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from medmesh.store.tables import add_label_tables, service_metadata
from medmesh.store.types import Json, Timestamp

METADATA = add_label_tables(service_metadata())

models = Table(
    "models",
    METADATA,
    Column("model", String(63), primary_key=True),
    Column("latest", Integer, nullable=False),
    comment="the newest version's number: its row's lock makes numbers follow each other",
)

versions = Table(
    "versions",
    METADATA,
    Column("model", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("weights", Json, nullable=False),
    Column("package", Json, nullable=False),
    Column("lineage", Json, nullable=False),
    Column("content", String(64), nullable=False),
    Column("federation", String(64), unique=True),
    Column("notes", Json, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    UniqueConstraint("model", "content"),
    comment="content is the digest of weights, package and lineage; federation is set only where the federation itself said so",
)
Index("ix_versions_created", versions.c.created_at)

withdrawals = Table(
    "withdrawals",
    METADATA,
    Column("federation", String(64), primary_key=True),
    Column("hospital", String(63), primary_key=True),
    Column("at", Timestamp, nullable=False),
    comment="hospitals that left a federation for good, also after its end: shown at the version in which they have a part",
)

artefacts = Table(
    "artefacts",
    METADATA,
    Column("model", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("format", String(16), primary_key=True),
    Column("object", Json, nullable=False),
    Column("parity_max_abs", Float),
    Column("report", Json, nullable=False),
    Column("preprocess", Json, nullable=False),
    Column("classes", Json, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
)

releases = Table(
    "releases",
    METADATA,
    Column("release", String(36), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("hospitals", Json, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False),
    Column("approval", String(64)),
    Column("token", Text),
    Column("signature", LargeBinary),
    Column("created_at", Timestamp, nullable=False),
    Column("released_at", Timestamp),
    ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
    # Nothing counts as released without an approval and a signature, whatever a program does.
    CheckConstraint("state <> 'released' OR (approval IS NOT NULL AND signature IS NOT NULL)", name="released_is_approved"),
    comment="manifest holds the exact bytes that are digested, approved and signed",
)
Index("ix_releases_version", releases.c.model, releases.c.version)

installs = Table(
    "installs",
    METADATA,
    Column("release", String(36), ForeignKey("releases.release"), primary_key=True),
    Column("hospital", String(63), primary_key=True),
    Column("installed", Boolean, nullable=False),
    Column("code", String(80), nullable=False),
    Column("at", Timestamp, nullable=False),
)

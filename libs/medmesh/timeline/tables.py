"""The tables of timelines; whoever keeps them adds these to its own."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

from medmesh.store.types import Counter, Timestamp

_NAMES = MetaData()


def add_timeline_tables(metadata: MetaData) -> None:
    """Subjects, events, what events were read from, merges of identities, saved cohorts, confirmed codes."""
    Table(
        "timeline_subjects",
        metadata,
        Column("subject_id", Counter, primary_key=True, autoincrement=False),
        Column("patient", String(64), nullable=False, unique=True),
        Column(
            "identity", Text, nullable=False, comment="authority and local id, sealed under the patient's key; empty where nobody has it"
        ),
        Column("at", Timestamp, nullable=False),
        comment="one identity each: `subject_id` is MEDS's, `patient` the pseudonym",
    )
    events = Table(
        "timeline_events",
        metadata,
        Column("event_id", String(36), primary_key=True),
        Column("project", String(63), nullable=False),
        Column("subject_id", Counter, nullable=False),
        Column("time", Counter, comment="microseconds since 1970 on the patient's shifted axis; NULL is static"),
        Column("code", Text, nullable=False),
        Column("numeric_value", Float(53)),
        Column("text", Text, comment="the value as text, sealed under the patient's key where there is one"),
        Column("unit", Text),
        Column("code_system", String(80), nullable=False),
        Column("modality", String(80), nullable=False),
        Column("time_precision", String(12)),
        Column("source", String(40), nullable=False),
        Column("source_key", String(64), nullable=False, comment="keyed hash of the source's own name of it"),
        Column(
            "source_raw", String(64), nullable=False, comment="what it was read from, in timeline_sources; empty where that is not kept"
        ),
        Column("object_sha256", String(64)),
        Column("consent_id", String(64)),
        Column("revision", Counter, nullable=False),
        Column("withdrawn", Boolean, nullable=False),
        Column("digest", String(64), nullable=False, comment="keyed hash of its content"),
        Column("ingested_at", Timestamp, nullable=False),
        UniqueConstraint("project", "source", "source_key", "subject_id", "revision"),
        comment="append-only: a correction is a further revision, and of one event the newest counts",
    )
    Index("ix_timeline_events_subject", events.c.project, events.c.subject_id, events.c.time)
    Index("ix_timeline_events_code", events.c.project, events.c.code)
    Table(
        "timeline_sources",
        metadata,
        Column("subject_id", Counter, primary_key=True, autoincrement=False),
        Column("raw", String(64), primary_key=True, comment="keyed hash"),
        Column("content", Text, nullable=False, comment="zlib, sealed under the patient's key"),
        comment="the resource or message that events were read from, once",
    )
    Table(
        "timeline_merges",
        metadata,
        Column("n", Counter, primary_key=True),
        Column("source", String(40), nullable=False),
        Column("source_key", String(64), nullable=False),
        Column("survivor", Counter, nullable=False),
        Column("loser", Counter, nullable=False),
        Column("days", Integer, nullable=False, comment="to add to the loser's times to have them on the survivor's axis"),
        Column("undone", Boolean, nullable=False),
        Column("at", Timestamp, nullable=False),
        UniqueConstraint("source", "source_key"),
        comment="append-only: what identities are one person follows from all of it in order",
    )
    Table(
        "timeline_cohorts",
        metadata,
        Column("project", String(63), primary_key=True),
        Column("name", String(63), primary_key=True),
        Column("version", Integer, primary_key=True, autoincrement=False),
        Column("definition", Text, nullable=False, comment="canonical JSON"),
        Column("digest", String(64), nullable=False),
        Column("at", Timestamp, nullable=False),
        comment="saved queries; a version never changes",
    )
    Table(
        "timeline_codings",
        metadata,
        Column("n", Counter, primary_key=True),
        Column("project", String(63), nullable=False),
        Column("code", Text, nullable=False, comment="the hospital's own"),
        Column("standard", Text, nullable=False, comment="what it is read as from here on; empty takes that back"),
        Column("confirmed_by", String(80), nullable=False),
        Column("at", Timestamp, nullable=False),
        comment="append-only: what people confirmed that local codes mean",
    )


add_timeline_tables(_NAMES)
subjects, events, sources, merges, cohorts, codings = (
    _NAMES.tables[f"timeline_{name}"] for name in ("subjects", "events", "sources", "merges", "cohorts", "codings")
)
"""For statements; they mean the same whichever metadata made the tables."""

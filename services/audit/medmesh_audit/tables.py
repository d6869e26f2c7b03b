"""Tables of audit: INSERT and SELECT are all the sequencer needs of `entries`; the migration takes the rest away."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Index, Integer, LargeBinary, String, Table, Text, UniqueConstraint

from medmesh.store.tables import service_metadata
from medmesh.store.types import Counter, Json, Timestamp

METADATA = service_metadata()

entries = Table(
    "entries",
    METADATA,
    Column("seq", Counter, primary_key=True, autoincrement=False),
    Column("id", String(36), nullable=False),
    Column("emitter", String(80), nullable=False),
    Column("n", Counter, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("at", Timestamp, nullable=False),
    UniqueConstraint("emitter", "n"),
    comment="the log's leaves with the salt and body of each record",
)

# What auditors ask for, drawn out of the bodies; it can be rebuilt from them at any time and proves nothing.
facts = Table(
    "facts",
    METADATA,
    Column("seq", Counter, primary_key=True, autoincrement=False),
    Column("t", Timestamp, nullable=False),
    Column("recorded", Timestamp, nullable=False),
    Column("verb", String(80), nullable=False),
    Column("outcome", Integer, nullable=False),
    Column("who", Text, nullable=False),
    Column("org", String(80), nullable=False),
    Column("service", String(80), nullable=False),
    Column("id", String(36), nullable=False),
    Column("type", String(16), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("correlation", Text, nullable=False),
    Column("orgs", Json, nullable=False),
    Column("entities", Json, nullable=False),
)
Index("ix_facts_id", facts.c.id)
Index("ix_facts_t", facts.c.t)
Index("ix_facts_who", facts.c.who)
Index("ix_facts_correlation", facts.c.correlation)
Index("ix_facts_orgs", facts.c.orgs, postgresql_using="gin")
Index("ix_facts_verb", facts.c.verb)
Index("ix_facts_entities", facts.c.entities, postgresql_using="gin")

tiles = Table(
    "tiles",
    METADATA,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("number", Counter, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    METADATA,
    Column("size", Counter, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
    Column("at", Timestamp, nullable=False),
)

exports = Table(
    "exports",
    METADATA,
    Column("export", String(36), primary_key=True),
    Column("requester", Text, nullable=False),
    Column("scope", String(80), nullable=False),
    Column("format", String(16), nullable=False),
    Column("filters", Json, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("approval", String(64), nullable=False),
    Column("size", Counter, nullable=False),
    Column("done", Counter, nullable=False),
    Column("object", Json),
    Column("code", String(80), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("finished_at", Timestamp),
    CheckConstraint("state IN ('waiting', 'approved', 'ready', 'refused', 'failed')", name="state"),
    comment="`digest` is what approvers sign; `scope` the one organisation it may hold, empty for all; `size` the log's at the approval",
)

alerts = Table(
    "alerts",
    METADATA,
    Column("alert", String(36), primary_key=True),
    Column("rule", String(40), nullable=False),
    Column("subject", Text, nullable=False),
    Column("window", Counter, nullable=False),
    Column("seq", Counter),
    Column("trace", String(32), nullable=False),
    Column("at", Timestamp, nullable=False),
    UniqueConstraint("rule", "subject", "window"),
    comment="what was raised: one alert a rule, a subject and a window of time",
)

cosignatures = Table(
    "cosignatures",
    METADATA,
    Column("size", Counter, primary_key=True, autoincrement=False),
    Column("witness", Text, primary_key=True),
    Column("line", Text, nullable=False),
    Column("time", Counter, nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="what witnesses said of checkpoints; only ever inserted",
)

state = Table(
    "state",
    METADATA,
    Column("one", Integer, primary_key=True),
    Column("size", Counter, nullable=False),
    CheckConstraint("one = 1", name="single"),
    comment="the sequencer locks this row: two of them take turns, and neither overwrites the other",
)

emitters = Table(
    "emitters",
    METADATA,
    Column("emitter", String(80), primary_key=True),
    Column("n", Counter, nullable=False),
    Column("last_at", Timestamp, nullable=False),
)

"""Tables of audit. What is evidence only grows: entries, full tiles, checkpoints, seals (`medmesh.store.guard`)."""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, Index, Integer, LargeBinary, String, Table, Text, UniqueConstraint, false, func

from medmesh.store.guard import APPEND_ONLY, add_watch_table, emptied
from medmesh.store.tables import add_door_table, service_metadata
from medmesh.store.types import Counter, Json, Timestamp

METADATA = add_door_table(service_metadata())
ddl = add_watch_table(METADATA)

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
    UniqueConstraint("id"),
    CheckConstraint("seq >= 0", name="position"),
    info=emptied(("salt", "body"), place="seq", below="SELECT max(minimum) FROM prunings"),
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
    Column("root", LargeBinary, nullable=False),
    CheckConstraint("length(hashes) = 8192 AND length(root) = 32", name="full"),
    info=APPEND_ONLY,
    comment="full tiles only, each with the hash over it; a partial one is read off what lies below it",
)

checkpoints = Table(
    "checkpoints",
    METADATA,
    Column("size", Counter, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
    Column("at", Timestamp, nullable=False),
    info=APPEND_ONLY,
)

exports = Table(
    "exports",
    METADATA,
    Column("export", String(36), primary_key=True),
    Column("requester", Text, nullable=False),
    Column("scope", String(80), nullable=False),
    Column("format", String(16), nullable=False),
    Column("filters", Json, nullable=False),
    Column("complete", Boolean, nullable=False, server_default=false()),
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

# The second tree (SM3, SM2) over the same entries, where there is one.
sm_tiles = Table(
    "sm_tiles",
    METADATA,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("number", Counter, primary_key=True, autoincrement=False),
    Column("hashes", LargeBinary, nullable=False),
    Column("root", LargeBinary, nullable=False),
    CheckConstraint("length(hashes) = 8192 AND length(root) = 32", name="full"),
    info=APPEND_ONLY,
    comment="full tiles of the second tree, as `tiles`",
)

sm_checkpoints = Table(
    "sm_checkpoints",
    METADATA,
    Column("size", Counter, primary_key=True, autoincrement=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
    Column("at", Timestamp, nullable=False),
    info=APPEND_ONLY,
)

# Requests about how long bodies are kept, and what came of them.
changes = Table(
    "changes",
    METADATA,
    Column("change", String(36), primary_key=True),
    Column("action", String(40), nullable=False),
    Column("request", Json, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("requester", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("approval", String(64), nullable=False),
    Column("code", String(80), nullable=False),
    Column("created_at", Timestamp, nullable=False),
    CheckConstraint("state IN ('waiting', 'approved', 'done', 'refused', 'failed')", name="state"),
    comment="`digest` is what approvers sign",
)

retentions = Table(
    "retentions",
    METADATA,
    Column("change", String(36), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("days", Integer, nullable=False),
    Column("at", Timestamp, nullable=False),
    CheckConstraint("days >= 180", name="law"),
    info=APPEND_ONLY,
    comment="how many days a class of records is kept, as it was approved; the last one of a class counts",
)

holds = Table(
    "holds",
    METADATA,
    Column("hold", String(36), primary_key=True),
    Column("org", String(80), nullable=False),
    Column("reason", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("placed_at", Timestamp, nullable=False),
    Column("lifted_at", Timestamp),
    comment="legal holds; an empty organisation is everything",
)

prunings = Table(
    "prunings",
    METADATA,
    Column("minimum", Counter, primary_key=True, autoincrement=False),
    Column("record", Counter, nullable=False),
    Column("change", String(36), nullable=False),
    Column("at", Timestamp, nullable=False),
    CheckConstraint("minimum % 256 = 0 AND record >= minimum", name="bundles"),
    info=APPEND_ONLY,
    comment="minimum index below which bodies may go, and the record in the log that says so",
)

cosignatures = Table(
    "cosignatures",
    METADATA,
    Column("size", Counter, primary_key=True, autoincrement=False),
    Column("witness", Text, primary_key=True),
    Column("line", Text, nullable=False),
    Column("time", Counter, nullable=False),
    Column("at", Timestamp, nullable=False),
    info=APPEND_ONLY,
    comment="what witnesses said of checkpoints",
)

conflicts = Table(
    "conflicts",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),
    Column("emitter", String(80), nullable=False),
    Column("n", Counter, nullable=False),
    Column("seq", Counter, nullable=False),
    Column("at", Timestamp, nullable=False),
    info=APPEND_ONLY,
    comment="records that came under the number or id of another one; `seq` is the one that was logged",
)

seals = Table(
    "seals",
    METADATA,
    Column("kind", String(12), primary_key=True),
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("number", Counter, primary_key=True, autoincrement=False),
    Column("version", String(80), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("at", Timestamp, nullable=False),
    info=APPEND_ONLY,
    comment="what lies in the object store under lock, and under which version: `entries`, `tile`, or `checkpoint` (number = its size)",
)

# All that changes: how long the log is, and who may write it.
state = Table(
    "state",
    METADATA,
    Column("one", Integer, primary_key=True),
    Column("size", Counter, nullable=False),
    Column("term", Counter, nullable=False, server_default="0"),
    Column("beat", Timestamp, nullable=False, server_default=func.now()),
    Column("ddl_seen", Counter, nullable=False, server_default="0"),
    CheckConstraint("one = 1", name="single"),
    comment="the writer moves `size` from what it knows, in its own term: one that was overtaken moves nothing",
)

emitters = Table(
    "emitters",
    METADATA,
    Column("emitter", String(80), primary_key=True),
    Column("n", Counter, nullable=False),
    Column("last_at", Timestamp, nullable=False),
    comment="follows from the entries, kept for coverage",
)

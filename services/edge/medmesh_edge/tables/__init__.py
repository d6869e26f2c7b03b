"""The node's own store, in SQLite."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    literal,
    text,
)

from medmesh.store.attempts import columns
from medmesh.store.types import Counter, Json, Timestamp
from medmesh.timeline.tables import add_timeline_tables
from medmesh_edge.tables.items import METADATA, items, leaving, parts, unsettled

__all__ = ["METADATA", "items", "leaving", "parts", "unsettled"]
add_timeline_tables(METADATA)


def among(column: Column[Any], *words: str) -> ColumnElement[bool]:
    """For prepared statements: whether it is one of these."""
    return column.in_([literal(word) for word in words])


def given(table: Table) -> dict[str, Any]:
    """For prepared statements: a value for each of the table's columns, by the column's name."""
    return {column.name: bindparam(column.name, type_=column.type) for column in table.c}


held_texts = Table(
    "held_texts",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("item", String(64), nullable=False, unique=True),
    Column("dataset", String(63), nullable=False),
    Column("patient", String(64), nullable=False),
    Column("modality", String(80), nullable=False),
    Column("object", String(64), nullable=False, comment="the note as it came, under the patient's key; empty once a person decided"),
    Column("digest", String(64), nullable=False, comment="its SHA-256: the same note is not asked about twice"),
    Column("review", Text, nullable=False, comment="what rules found, by place and kind, without the text"),
    Column("doubts", Integer, nullable=False, comment="how much of that a person must look at"),
    Column("label", String(80), nullable=False),
    Column("split", String(8), nullable=False),
    Column("ethics", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("by", String(80), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="held -> released | rejected | replaced: notes in which rules doubt whether somebody is named",
)

patients = Table(
    "patients",
    METADATA,
    Column("patient", String(64), primary_key=True),
    Column("key", Text, nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="a patient's key, wrapped by the hospital's; the row goes, and with it what lies under the key",
)

outputs = Table(
    "pipeline_outputs",
    METADATA,
    Column("object", String(64), primary_key=True),
    Column("pipeline", String(64), primary_key=True),
    Column("patient", String(64), nullable=False),
    Column("output", String(64), nullable=False),
    Column("bytes", Counter, nullable=False, server_default=text("0"), comment="of the disk; 0: not known yet"),
    Column("used", Timestamp),
    Column("at", Timestamp, nullable=False),
    comment="what the pipeline of this hash made of an item's object: an object under the patient's key",
)

ethics_approvals = Table(
    "ethics_approvals",
    METADATA,
    Column("number", String(64), primary_key=True),
    Column("title", Text, nullable=False),
    Column("kinds", Json, nullable=False),
    Column("since", String(10), nullable=False),
    Column("until", String(10), nullable=False, comment="the last day"),
    Column("individual", Boolean, nullable=False, comment="only of patients who agreed"),
    Column("ended", Text, nullable=False, comment="why it ended before its time"),
    Column("by", String(80), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="what the hospital's ethics committee approved",
)

consents = Table(
    "consents",
    METADATA,
    Column("number", String(64), primary_key=True),
    Column("patient", String(64), primary_key=True),
    Column("at", Timestamp, nullable=False),
    comment="patients (pseudonyms) who agreed to what an approval is for",
)

forgettings = Table(
    "forgettings",
    METADATA,
    Column("request", String(36), primary_key=True),
    Column("patient", String(64)),
    Column("reason", String(16), nullable=False),
    Column("asked_by", String(80), nullable=False),
    Column("approved_by", String(80), nullable=False),
    Column("state", String(16), nullable=False),
    Column("objects", Json, nullable=False),
    Column("affected", Json, nullable=False, server_default=text("'{}'"), comment="data sets and federations that had the patient's data"),
    Column("at", Timestamp, nullable=False),
    comment="asked -> erasing -> erased -> done; `patient` only while it is asked",
)

datasets = Table(
    "datasets",
    METADATA,
    Column("dataset", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("published", Integer, nullable=False),
)

federations = Table(
    "federations",
    METADATA,
    Column("federation", String(36), primary_key=True),
    Column("plan", Json, nullable=False),
    Column("plan_hash", String(64), nullable=False),
    Column("package", Json, nullable=False),
    Column("reviews", Json, nullable=False, server_default=text("'[]'"), comment="of its code, signed by who read it"),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("said", Text, nullable=False, server_default=text("''"), comment="by who paused or cancelled it at the platform"),
    Column("part", Integer, comment="of one that this hospital left: committed rounds with its part, as the platform says"),
    Column("approved", Text, comment="by a person of the hospital: this plan and its code, signed with the hospital's own key"),
    Column("start", Json, comment="the start as the platform told it, with who approved and who accepted"),
    Column("at", Timestamp, nullable=False),
    comment="invited -> accepted | declined | expired; running, completed, failed as the platform tells",
)
OPEN_STATES = ("invited", "accepted", "running", "paused")
"""Of a federation of which something may still be trained here; all others are ends."""
SHOWN = ("federation", "state", "reason", "said", "part")
"""Of a federation what is shown in a list."""
# The same of those that are invited, take part, or are over: what was once signed stays, with its plan.
Index("ix_federations_state", federations.c.state)

environments = Table(
    "approved_environments",
    METADATA,
    Column("federation", String(36), primary_key=True),
    Column("digest", String(64), nullable=False, comment="empty: nothing was approved yet"),
    Column("inventory", Json, nullable=False, comment="interpreter and installations, to say later what is other"),
    Column("found", Json, comment="the inventory of another one that was refused; null once there is none"),
    Column("by", String(80), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="what a federation's code may run in, as the hospital approved it with the code",
)

tasks = Table(
    "tasks",
    METADATA,
    *columns(),
    Column("kind", String(16), nullable=False),
    Column("event", Json, nullable=False),
    Column("state", String(16), nullable=False),
    Column("update", Json),
    Column("samples", Counter, nullable=False),
    Column("metrics", Json, nullable=False),
    Column("counts", Json, comment="of the model the round began with, as they may be told"),
    Column("milliseconds", Json, nullable=False, server_default=text("'{}'"), comment="what the round's time went into"),
    Column("trained", Integer, nullable=False),
    Column("code", String(80), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="received -> trained -> sent -> released | failed | superseded; `trained` counts how often it was trained",
)
# What there is to do is asked several times a round, whatever was done before.
Index("ix_tasks_state", tasks.c.state)

cohorts = Table(
    "cohorts",
    METADATA,
    Column("modality", String(80), primary_key=True),
    Column("label", String(80), primary_key=True),
    Column("members", Json, nullable=False),
    comment="held-out samples that are counted where small cells are not told, in groups of patients: each changes as a whole",
)

secure_attempts = Table(
    "secure_attempts",
    METADATA,
    *columns(),
    Column("document", Text, nullable=False),
    comment="this hospital's secrets of a secure sum under a key of the attempt, which is destroyed when the round is over",
)

secure_phases = Table(
    "secure_phases",
    METADATA,
    *columns(),
    Column("phase", String(16), primary_key=True),
    Column("messages", Json, nullable=False),
    Column("state", String(16), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="received -> done, or kept: what the platform passed on",
)
# Whether there is one is asked several times a round, and `messages` are large and come before `state`.
Index("ix_secure_phases_state", secure_phases.c.state, secure_phases.c.at)

secure_opened = Table(
    "secure_opened",
    METADATA,
    Column("federation", String(36), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("list", String(80), nullable=False),
    comment="the one survivor list of a round that this hospital claimed; a row never goes and never changes",
)

privacy_spent = Table(
    "privacy_spent",
    METADATA,
    *columns(),
    Column("epsilon", String(32), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="written before an attempt trains: what the federation has spent of this hospital's privacy with it; a row never goes",
)

chain = Table(
    "chain",
    METADATA,
    *columns(),
    Column("value", String(64), nullable=False),
    comment="the chain of each federation's rounds as this hospital saw it; a row never goes and never changes",
)

committed = Table(
    "committed",
    METADATA,
    *columns(),
    Column("value", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("state", String(64)),
    comment="what the rounds before each round left, as this hospital was told; a row never goes and never changes",
)

bases = Table(
    "bases",
    METADATA,
    *columns(),
    Column("base", String(64), nullable=False),
    comment="the model that each training round began with, as this hospital saw it: none comes again without an approval",
)

witnessed = Table(
    "witnessed",
    METADATA,
    Column("federation", String(36), primary_key=True),
    Column("plan_hash", String(64), nullable=False),
    Column("evidence", Text, nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="the start's record in the platform's log, with what proves it: a `.tlog-proof` under a checkpoint that was witnessed",
)

log_views = Table(
    "log_views",
    METADATA,
    Column("origin", String(200), primary_key=True),
    Column("note", Text, nullable=False),
    Column("size", Counter, nullable=False),
    Column("at", Timestamp, nullable=False),
    Column("fault", String(40), nullable=False),
    Column("shown", Text, nullable=False),
    comment="the newest signed checkpoint of each log; with a fault, `shown` is the one that contradicts it",
)

scans = Table(
    "scans",
    METADATA,
    *columns(),
    Column("advantage", String(8), nullable=False),
    Column("margin", String(8), nullable=False),
    Column("trained", Integer, nullable=False),
    Column("held_out", Integer, nullable=False),
    Column("refused", Boolean, nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="how well the losses of a trained model tell its patients from others, of so many of each: it never leaves",
)

kept = Table(
    "kept",
    METADATA,
    *columns(),
    Column("object", Json, nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="what a federated algorithm has this hospital keep for its next round: it never leaves",
)

residuals = Table(
    "residuals",
    METADATA,
    *columns(),
    Column("object", String(64), nullable=False),
    comment="what a codec left out of an update: it goes into the next round's, and never leaves the hospital",
)

unnamed = Table(
    "unnamed",
    METADATA,
    Column("object", String(64), primary_key=True),
    comment="what a round is about to seal, or has sealed, until rows name it: the row goes with the transaction that does",
)

requests = Table(
    "requests",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("seq", Counter, nullable=False),
    Column("path", Text, nullable=False),
    Column("body", Json, nullable=False),
    Column("state", String(16), nullable=False),
    Column("answer", Json),
    Column("at", Timestamp, nullable=False),
    UniqueConstraint("seq"),
    comment="waiting -> gone | refused: commands for the platform, sent in order with their id as idempotency key",
)

inbox_cursor = Table("inbox_cursor", METADATA, Column("one", Integer, primary_key=True), Column("cursor", Counter, nullable=False))

releases = Table(
    "releases",
    METADATA,
    Column("release", String(64), primary_key=True),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("event", Json, nullable=False),
    Column("state", String(16), nullable=False),
    Column("code", String(80), nullable=False),
    Column("withdrawn", Json, comment="hospitals with a part in it that left its federation for good; null while none is known"),
    Column("at", Timestamp, nullable=False),
)

results = Table(
    "results",
    METADATA,
    Column("item", String(64), primary_key=True),
    Column("model", String(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("label", String(80), nullable=False),
    Column("probabilities", Json, nullable=False),
    Column("at", Timestamp, nullable=False),
)

dicomweb_clients = Table(
    "dicomweb_clients",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("token", String(64), nullable=False, unique=True, comment="its SHA-256"),
    Column("project", String(63), nullable=False),
    Column("realm", String(16), nullable=False),
    Column("rights", String(16), nullable=False),
    Column("at", Timestamp, nullable=False),
    Column("expires", Timestamp, nullable=False),
    comment="systems of the hospital that may use its DICOMweb",
)

blobs = Table(
    "blobs",
    METADATA,
    Column("name", String(80), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    comment="small values of the node itself",
)

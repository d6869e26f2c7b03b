"""The tables every service has beside its own: what makes handlers exactly-once in effect and actions provable."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Identity, Index, Integer, LargeBinary, MetaData, String, Table, Text, text

from medmesh.store.types import Counter, Json, Timestamp

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def service_metadata() -> MetaData:
    """A fresh `MetaData` holding the base tables; a service adds its own to it in `tables.py`."""
    metadata = node_metadata()
    # The relay looks for what is unsent, whatever its number: commit order is not number order.
    seq = metadata.tables["outbox"].c.seq
    Index("ix_outbox_unsent", seq, postgresql_where=text("sent_at IS NULL"), sqlite_where=text("sent_at IS NULL"))
    return metadata


def node_metadata() -> MetaData:
    """The same for a hospital's node, which sends nothing by an outbox and knows no PostgreSQL; also for statements."""
    metadata = MetaData(naming_convention=NAMING)
    add_base_tables(metadata)
    return metadata


def add_base_tables(metadata: MetaData) -> None:
    """Outbox, inbox, audit rows and their counter, dead letters, spent approvals."""
    Table(
        "outbox",
        metadata,
        Column("id", String(36), primary_key=True),
        Column("seq", Counter, Identity(always=True), nullable=False),
        Column("subject", Text, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("created_at", Timestamp, nullable=False),
        Column("sent_at", Timestamp),
        comment="messages of committed transactions; kept as long as the stream keeps them",
    )
    Table(
        "inbox",
        metadata,
        Column("consumer", String(64), primary_key=True),
        Column("event_id", String(64), primary_key=True),
        Column("at", Timestamp, nullable=False),
        comment="what was handled; a second delivery is a no-op",
    )
    Table(
        "audit_outbox",
        metadata,
        Column("n", Counter, primary_key=True, autoincrement=False),
        Column("id", String(36), nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("created_at", Timestamp, nullable=False),
        comment="audit records of committed actions; a row goes only on the log's receipt",
    )
    Table(
        "audit_counter",
        metadata,
        Column("one", Integer, primary_key=True),
        Column("n", Counter, nullable=False),
        Column("last_id", String(36), nullable=False),
        CheckConstraint("one = 1", name="single"),
        comment="the emitter's own numbering: a gap reveals a loss before the log",
    )
    Table(
        "dead_letters",
        metadata,
        Column("consumer", String(64), primary_key=True),
        Column("event_id", String(64), primary_key=True),
        Column("subject", Text, nullable=False),
        Column("code", String(80), nullable=False),
        Column("reason", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("first_error", Timestamp, nullable=False),
        Column("last_error", Timestamp, nullable=False),
        Column("body", LargeBinary, nullable=False),
    )
    Table(
        "approvals_spent",
        metadata,
        Column("id", String(64), primary_key=True),
        Column("at", Timestamp, nullable=False),
        comment="an approval counts once",
    )


def add_door_table(metadata: MetaData) -> MetaData:
    """What a service has beside that whose door takes tokens bound to a key."""
    Table(
        "proofs_seen",
        metadata,
        Column("proof", String(64), primary_key=True),
        Column("until", Timestamp, nullable=False),
        comment="proofs of possession (RFC 9449), each good once at every instance: SHA-256 of the key's thumbprint and the proof's id",
    )
    return metadata


def add_label_tables(metadata: MetaData) -> MetaData:
    """What a service with labelled objects has beside that: their labels, and what waits for an approval."""
    Table(
        "object_labels",
        metadata,
        Column("kind", String(16), primary_key=True),
        Column("id", String(200), primary_key=True),
        Column("level", String(16), nullable=False),
        Column("compartments", Json, nullable=False),
        Column("owner", String(63), nullable=False),
        Column("organisations", Json, nullable=False),
        Column("maker", String(160), nullable=False),
        Column("changed_at", Timestamp, nullable=False),
        Column("revision", Counter, nullable=False, server_default=text("0"), comment="how often it was changed"),
        CheckConstraint("level IN ('public', 'internal', 'sensitive', 'core')", name="level_known"),
        comment="the security label of each object of this service, and whose it is; an object without a row is nobody's to see",
    )
    Table(
        "label_changes",
        metadata,
        Column("digest", String(64), primary_key=True),
        Column("kind", String(16), nullable=False),
        Column("id", String(200), nullable=False),
        Column("level", String(16), nullable=False),
        Column("compartments", Json, nullable=False),
        Column("requester", String(160), nullable=False),
        Column("state", String(16), nullable=False),
        Column("created_at", Timestamp, nullable=False),
        comment="labels to be lowered, which wait for the approval of exactly this digest",
    )
    Table(
        "label_sources",
        metadata,
        Column("kind", String(16), primary_key=True),
        Column("id", String(200), primary_key=True),
        Column("of_kind", String(16), primary_key=True),
        Column("of_id", String(200), primary_key=True),
        Index("ix_label_sources_of", "of_kind", "of_id"),
        comment="what each object was made from: raised with it",
    )
    Table(
        "labels_heard",
        metadata,
        Column("kind", String(16), primary_key=True),
        Column("id", String(200), primary_key=True),
        Column("level", String(16), nullable=False),
        Column("compartments", Json, nullable=False),
        Column("revision", Counter, nullable=False),
        comment="newest label told of another service's object; its row's lock orders its changes and what is being made from it",
    )
    Table(
        "object_files",
        metadata,
        Column("sha256", String(64), primary_key=True),
        Column("kind", String(16), primary_key=True),
        Column("id", String(200), primary_key=True),
        comment="the stored files of each object: who may not see the object may not read them either",
    )
    return metadata

"""Tables of federation."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Index, Integer, String, Table, Text, text

from medmesh.store.attempts import columns
from medmesh.store.tables import add_label_tables, service_metadata
from medmesh.store.types import Counter, Json, Timestamp

METADATA = add_label_tables(service_metadata())

federations = Table(
    "federations",
    METADATA,
    Column("federation", String(36), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("plan", Json, nullable=False),
    Column("plan_hash", String(64), nullable=False),
    Column("package", Json, nullable=False),
    Column("initial", Json, nullable=False),
    Column("initiator", String(160), nullable=False),
    Column("state", String(16), nullable=False),
    Column("approval", String(64)),
    Column("token", Text, comment="the approval as governance signed it, with what the approvers signed"),
    Column("approved_until", Timestamp, comment="when the approval's time is over, unless it has started by then"),
    Column("unapproved", String(16), comment="revoked | expired: why it has no approval any more"),
    Column("chain", String(64), nullable=False),
    Column("model", Json, nullable=False),
    Column("state_object", Json, comment="what the algorithm remembers after the last committed round"),
    Column("personal", Json, comment="hospital to the model made for it, where the algorithm makes such"),
    Column("clip", String(40), comment="the next round's clipping norm, where it follows the updates"),
    Column("failure", String(80)),
    Column("reason", Text, nullable=False, server_default=text("''"), comment="what who paused or cancelled it said"),
    Column("changed", Json, nullable=False, server_default=text("'{}'"), comment="of the plan, within its ranges, from the next round on"),
    Column("opened", String(64), comment="the chain of rounds as they were opened; none before the first"),
    Column("links", Json, nullable=False, server_default=text("'[]'"), comment="of `chain`, since the newest round was opened"),
    Column("undoing", Json, comment="that the next training round begins with an earlier model: told until one is committed"),
    Column("voids", Integer, nullable=False),
    Column("waiting_since", Timestamp),
    Column("created_at", Timestamp, nullable=False),
)
Index("ix_federations_state", federations.c.state)

participants = Table(
    "participants",
    METADATA,
    Column("federation", String(36), primary_key=True),
    Column("hospital", String(63), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("signature", Text),
    Column("drops", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("quarantines", Integer, nullable=False, server_default=text("0")),
    Column("answered_at", Timestamp),
    Column("small_cell", Integer, nullable=False, server_default=text("0"), comment="to which multiple its own policy rounds counts"),
    comment="`signature` is the hospital's acceptance, signed with its own key",
)

links = Table(
    "links",
    METADATA,
    Column("federation", String(36), primary_key=True),
    Column("hospital", String(63), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("expires", Timestamp, nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="the newest one-time link of each hospital: waiting -> opened | revoked; no secret that opens one",
)

rounds = Table(
    "rounds",
    METADATA,
    *columns(),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("base", Json, nullable=False),
    Column("models", Json, nullable=False),
    Column("assigned", Json, nullable=False),
    Column("opened_at", Timestamp, nullable=False),
    Column("deadline", Timestamp, nullable=False),
    Column("digest", String(64), comment="of the round as it was opened: what the chain is made of"),
    Column("links", Json, comment="of the chain of what rounds left, since the round opened before this one"),
    Column("phase", String(16), comment="of a secure sum: what is being collected"),
    Column("parties", Json, comment="of whom it is expected"),
    Column(
        "summed", Json, comment="what a secure sum says of evaluations: model, or `base`, to counts of all hospitals, and the mean loss"
    ),
    Column("closed_at", Timestamp),
    Column("why", String(80), nullable=False, server_default=text("''"), comment="it came to nothing: a code; empty: too few answered"),
    Column("cleared", Boolean, nullable=False, server_default=text("false"), comment="it is over, and its updates are deleted here"),
    Column("model", Json),
    Column("chain", String(64)),
    Column("state_object", Json),
    Column("personal", Json),
    Column("stored", Boolean, nullable=False),
    Column("gone_since", Timestamp, comment="committed, its model in no store, and never made again as it was: people go back before it"),
    Column("gone_why", String(16), comment="noise | left | unable | changed"),
    Column("undone", Boolean, nullable=False, server_default=text("false"), comment="committed, and rolled back"),
    Column("aggregate_milliseconds", Integer, comment="from the last answer's being there to the model's being durable"),
)

secure_messages = Table(
    "secure_messages",
    METADATA,
    *columns(),
    Column("phase", String(16), primary_key=True),
    Column("hospital", String(63), primary_key=True),
    Column("messages", Json, nullable=False),
    comment="what a hospital said in a phase of a secure sum: nothing in clear that opens a single update",
)

answers = Table(
    "answers",
    METADATA,
    *columns(),
    Column("hospital", String(63), primary_key=True),
    Column("update", Json),
    Column("samples", Counter, nullable=False),
    Column("metrics", Json, nullable=False),
    Column("results", Json, comment="model, or `base` of a training round, to counts"),
    Column("milliseconds", Json, nullable=False, server_default=text("'{}'"), comment="what the hospital's time went into"),
    Column("late", Boolean, nullable=False),
    Column("counted", Integer, comment="the later round that a late update is part of, where the plan lets it be"),
    Column("failed", String(80)),
    Column("verdict", String(16), comment="what the round's algorithm made of it, where not all of it is in the model: aside | clipped"),
    Column("fingerprint", String(64), comment="of the update's tensors, as it travelled"),
    Column("at", Timestamp, nullable=False),
    comment="keyed (federation, round, attempt, hospital): a duplicate is a no-op",
)
Index("ix_rounds_uncleared", rounds.c.federation, postgresql_where=~rounds.c.cleared)
Index("ix_answers_fingerprint", answers.c.federation, answers.c.fingerprint)

flags = Table(
    "flags",
    METADATA,
    *columns(),
    Column("hospital", String(63), primary_key=True),
    Column("flags", Json, nullable=False),
    Column("excluded", Boolean, nullable=False),
    Column("ratio", String(16), nullable=False, comment="length over the round's median, two digits"),
    Column("cosine", String(16), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="updates that looked wrong, by the round that they would have counted in; a row never goes",
)

privacy_spent = Table(
    "privacy_spent",
    METADATA,
    *columns(),
    Column("epsilon", String(32), nullable=False),
    Column("at", Timestamp, nullable=False),
    comment="written in the transaction that opens an attempt: what the federation has spent of its budget with it; a row never goes",
)

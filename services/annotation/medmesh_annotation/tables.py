"""Tables of annotation."""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, ForeignKey, ForeignKeyConstraint, Index, Integer, String, Table, Text, text

from medmesh.store.tables import add_label_tables, service_metadata
from medmesh.store.types import Json, Timestamp

METADATA = add_label_tables(service_metadata())

projects = Table(
    "projects",
    METADATA,
    Column("project", String(63), primary_key=True),
    Column("dataset", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("content", String(64), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("classes", Json, nullable=False),
    Column("created_at", Timestamp, nullable=False),
)

items = Table(
    "items",
    METADATA,
    Column("project", String(63), ForeignKey("projects.project"), primary_key=True),
    Column("item", String(128), primary_key=True),
    Column("place", Integer, nullable=False),
    Column("object", Json, nullable=False),
    Column("state", String(16), nullable=False),
    Column("claimed_by", String(160)),
    Column("claim_expires", Timestamp),
    Column("reader", String(160)),
    Column("readings", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("(claimed_by IS NULL) = (claim_expires IS NULL)", name="claim_is_whole"),
    CheckConstraint("(state = 'unlabelled') = (reader IS NULL)", name="label_has_a_reader"),
    comment="`object` is the reference in the data set version; `readings` is the number of the last reading",
)
Index("ix_items_waiting", items.c.project, items.c.state, items.c.place)
# One claim a person and project, held by the database too: two windows of one person show one item.
Index("uq_items_claim", items.c.project, items.c.claimed_by, unique=True, postgresql_where=text("claimed_by IS NOT NULL"))

readings = Table(
    "readings",
    METADATA,
    Column("project", String(63), primary_key=True),
    Column("item", String(128), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("reader", String(160), nullable=False),
    Column("label", String(64), nullable=False),
    Column("labelled_at", Timestamp, nullable=False),
    Column("reviewer", String(160)),
    Column("accepted", Boolean),
    Column("comment", Text, nullable=False, server_default=text("''")),
    Column("reviewed_at", Timestamp),
    ForeignKeyConstraint(["project", "item"], ["items.project", "items.item"]),
    # The reader never reviews: held by the database too, whatever a program does.
    CheckConstraint("reviewer <> reader", name="reviewer_is_not_reader"),
    CheckConstraint("(reviewer IS NULL) = (accepted IS NULL)", name="review_is_whole"),
    comment="every label a person gave, also those that were sent back, with the decision on it",
)

exports = Table(
    "exports",
    METADATA,
    Column("project", String(63), ForeignKey("projects.project"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("labels", Json, nullable=False),
    Column("accepted", Integer, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("requester", String(160), nullable=False),
    Column("digest", String(64), nullable=False, comment="what approvers sign"),
    Column("state", String(16), nullable=False, comment="waiting, exported, or closed: refused, revoked or expired"),
    Column("approval", String(64)),
    Column("finished_at", Timestamp),
    # Nothing leaves without an approval: held by the database too, whatever a program does.
    CheckConstraint("(state = 'exported') = (approval IS NOT NULL)", name="exported_with_approval"),
    comment="frozen versions; `labels` is the reference of the object, told once it was approved",
)

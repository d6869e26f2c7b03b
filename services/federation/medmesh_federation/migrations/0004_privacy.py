"""Differential privacy."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    clip = sa.Column("clip", sa.String(length=40), nullable=True, comment="the next round's clipping norm, where it follows the updates")
    op.add_column("federations", clip)
    op.create_table(
        "privacy_spent",
        sa.Column("federation", sa.String(length=36), nullable=False),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epsilon", sa.String(length=32), nullable=False),
        sa.Column("at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("federation", "round", "attempt", name=op.f("pk_privacy_spent")),
        comment="written in the transaction that opens an attempt: what the federation has spent of its budget with it; a row never goes",
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

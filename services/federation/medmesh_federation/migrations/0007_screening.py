"""Updates that look wrong, quarantine, and going back to an earlier round."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    mark = "of the update's tensors, as it travelled"
    op.add_column("answers", sa.Column("fingerprint", sa.String(length=64), nullable=True, comment=mark))
    op.create_index("ix_answers_fingerprint", "answers", ["federation", "fingerprint"])
    op.add_column("participants", sa.Column("quarantines", sa.Integer(), server_default=sa.text("0"), nullable=False))
    undoing = "that the next training round begins with an earlier model: told until one is committed"
    op.add_column("federations", sa.Column("undoing", types.Json, nullable=True, comment=undoing))
    undone: sa.Column[bool] = sa.Column("undone", sa.Boolean(), server_default=sa.text("false"), nullable=False, comment="committed, and rolled back")
    op.add_column("rounds", undone)
    op.create_table(
        "flags",
        sa.Column("federation", sa.String(length=36), nullable=False),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("hospital", sa.String(length=63), nullable=False),
        sa.Column("flags", types.Json, nullable=False),
        sa.Column("excluded", sa.Boolean(), nullable=False),
        sa.Column("ratio", sa.String(length=16), nullable=False, comment="length over the round's median, two digits"),
        sa.Column("cosine", sa.String(length=16), nullable=False),
        sa.Column("at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("federation", "round", "attempt", "hospital", name=op.f("pk_flags")),
        comment="updates that looked wrong, by the round that they would have counted in; a row never goes",
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

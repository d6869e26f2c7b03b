"""Secure sums."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rounds", sa.Column("phase", sa.String(length=16), nullable=True, comment="of a secure sum: what is being collected"))
    op.add_column("rounds", sa.Column("parties", types.Json, nullable=True, comment="of whom it is expected"))
    told = "what a secure sum says of evaluations: model, or `base`, to counts of all hospitals, and the mean loss"
    op.add_column("rounds", sa.Column("summed", types.Json, nullable=True, comment=told))
    op.create_table(
        "secure_messages",
        sa.Column("federation", sa.String(length=36), nullable=False),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("hospital", sa.String(length=63), nullable=False),
        sa.Column("messages", types.Json, nullable=False),
        sa.PrimaryKeyConstraint("federation", "round", "attempt", "phase", "hospital", name=op.f("pk_secure_messages")),
        comment="what a hospital said in a phase of a secure sum: nothing in clear that opens a single update",
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

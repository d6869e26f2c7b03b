"""Hospitals that left a federation whose model they have a part in."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "withdrawals",
        sa.Column("federation", sa.String(length=64), nullable=False),
        sa.Column("hospital", sa.String(length=63), nullable=False),
        sa.Column("at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("federation", "hospital", name=op.f("pk_withdrawals")),
        comment="hospitals that left a federation for good, also after its end: shown at the version in which they have a part",
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

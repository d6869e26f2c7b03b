"""One-time links of invited hospitals."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "links",
        sa.Column("federation", sa.String(36), primary_key=True),
        sa.Column("hospital", sa.String(63), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("expires", types.Timestamp, nullable=False),
        sa.Column("at", types.Timestamp, nullable=False),
        comment="the newest one-time link of each hospital: waiting -> opened | revoked; no secret that opens one",
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

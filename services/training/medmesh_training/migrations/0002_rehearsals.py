"""Rehearsals of packages on invented data."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rehearsals",
        sa.Column("report", sa.String(length=64), nullable=False),
        sa.Column("package", sa.String(length=64), nullable=False),
        sa.Column("object", types.Json, nullable=False),
        sa.Column("found", types.Json, nullable=False),
        sa.Column("by", sa.String(length=160), nullable=False),
        sa.Column("at", types.Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("report", name=op.f("pk_rehearsals")),
        comment="what came of running a package on invented data, by the SHA-256 of the report",
    )
    op.create_index("ix_rehearsals_package", "rehearsals", ["package", "at"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

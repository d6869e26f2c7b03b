"""Committed models that are gone for good."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    since = "committed, its model in no store, and never made again as it was: people go back before it"
    op.add_column("rounds", sa.Column("gone_since", types.Timestamp(), nullable=True, comment=since))
    op.add_column("rounds", sa.Column("gone_why", sa.String(length=16), nullable=True, comment="noise | left | unable | changed"))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

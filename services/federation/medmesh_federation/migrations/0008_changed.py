"""What an initiator changed within the ranges of a plan."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    about = "of the plan, within its ranges, from the next round on"
    op.add_column("federations", sa.Column("changed", types.Json, server_default=sa.text("'{}'"), nullable=False, comment=about))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

"""The chain of what rounds left is told to hospitals link by link."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    about = "of `chain`, since the newest round was opened"
    op.add_column("federations", sa.Column("links", types.Json, server_default=sa.text("'[]'"), nullable=False, comment=about))
    about = "of the chain of what rounds left, since the round opened before this one"
    op.add_column("rounds", sa.Column("links", types.Json, comment=about))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

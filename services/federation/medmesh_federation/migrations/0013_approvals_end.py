"""How long a start is approved, and why it is so no more."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    until, why = "when the approval's time is over, unless it has started by then", "revoked | expired: why it has no approval any more"
    op.add_column("federations", sa.Column("approved_until", types.Timestamp(), nullable=True, comment=until))
    op.add_column("federations", sa.Column("unapproved", sa.String(length=16), nullable=True, comment=why))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

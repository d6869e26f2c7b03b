"""What who paused or cancelled a federation said."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    about = "what who paused or cancelled it said"
    op.add_column("federations", sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False, comment=about))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

"""What who asks for an approval signed with their own key."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('approvals', sa.Column('asking', sa.Text(), server_default=sa.text("''"), nullable=False, comment='what who asked signed with their own key'))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

"""What was approved and could not be done any more, and why."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('approvals', sa.Column('why', sa.String(length=80), server_default=sa.text("''"), nullable=False, comment='the code of what kept it from being done: failed'))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

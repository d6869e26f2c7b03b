"""To which multiple each hospital's own policy rounds counts."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    about = "to which multiple its own policy rounds counts"
    op.add_column("participants", sa.Column("small_cell", sa.Integer(), server_default=sa.text("0"), nullable=False, comment=about))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

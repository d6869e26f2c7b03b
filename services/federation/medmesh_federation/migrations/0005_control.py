"""The chain of rounds as they were opened."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    opened = "the chain of rounds as they were opened; none before the first"
    op.add_column("federations", sa.Column("opened", sa.String(length=64), nullable=True, comment=opened))
    digest = "of the round as it was opened: what the chain is made of"
    op.add_column("rounds", sa.Column("digest", sa.String(length=64), nullable=True, comment=digest))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

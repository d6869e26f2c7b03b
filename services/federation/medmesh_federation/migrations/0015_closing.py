"""Why a round came to nothing, whether its updates are deleted, and what its algorithm made of each."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    why = "it came to nothing: a code; empty: too few answered"
    op.add_column("rounds", sa.Column("why", sa.String(length=80), server_default=sa.text("''"), nullable=False, comment=why))
    over = "it is over, and its updates are deleted here"
    op.add_column("rounds", sa.Column("cleared", sa.Boolean(), server_default=sa.text("false"), nullable=False, comment=over))
    verdict = "what the round's algorithm made of it, where not all of it is in the model: aside | clipped"
    op.add_column("answers", sa.Column("verdict", sa.String(length=16), nullable=True, comment=verdict))
    op.create_index("ix_rounds_uncleared", "rounds", ["federation"], postgresql_where=sa.text("NOT cleared"))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

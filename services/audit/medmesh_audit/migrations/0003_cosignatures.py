"""Witnesses' signatures under checkpoints."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('cosignatures',
    sa.Column('size', types.Counter, autoincrement=False, nullable=False),
    sa.Column('witness', sa.Text(), nullable=False),
    sa.Column('line', sa.Text(), nullable=False),
    sa.Column('time', types.Counter, nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('size', 'witness', name=op.f('pk_cosignatures')),
    comment='what witnesses said of checkpoints'
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

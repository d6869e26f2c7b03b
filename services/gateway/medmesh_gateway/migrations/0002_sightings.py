"""The checkpoints that hospitals were shown."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('sightings',
    sa.Column('hospital', sa.String(length=63), nullable=False),
    sa.Column('note', sa.Text(), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('hospital', name=op.f('pk_sightings')),
    comment='the newest checkpoint of the log that each hospital\'s node says it was shown, as the log signed it'
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

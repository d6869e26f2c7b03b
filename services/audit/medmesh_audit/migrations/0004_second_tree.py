"""The second tree."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('sm_tiles',
    sa.Column('level', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('number', types.Counter, autoincrement=False, nullable=False),
    sa.Column('hashes', sa.LargeBinary(), nullable=False),
    sa.Column('root', sa.LargeBinary(), nullable=False),
    sa.CheckConstraint('length(hashes) = 8192 AND length(root) = 32', name=op.f('ck_sm_tiles_full')),
    sa.PrimaryKeyConstraint('level', 'number', name=op.f('pk_sm_tiles')),
    comment='full tiles of the second tree, as `tiles`'
    )
    op.create_table('sm_checkpoints',
    sa.Column('size', types.Counter, autoincrement=False, nullable=False),
    sa.Column('root', sa.LargeBinary(), nullable=False),
    sa.Column('note', sa.Text(), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('size', name=op.f('pk_sm_checkpoints'))
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

"""Clearances of people and systems, and the site's access policy."""

import sqlalchemy as sa
from alembic import op

from medmesh.store import types

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('users', sa.Column('clearance', sa.String(length=16), server_default=sa.text("'internal'"), nullable=False, comment='up to which level'))
    op.add_column('users', sa.Column('compartments', types.Json, server_default=sa.text("'[]'"), nullable=False, comment='of which organisations; * is every one'))
    op.create_table('policy_texts',
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('text', sa.Text(), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('digest', name=op.f('pk_policy_texts')),
    comment="every text that was ever proposed as the site's policy"
    )
    op.create_table('policies',
    sa.Column('number', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('approval', sa.String(length=36), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('number', name=op.f('pk_policies')),
    comment='which of them were in force, in order; the last one is'
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

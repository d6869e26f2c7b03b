"""Derivation."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text  # noqa: F401
from sqlalchemy.dialects import postgresql  # noqa: F401

from medmesh.store import types

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('label_sources',
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('id', sa.String(length=200), nullable=False),
    sa.Column('of_kind', sa.String(length=16), nullable=False),
    sa.Column('of_id', sa.String(length=200), nullable=False),
    sa.PrimaryKeyConstraint('kind', 'id', 'of_kind', 'of_id', name=op.f('pk_label_sources')),
    comment='what each object was made from: raised with it'
    )
    op.create_index('ix_label_sources_of', 'label_sources', ['of_kind', 'of_id'], unique=False)
    op.create_table('labels_heard',
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('id', sa.String(length=200), nullable=False),
    sa.Column('level', sa.String(length=16), nullable=False),
    sa.Column('compartments', types.Json, nullable=False),
    sa.Column('revision', types.Counter, nullable=False),
    sa.PrimaryKeyConstraint('kind', 'id', name=op.f('pk_labels_heard')),
    comment="newest label told of another service's object; its row's lock orders its changes and what is being made from it"
    )
    op.create_table('object_files',
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('id', sa.String(length=200), nullable=False),
    sa.PrimaryKeyConstraint('sha256', 'kind', 'id', name=op.f('pk_object_files')),
    comment='the stored files of each object: who may not see the object may not read them either'
    )
    op.add_column('object_labels', sa.Column('revision', types.Counter, server_default=sa.text('0'), nullable=False, comment='how often it was changed'))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

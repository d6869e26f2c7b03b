"""How long bodies are kept; exports that prove they are complete."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text  # noqa: F401
from sqlalchemy.dialects import postgresql  # noqa: F401

from medmesh.store import types

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('exports', sa.Column('complete', sa.Boolean(), server_default=sa.text('false'), nullable=False))
    op.create_table('changes',
    sa.Column('change', sa.String(length=36), nullable=False),
    sa.Column('action', sa.String(length=40), nullable=False),
    sa.Column('request', types.Json, nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('requester', sa.Text(), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('approval', sa.String(length=64), nullable=False),
    sa.Column('code', sa.String(length=80), nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.CheckConstraint("state IN ('waiting', 'approved', 'done', 'refused', 'failed')", name=op.f('ck_changes_state')),
    sa.PrimaryKeyConstraint('change', name=op.f('pk_changes')),
    comment='`digest` is what approvers sign'
    )
    op.create_table('retentions',
    sa.Column('change', sa.String(length=36), nullable=False),
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('days', sa.Integer(), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.CheckConstraint('days >= 180', name=op.f('ck_retentions_law')),
    sa.PrimaryKeyConstraint('change', name=op.f('pk_retentions')),
    comment='how many days a class of records is kept, as it was approved; the last one of a class counts'
    )
    op.create_table('holds',
    sa.Column('hold', sa.String(length=36), nullable=False),
    sa.Column('org', sa.String(length=80), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('who', sa.Text(), nullable=False),
    sa.Column('placed_at', types.Timestamp(), nullable=False),
    sa.Column('lifted_at', types.Timestamp(), nullable=True),
    sa.PrimaryKeyConstraint('hold', name=op.f('pk_holds')),
    comment='legal holds; an empty organisation is everything'
    )
    op.create_table('prunings',
    sa.Column('minimum', types.Counter, autoincrement=False, nullable=False),
    sa.Column('record', types.Counter, nullable=False),
    sa.Column('change', sa.String(length=36), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.CheckConstraint('minimum % 256 = 0 AND record >= minimum', name=op.f('ck_prunings_bundles')),
    sa.PrimaryKeyConstraint('minimum', name=op.f('pk_prunings')),
    comment='minimum index below which bodies may go, and the record in the log that says so'
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

"""Tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text  # noqa: F401
from sqlalchemy.dialects import postgresql  # noqa: F401

from medmesh.store import types

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('approvals_spent',
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_approvals_spent')),
    comment='an approval counts once'
    )
    op.create_table('audit_counter',
    sa.Column('one', sa.Integer(), nullable=False),
    sa.Column('n', types.Counter, nullable=False),
    sa.Column('last_id', sa.String(length=36), nullable=False),
    sa.CheckConstraint('one = 1', name=op.f('ck_audit_counter_single')),
    sa.PrimaryKeyConstraint('one', name=op.f('pk_audit_counter')),
    comment="the emitter's own numbering: a gap reveals a loss before the log"
    )
    op.create_table('audit_outbox',
    sa.Column('n', types.Counter, autoincrement=False, nullable=False),
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('body', sa.LargeBinary(), nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('n', name=op.f('pk_audit_outbox')),
    comment="audit records of committed actions; a row goes only on the log's receipt"
    )
    op.create_table('dead_letters',
    sa.Column('consumer', sa.String(length=64), nullable=False),
    sa.Column('event_id', sa.String(length=64), nullable=False),
    sa.Column('subject', sa.Text(), nullable=False),
    sa.Column('code', sa.String(length=80), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('first_error', types.Timestamp(), nullable=False),
    sa.Column('last_error', types.Timestamp(), nullable=False),
    sa.Column('body', sa.LargeBinary(), nullable=False),
    sa.PrimaryKeyConstraint('consumer', 'event_id', name=op.f('pk_dead_letters'))
    )
    op.create_table('inbox',
    sa.Column('consumer', sa.String(length=64), nullable=False),
    sa.Column('event_id', sa.String(length=64), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('consumer', 'event_id', name=op.f('pk_inbox')),
    comment='what was handled; a second delivery is a no-op'
    )
    op.create_table('label_changes',
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('id', sa.String(length=200), nullable=False),
    sa.Column('level', sa.String(length=16), nullable=False),
    sa.Column('compartments', types.Json, nullable=False),
    sa.Column('requester', sa.String(length=160), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('digest', name=op.f('pk_label_changes')),
    comment='labels to be lowered, which wait for the approval of exactly this digest'
    )
    op.create_table('object_labels',
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('id', sa.String(length=200), nullable=False),
    sa.Column('level', sa.String(length=16), nullable=False),
    sa.Column('compartments', types.Json, nullable=False),
    sa.Column('owner', sa.String(length=63), nullable=False),
    sa.Column('organisations', types.Json, nullable=False),
    sa.Column('maker', sa.String(length=160), nullable=False),
    sa.Column('changed_at', types.Timestamp(), nullable=False),
    sa.CheckConstraint("level IN ('public', 'internal', 'sensitive', 'core')", name=op.f('ck_object_labels_level_known')),
    sa.PrimaryKeyConstraint('kind', 'id', name=op.f('pk_object_labels')),
    comment="the security label of each object of this service, and whose it is; an object without a row is nobody's to see"
    )
    op.create_table('outbox',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('seq', types.Counter, sa.Identity(always=True), nullable=False),
    sa.Column('subject', sa.Text(), nullable=False),
    sa.Column('body', sa.LargeBinary(), nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.Column('sent_at', types.Timestamp(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_outbox')),
    comment='messages of committed transactions; kept as long as the stream keeps them'
    )
    op.create_index('ix_outbox_unsent', 'outbox', ['seq'], unique=False, postgresql_where=sa.text('sent_at IS NULL'), sqlite_where=sa.text('sent_at IS NULL'))
    op.create_table('releases',
    sa.Column('release', sa.String(length=64), nullable=False),
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('version', types.Counter, nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('code', sa.String(length=80), nullable=False),
    sa.Column('event', types.Json, nullable=False),
    sa.Column('changed_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('release', name=op.f('pk_releases')),
    comment='each release with the event it came with: its signature and approval are verified again before it is loaded again'
    )
    op.create_index('uq_releases_serving', 'releases', ['model'], unique=True, postgresql_where=sa.text("state = 'serving'"))
    op.create_table('withdrawals',
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('version', types.Counter, autoincrement=False, nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('model', 'version', name=op.f('pk_withdrawals')),
    comment='a withdrawn version stays so, also when its release is heard of later'
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

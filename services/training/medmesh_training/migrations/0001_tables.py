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
    op.create_table('jobs',
    sa.Column('job', sa.String(length=36), nullable=False),
    sa.Column('submitter', sa.String(length=160), nullable=False),
    sa.Column('package', types.Json, nullable=False),
    sa.Column('dataset', sa.String(length=63), nullable=False),
    sa.Column('version', types.Counter, nullable=False),
    sa.Column('content', types.Json, nullable=False),
    sa.Column('steps', sa.Integer(), nullable=False),
    sa.Column('seed', types.Counter, nullable=False),
    sa.Column('schedule', types.Json, nullable=False, comment='what beside the data and the seed decides the weights, as it was at submission'),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('attempt', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.Column('stalled', sa.Integer(), server_default=sa.text('0'), nullable=False, comment='attempts begun since the last checkpoint'),
    sa.Column('due_at', types.Timestamp(), nullable=False, comment='when anybody may claim it: queued ones at once, running ones after the lease'),
    sa.Column('step', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.Column('weights', types.Json, nullable=True, comment='the last checkpoint'),
    sa.Column('metrics', types.Json, server_default=sa.text("'{}'"), nullable=False),
    sa.Column('failure', sa.Text(), nullable=True),
    sa.Column('submitted_at', types.Timestamp(), nullable=False),
    sa.Column('ended_at', types.Timestamp(), nullable=True),
    sa.PrimaryKeyConstraint('job', name=op.f('pk_jobs'))
    )
    op.create_index('ix_jobs_due', 'jobs', ['due_at'], unique=False, postgresql_where=sa.text("state IN ('queued', 'running')"))
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


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

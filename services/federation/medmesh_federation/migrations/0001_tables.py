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
    op.create_table('answers',
    sa.Column('federation', sa.String(length=36), nullable=False),
    sa.Column('round', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('attempt', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('hospital', sa.String(length=63), nullable=False),
    sa.Column('update', types.Json, nullable=True),
    sa.Column('samples', types.Counter, nullable=False),
    sa.Column('metrics', types.Json, nullable=False),
    sa.Column('results', types.Json, nullable=True),
    sa.Column('late', sa.Boolean(), nullable=False),
    sa.Column('failed', sa.String(length=80), nullable=True),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('federation', 'round', 'attempt', 'hospital', name=op.f('pk_answers')),
    comment='keyed (federation, round, attempt, hospital): a duplicate is a no-op'
    )
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
    op.create_table('federations',
    sa.Column('federation', sa.String(length=36), nullable=False),
    sa.Column('name', sa.String(length=63), nullable=False),
    sa.Column('plan', types.Json, nullable=False),
    sa.Column('plan_hash', sa.String(length=64), nullable=False),
    sa.Column('package', types.Json, nullable=False),
    sa.Column('initial', types.Json, nullable=False),
    sa.Column('initiator', sa.String(length=160), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('approval', sa.String(length=64), nullable=True),
    sa.Column('token', sa.Text(), nullable=True, comment='the approval as governance signed it, with what the approvers signed'),
    sa.Column('chain', sa.String(length=64), nullable=False),
    sa.Column('model', types.Json, nullable=False),
    sa.Column('failure', sa.String(length=80), nullable=True),
    sa.Column('voids', sa.Integer(), nullable=False),
    sa.Column('waiting_since', types.Timestamp(), nullable=True),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('federation', name=op.f('pk_federations'))
    )
    op.create_index('ix_federations_state', 'federations', ['state'], unique=False)
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
    op.create_table('participants',
    sa.Column('federation', sa.String(length=36), nullable=False),
    sa.Column('hospital', sa.String(length=63), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('signature', sa.Text(), nullable=True),
    sa.Column('drops', sa.Integer(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('answered_at', types.Timestamp(), nullable=True),
    sa.PrimaryKeyConstraint('federation', 'hospital', name=op.f('pk_participants')),
    comment="`signature` is the hospital's acceptance, signed with its own key"
    )
    op.create_table('rounds',
    sa.Column('federation', sa.String(length=36), nullable=False),
    sa.Column('round', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('attempt', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('base', types.Json, nullable=False),
    sa.Column('models', types.Json, nullable=False),
    sa.Column('assigned', types.Json, nullable=False),
    sa.Column('opened_at', types.Timestamp(), nullable=False),
    sa.Column('deadline', types.Timestamp(), nullable=False),
    sa.Column('closed_at', types.Timestamp(), nullable=True),
    sa.Column('model', types.Json, nullable=True),
    sa.Column('chain', sa.String(length=64), nullable=True),
    sa.Column('stored', sa.Boolean(), nullable=False),
    sa.PrimaryKeyConstraint('federation', 'round', 'attempt', name=op.f('pk_rounds'))
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

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
    op.create_table('alerts',
    sa.Column('alert', sa.String(length=36), nullable=False),
    sa.Column('rule', sa.String(length=40), nullable=False),
    sa.Column('subject', sa.Text(), nullable=False),
    sa.Column('window', types.Counter, nullable=False),
    sa.Column('seq', types.Counter, nullable=True),
    sa.Column('trace', sa.String(length=32), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('alert', name=op.f('pk_alerts')),
    sa.UniqueConstraint('rule', 'subject', 'window', name=op.f('uq_alerts_rule_subject_window')),
    comment='what was raised: one alert a rule, a subject and a window of time'
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
    op.create_table('checkpoints',
    sa.Column('size', types.Counter, autoincrement=False, nullable=False),
    sa.Column('root', sa.LargeBinary(), nullable=False),
    sa.Column('note', sa.Text(), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('size', name=op.f('pk_checkpoints'))
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
    op.create_table('emitters',
    sa.Column('emitter', sa.String(length=80), nullable=False),
    sa.Column('n', types.Counter, nullable=False),
    sa.Column('last_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('emitter', name=op.f('pk_emitters'))
    )
    op.create_table('entries',
    sa.Column('seq', types.Counter, autoincrement=False, nullable=False),
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('emitter', sa.String(length=80), nullable=False),
    sa.Column('n', types.Counter, nullable=False),
    sa.Column('leaf', sa.LargeBinary(), nullable=False),
    sa.Column('hash', sa.LargeBinary(), nullable=False),
    sa.Column('salt', sa.LargeBinary(), nullable=False),
    sa.Column('body', sa.LargeBinary(), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('seq', name=op.f('pk_entries')),
    sa.UniqueConstraint('emitter', 'n', name=op.f('uq_entries_emitter_n')),
    comment="the log's leaves with the salt and body of each record"
    )
    op.create_table('exports',
    sa.Column('export', sa.String(length=36), nullable=False),
    sa.Column('requester', sa.Text(), nullable=False),
    sa.Column('scope', sa.String(length=80), nullable=False),
    sa.Column('format', sa.String(length=16), nullable=False),
    sa.Column('filters', types.Json, nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('approval', sa.String(length=64), nullable=False),
    sa.Column('size', types.Counter, nullable=False),
    sa.Column('done', types.Counter, nullable=False),
    sa.Column('object', types.Json, nullable=True),
    sa.Column('code', sa.String(length=80), nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.Column('finished_at', types.Timestamp(), nullable=True),
    sa.CheckConstraint("state IN ('waiting', 'approved', 'ready', 'refused', 'failed')", name=op.f('ck_exports_state')),
    sa.PrimaryKeyConstraint('export', name=op.f('pk_exports')),
    comment="`digest` is what approvers sign; `scope` the one organisation it may hold, empty for all; `size` the log's at the approval"
    )
    op.create_table('facts',
    sa.Column('seq', types.Counter, autoincrement=False, nullable=False),
    sa.Column('t', types.Timestamp(), nullable=False),
    sa.Column('recorded', types.Timestamp(), nullable=False),
    sa.Column('verb', sa.String(length=80), nullable=False),
    sa.Column('outcome', sa.Integer(), nullable=False),
    sa.Column('who', sa.Text(), nullable=False),
    sa.Column('org', sa.String(length=80), nullable=False),
    sa.Column('service', sa.String(length=80), nullable=False),
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('type', sa.String(length=16), nullable=False),
    sa.Column('purpose', sa.String(length=16), nullable=False),
    sa.Column('correlation', sa.Text(), nullable=False),
    sa.Column('orgs', types.Json, nullable=False),
    sa.Column('entities', types.Json, nullable=False),
    sa.PrimaryKeyConstraint('seq', name=op.f('pk_facts'))
    )
    op.create_index('ix_facts_correlation', 'facts', ['correlation'], unique=False)
    op.create_index('ix_facts_entities', 'facts', ['entities'], unique=False, postgresql_using='gin')
    op.create_index('ix_facts_orgs', 'facts', ['orgs'], unique=False, postgresql_using='gin')
    op.create_index('ix_facts_t', 'facts', ['t'], unique=False)
    op.create_index('ix_facts_verb', 'facts', ['verb'], unique=False)
    op.create_index('ix_facts_who', 'facts', ['who'], unique=False)
    op.create_table('inbox',
    sa.Column('consumer', sa.String(length=64), nullable=False),
    sa.Column('event_id', sa.String(length=64), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('consumer', 'event_id', name=op.f('pk_inbox')),
    comment='what was handled; a second delivery is a no-op'
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
    op.create_table('state',
    sa.Column('one', sa.Integer(), nullable=False),
    sa.Column('size', types.Counter, nullable=False),
    sa.CheckConstraint('one = 1', name=op.f('ck_state_single')),
    sa.PrimaryKeyConstraint('one', name=op.f('pk_state')),
    comment='the sequencer locks this row: two of them take turns, and neither overwrites the other'
    )
    op.create_table('tiles',
    sa.Column('level', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('number', types.Counter, autoincrement=False, nullable=False),
    sa.Column('hashes', sa.LargeBinary(), nullable=False),
    sa.PrimaryKeyConstraint('level', 'number', name=op.f('pk_tiles'))
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

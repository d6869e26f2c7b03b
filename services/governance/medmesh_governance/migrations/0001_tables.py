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
    op.create_table('approvals',
    sa.Column('approval', sa.String(length=36), nullable=False),
    sa.Column('action', sa.String(length=63), nullable=False),
    sa.Column('target', sa.Text(), nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('requester', sa.String(length=160), nullable=False),
    sa.Column('summary', types.Json, nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('needed', sa.Integer(), nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.Column('expires_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('approval', name=op.f('pk_approvals'))
    )
    op.create_index('ix_approvals_state', 'approvals', ['state'], unique=False)
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
    op.create_table('decisions',
    sa.Column('approval', sa.String(length=36), nullable=False),
    sa.Column('approver', sa.String(length=160), nullable=False),
    sa.Column('requester', sa.String(length=160), nullable=False),
    sa.Column('approve', sa.Boolean(), nullable=False),
    sa.Column('comment', sa.Text(), nullable=False),
    sa.Column('token', sa.Text(), nullable=False),
    sa.Column('statement', sa.Text(), nullable=False, comment="the decision signed with the approver's own key"),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.CheckConstraint('approver <> requester', name=op.f('ck_decisions_maker_is_not_checker')),
    sa.PrimaryKeyConstraint('approval', 'approver', name=op.f('pk_decisions')),
    comment="each approver's decision with the signed token it came with"
    )
    op.create_table('enrolments',
    sa.Column('enrolment', sa.String(length=36), nullable=False),
    sa.Column('hospital', sa.String(length=63), nullable=False),
    sa.Column('node', sa.String(length=63), nullable=False),
    sa.Column('code_hash', sa.String(length=64), nullable=False),
    sa.Column('csr_pem', sa.Text(), nullable=False),
    sa.Column('csr_digest', sa.String(length=64), nullable=False),
    sa.Column('organisation_key', sa.Text(), nullable=False, comment="the hospital's own verifier key"),
    sa.Column('approval', sa.String(length=36), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('certificate_pem', sa.Text(), nullable=True),
    sa.Column('fingerprint', sa.String(length=64), nullable=True),
    sa.Column('serial', sa.String(length=64), nullable=True),
    sa.Column('expires_at', types.Timestamp(), nullable=True),
    sa.Column('revoked', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('enrolment', name=op.f('pk_enrolments')),
    sa.UniqueConstraint('code_hash', name=op.f('uq_enrolments_code_hash'))
    )
    op.create_table('hospitals',
    sa.Column('hospital', sa.String(length=63), nullable=False),
    sa.Column('display_name', sa.Text(), nullable=False),
    sa.Column('code_hash', sa.String(length=64), nullable=True),
    sa.Column('code_expires', types.Timestamp(), nullable=True),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('hospital', name=op.f('pk_hospitals'))
    )
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
    op.create_table('sessions',
    sa.Column('hash', sa.String(length=64), nullable=False),
    sa.Column('name', sa.String(length=63), nullable=False),
    sa.Column('opened_at', types.Timestamp(), nullable=False),
    sa.Column('used_at', types.Timestamp(), nullable=False),
    sa.Column('expires_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('hash', name=op.f('pk_sessions')),
    comment='only hashes of bearers: a copy of this table opens nothing'
    )
    op.create_index('ix_sessions_name', 'sessions', ['name'], unique=False)
    op.create_table('signing_keys',
    sa.Column('key', sa.Text(), nullable=False),
    sa.Column('name', sa.String(length=160), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('key', name=op.f('pk_signing_keys')),
    comment='public keys as people announce them; what counts is the roster'
    )
    op.create_table('users',
    sa.Column('name', sa.String(length=63), nullable=False),
    sa.Column('display_name', sa.Text(), nullable=False),
    sa.Column('organisation', sa.String(length=63), nullable=False),
    sa.Column('roles', types.Json, nullable=False),
    sa.Column('password_hash', sa.Text(), nullable=True),
    sa.Column('activation_hash', sa.String(length=64), nullable=True),
    sa.Column('activation_expires', types.Timestamp(), nullable=True),
    sa.Column('failures', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.Column('locked_until', types.Timestamp(), nullable=True),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_users'))
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

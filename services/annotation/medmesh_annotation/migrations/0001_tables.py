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
    op.create_table('projects',
    sa.Column('project', sa.String(length=63), nullable=False),
    sa.Column('dataset', sa.String(length=63), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('content', sa.String(length=64), nullable=False),
    sa.Column('purpose', sa.Text(), nullable=False),
    sa.Column('classes', types.Json, nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('project', name=op.f('pk_projects'))
    )
    op.create_table('exports',
    sa.Column('project', sa.String(length=63), nullable=False),
    sa.Column('version', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('labels', types.Json, nullable=False),
    sa.Column('accepted', sa.Integer(), nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.Column('requester', sa.String(length=160), nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False, comment='what approvers sign'),
    sa.Column('state', sa.String(length=16), nullable=False, comment='waiting, exported, or closed: refused, revoked or expired'),
    sa.Column('approval', sa.String(length=64), nullable=True),
    sa.Column('finished_at', types.Timestamp(), nullable=True),
    sa.CheckConstraint("(state = 'exported') = (approval IS NOT NULL)", name=op.f('ck_exports_exported_with_approval')),
    sa.ForeignKeyConstraint(['project'], ['projects.project'], name=op.f('fk_exports_project')),
    sa.PrimaryKeyConstraint('project', 'version', name=op.f('pk_exports')),
    comment='frozen versions; `labels` is the reference of the object, told once it was approved'
    )
    op.create_table('items',
    sa.Column('project', sa.String(length=63), nullable=False),
    sa.Column('item', sa.String(length=128), nullable=False),
    sa.Column('place', sa.Integer(), nullable=False),
    sa.Column('object', types.Json, nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('claimed_by', sa.String(length=160), nullable=True),
    sa.Column('claim_expires', types.Timestamp(), nullable=True),
    sa.Column('reader', sa.String(length=160), nullable=True),
    sa.Column('readings', sa.Integer(), server_default=sa.text('0'), nullable=False),
    sa.CheckConstraint("(state = 'unlabelled') = (reader IS NULL)", name=op.f('ck_items_label_has_a_reader')),
    sa.CheckConstraint('(claimed_by IS NULL) = (claim_expires IS NULL)', name=op.f('ck_items_claim_is_whole')),
    sa.ForeignKeyConstraint(['project'], ['projects.project'], name=op.f('fk_items_project')),
    sa.PrimaryKeyConstraint('project', 'item', name=op.f('pk_items')),
    comment='`object` is the reference in the data set version; `readings` is the number of the last reading'
    )
    op.create_index('ix_items_waiting', 'items', ['project', 'state', 'place'], unique=False)
    op.create_index('uq_items_claim', 'items', ['project', 'claimed_by'], unique=True, postgresql_where=sa.text('claimed_by IS NOT NULL'))
    op.create_table('readings',
    sa.Column('project', sa.String(length=63), nullable=False),
    sa.Column('item', sa.String(length=128), nullable=False),
    sa.Column('number', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('reader', sa.String(length=160), nullable=False),
    sa.Column('label', sa.String(length=64), nullable=False),
    sa.Column('labelled_at', types.Timestamp(), nullable=False),
    sa.Column('reviewer', sa.String(length=160), nullable=True),
    sa.Column('accepted', sa.Boolean(), nullable=True),
    sa.Column('comment', sa.Text(), server_default=sa.text("''"), nullable=False),
    sa.Column('reviewed_at', types.Timestamp(), nullable=True),
    sa.CheckConstraint('(reviewer IS NULL) = (accepted IS NULL)', name=op.f('ck_readings_review_is_whole')),
    sa.CheckConstraint('reviewer <> reader', name=op.f('ck_readings_reviewer_is_not_reader')),
    sa.ForeignKeyConstraint(['project', 'item'], ['items.project', 'items.item'], name=op.f('fk_readings_project_item')),
    sa.PrimaryKeyConstraint('project', 'item', 'number', name=op.f('pk_readings')),
    comment='every label a person gave, also those that were sent back, with the decision on it'
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

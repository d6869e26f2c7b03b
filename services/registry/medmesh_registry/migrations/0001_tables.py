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
    op.create_table('models',
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('latest', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('model', name=op.f('pk_models')),
    comment="the newest version's number: its row's lock makes numbers follow each other"
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
    op.create_table('versions',
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('weights', types.Json, nullable=False),
    sa.Column('package', types.Json, nullable=False),
    sa.Column('lineage', types.Json, nullable=False),
    sa.Column('content', sa.String(length=64), nullable=False),
    sa.Column('federation', sa.String(length=64), nullable=True),
    sa.Column('notes', types.Json, nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('model', 'version', name=op.f('pk_versions')),
    sa.UniqueConstraint('federation', name=op.f('uq_versions_federation')),
    sa.UniqueConstraint('model', 'content', name=op.f('uq_versions_model_content')),
    comment='content is the digest of weights, package and lineage; federation is set only where the federation itself said so'
    )
    op.create_index('ix_versions_created', 'versions', ['created_at'], unique=False)
    op.create_table('artefacts',
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('format', sa.String(length=16), nullable=False),
    sa.Column('object', types.Json, nullable=False),
    sa.Column('parity_max_abs', sa.Float(), nullable=True),
    sa.Column('report', types.Json, nullable=False),
    sa.Column('preprocess', types.Json, nullable=False),
    sa.Column('classes', types.Json, nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.ForeignKeyConstraint(['model', 'version'], ['versions.model', 'versions.version'], name=op.f('fk_artefacts_model_version')),
    sa.PrimaryKeyConstraint('model', 'version', 'format', name=op.f('pk_artefacts'))
    )
    op.create_table('releases',
    sa.Column('release', sa.String(length=36), nullable=False),
    sa.Column('model', sa.String(length=63), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('hospitals', types.Json, nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('manifest', sa.LargeBinary(), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('approval', sa.String(length=64), nullable=True),
    sa.Column('token', sa.Text(), nullable=True),
    sa.Column('signature', sa.LargeBinary(), nullable=True),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.Column('released_at', types.Timestamp(), nullable=True),
    sa.CheckConstraint("state <> 'released' OR (approval IS NOT NULL AND signature IS NOT NULL)", name=op.f('ck_releases_released_is_approved')),
    sa.ForeignKeyConstraint(['model', 'version'], ['versions.model', 'versions.version'], name=op.f('fk_releases_model_version')),
    sa.PrimaryKeyConstraint('release', name=op.f('pk_releases')),
    comment='manifest holds the exact bytes that are digested, approved and signed'
    )
    op.create_index('ix_releases_version', 'releases', ['model', 'version'], unique=False)
    op.create_table('installs',
    sa.Column('release', sa.String(length=36), nullable=False),
    sa.Column('hospital', sa.String(length=63), nullable=False),
    sa.Column('installed', sa.Boolean(), nullable=False),
    sa.Column('code', sa.String(length=80), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.ForeignKeyConstraint(['release'], ['releases.release'], name=op.f('fk_installs_release')),
    sa.PrimaryKeyConstraint('release', 'hospital', name=op.f('pk_installs'))
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

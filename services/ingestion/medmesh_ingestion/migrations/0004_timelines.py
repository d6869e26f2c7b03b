"""Timelines."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text  # noqa: F401
from sqlalchemy.dialects import postgresql  # noqa: F401

from medmesh.store import types

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('timeline_codings',
    sa.Column('n', types.Counter, nullable=False),
    sa.Column('project', sa.String(length=63), nullable=False),
    sa.Column('code', sa.Text(), nullable=False, comment="the hospital's own"),
    sa.Column('standard', sa.Text(), nullable=False, comment='what it is read as from here on; empty takes that back'),
    sa.Column('confirmed_by', sa.String(length=80), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('n', name=op.f('pk_timeline_codings')),
    comment='append-only: what people confirmed that local codes mean'
    )
    op.create_table('timeline_cohorts',
    sa.Column('project', sa.String(length=63), nullable=False),
    sa.Column('name', sa.String(length=63), nullable=False),
    sa.Column('version', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('definition', sa.Text(), nullable=False, comment='canonical JSON'),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('project', 'name', 'version', name=op.f('pk_timeline_cohorts')),
    comment='saved queries; a version never changes'
    )
    op.create_table('timeline_events',
    sa.Column('event_id', sa.String(length=36), nullable=False),
    sa.Column('project', sa.String(length=63), nullable=False),
    sa.Column('subject_id', types.Counter, nullable=False),
    sa.Column('time', types.Counter, nullable=True, comment="microseconds since 1970 on the patient's shifted axis; NULL is static"),
    sa.Column('code', sa.Text(), nullable=False),
    sa.Column('numeric_value', sa.Float(precision=53), nullable=True),
    sa.Column('text', sa.Text(), nullable=True, comment="the value as text, sealed under the patient's key where there is one"),
    sa.Column('unit', sa.Text(), nullable=True),
    sa.Column('code_system', sa.String(length=80), nullable=False),
    sa.Column('modality', sa.String(length=80), nullable=False),
    sa.Column('time_precision', sa.String(length=12), nullable=True),
    sa.Column('source', sa.String(length=40), nullable=False),
    sa.Column('source_key', sa.String(length=64), nullable=False, comment="keyed hash of the source's own name of it"),
    sa.Column('source_raw', sa.String(length=64), nullable=False, comment='what it was read from, in timeline_sources; empty where that is not kept'),
    sa.Column('object_sha256', sa.String(length=64), nullable=True),
    sa.Column('consent_id', sa.String(length=64), nullable=True),
    sa.Column('revision', types.Counter, nullable=False),
    sa.Column('withdrawn', sa.Boolean(), nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False, comment='keyed hash of its content'),
    sa.Column('ingested_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('event_id', name=op.f('pk_timeline_events')),
    sa.UniqueConstraint('project', 'source', 'source_key', 'subject_id', 'revision', name=op.f('uq_timeline_events_project_source_source_key_subject_id_revision')),
    comment='append-only: a correction is a further revision, and of one event the newest counts'
    )
    op.create_index('ix_timeline_events_code', 'timeline_events', ['project', 'code'], unique=False)
    op.create_index('ix_timeline_events_subject', 'timeline_events', ['project', 'subject_id', 'time'], unique=False)
    op.create_table('timeline_merges',
    sa.Column('n', types.Counter, nullable=False),
    sa.Column('source', sa.String(length=40), nullable=False),
    sa.Column('source_key', sa.String(length=64), nullable=False),
    sa.Column('survivor', types.Counter, nullable=False),
    sa.Column('loser', types.Counter, nullable=False),
    sa.Column('days', sa.Integer(), nullable=False, comment="to add to the loser's times to have them on the survivor's axis"),
    sa.Column('undone', sa.Boolean(), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('n', name=op.f('pk_timeline_merges')),
    sa.UniqueConstraint('source', 'source_key', name=op.f('uq_timeline_merges_source_source_key')),
    comment='append-only: what identities are one person follows from all of it in order'
    )
    op.create_table('timeline_sources',
    sa.Column('subject_id', types.Counter, autoincrement=False, nullable=False),
    sa.Column('raw', sa.String(length=64), nullable=False, comment='keyed hash'),
    sa.Column('content', sa.Text(), nullable=False, comment="zlib, sealed under the patient's key"),
    sa.PrimaryKeyConstraint('subject_id', 'raw', name=op.f('pk_timeline_sources')),
    comment='the resource or message that events were read from, once'
    )
    op.create_table('timeline_subjects',
    sa.Column('subject_id', types.Counter, autoincrement=False, nullable=False),
    sa.Column('patient', sa.String(length=64), nullable=False),
    sa.Column('identity', sa.Text(), nullable=False, comment="authority and local id, sealed under the patient's key; empty where nobody has it"),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('subject_id', name=op.f('pk_timeline_subjects')),
    sa.UniqueConstraint('patient', name=op.f('uq_timeline_subjects_patient')),
    comment="one identity each: `subject_id` is MEDS's, `patient` the pseudonym"
    )
    op.create_table('timelines',
    sa.Column('dataset', sa.String(length=63), nullable=False),
    sa.Column('maker', sa.String(length=160), nullable=False),
    sa.Column('created_at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('dataset', name=op.f('pk_timelines')),
    comment='whose the timelines of a data set are: nobody else takes in, asks or exports'
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

"""Emergency access, client certificates of people, accounts that end."""

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
    op.create_table('emergencies',
    sa.Column('emergency', sa.String(length=36), nullable=False),
    sa.Column('person', sa.String(length=63), nullable=False),
    sa.Column('organisation', sa.String(length=63), nullable=False),
    sa.Column('reason', sa.String(length=32), nullable=False),
    sa.Column('note', sa.Text(), nullable=False),
    sa.Column('session', sa.String(length=36), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('opened_at', types.Timestamp(), nullable=False),
    sa.Column('expires_at', types.Timestamp(), nullable=False),
    sa.Column('ended_at', types.Timestamp(), nullable=True),
    sa.Column('due_at', types.Timestamp(), nullable=False),
    sa.Column('reviewer', sa.String(length=63), nullable=True),
    sa.Column('comment', sa.Text(), server_default=sa.text("''"), nullable=False),
    sa.Column('reviewed_at', types.Timestamp(), nullable=True),
    sa.CheckConstraint('reviewer <> person', name=op.f('ck_emergencies_maker_is_not_reviewer')),
    sa.CheckConstraint("(state IN ('justified', 'unjustified')) = (reviewer IS NOT NULL AND reviewed_at IS NOT NULL)", name=op.f('ck_emergencies_judged_by_one')),
    sa.PrimaryKeyConstraint('emergency', name=op.f('pk_emergencies')),
    comment='emergency accesses; the notes stand here and nowhere else'
    )
    op.create_index('ix_emergencies_person', 'emergencies', ['person'], unique=False)
    op.create_index('ix_emergencies_session', 'emergencies', ['session'], unique=False)
    op.create_index('uq_emergencies_open', 'emergencies', ['person'], unique=True, postgresql_where=sa.text("state = 'open'"))
    op.add_column('users', sa.Column('emergency_withdrawn_at', types.Timestamp(), nullable=True, comment='an emergency access was not justified: no other one until it is allowed'))
    op.create_table('certificates',
    sa.Column('fingerprint', sa.String(length=64), nullable=False),
    sa.Column('name', sa.String(length=63), nullable=False),
    sa.Column('serial', sa.String(length=64), nullable=False),
    sa.Column('key_digest', sa.String(length=64), nullable=False, comment='of the public key: one is certified once'),
    sa.Column('certificate_pem', sa.Text(), nullable=False),
    sa.Column('issued_by', sa.String(length=160), nullable=False),
    sa.Column('issued_at', types.Timestamp(), nullable=False),
    sa.Column('expires_at', types.Timestamp(), nullable=False),
    sa.Column('revoked_at', types.Timestamp(), nullable=True),
    sa.PrimaryKeyConstraint('fingerprint', name=op.f('pk_certificates')),
    sa.UniqueConstraint('key_digest', name=op.f('uq_certificates_key_digest')),
    sa.UniqueConstraint('serial', name=op.f('uq_certificates_serial')),
    comment='client certificates of people'
    )
    op.create_index('ix_certificates_name', 'certificates', ['name'], unique=False)
    op.add_column('sessions', sa.Column('certificate', sa.String(length=64), nullable=True, comment='SHA-256 of the client certificate it belongs to: without it the bearer opens nothing'))
    op.add_column('users', sa.Column('ends_at', types.Timestamp(), nullable=True, comment='for who is here for a while'))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

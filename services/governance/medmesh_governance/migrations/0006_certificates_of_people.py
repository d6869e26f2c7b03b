"""Client certificates of people, and accounts that end."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text  # noqa: F401
from sqlalchemy.dialects import postgresql  # noqa: F401

from medmesh.store import types

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
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

"""Proofs."""

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
    op.create_table('proofs_seen',
    sa.Column('proof', sa.String(length=64), nullable=False),
    sa.Column('until', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('proof', name=op.f('pk_proofs_seen')),
    comment="proofs of possession (RFC 9449), each good once at every instance: SHA-256 of the key's thumbprint and the proof's id"
    )


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

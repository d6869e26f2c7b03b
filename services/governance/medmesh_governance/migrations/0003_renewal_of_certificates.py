"""Renewal of certificates."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text  # noqa: F401
from sqlalchemy.dialects import postgresql  # noqa: F401

from medmesh.store import types

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('enrolments', sa.Column('replaces', sa.String(length=64), nullable=True, comment='serial number of the certificate it renews'))
    op.alter_column('enrolments', 'code_hash',
               existing_type=sa.VARCHAR(length=64),
               nullable=True,
               comment='none when it renews a certificate')


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

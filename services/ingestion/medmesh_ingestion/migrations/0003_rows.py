"""Rows."""

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
    op.add_column('versions', sa.Column('tables', types.Json, server_default=sa.text("'[]'"), nullable=False, comment='name, kind, rows, groups and splits of each'))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

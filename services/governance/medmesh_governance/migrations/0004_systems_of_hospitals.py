"""Systems of hospitals."""

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
    op.create_table('assertions',
    sa.Column('system', sa.String(length=63), nullable=False),
    sa.Column('jti', sa.String(length=128), nullable=False),
    sa.Column('until', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('system', 'jti', name=op.f('pk_assertions')),
    comment='signed sign-ins of systems, each good once'
    )
    op.add_column('users', sa.Column('kind', sa.String(length=8), server_default=sa.text("'person'"), nullable=False, comment="person, or system: one of a hospital's"))
    op.add_column('users', sa.Column('public_key', sa.Text(), nullable=True, comment="a system's, PEM"))


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

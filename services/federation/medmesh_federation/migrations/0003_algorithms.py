"""Algorithms, evaluations and where time goes."""

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
    op.add_column('federations', sa.Column('state_object', types.Json, nullable=True, comment='what the algorithm remembers after the last committed round'))
    op.add_column('federations', sa.Column('personal', types.Json, nullable=True, comment='hospital to the model made for it, where the algorithm makes such'))
    op.add_column('rounds', sa.Column('state_object', types.Json, nullable=True))
    op.add_column('rounds', sa.Column('personal', types.Json, nullable=True))
    op.add_column('rounds', sa.Column('aggregate_milliseconds', sa.Integer(), nullable=True, comment="from the last answer's being there to the model's being durable"))
    op.add_column('answers', sa.Column('milliseconds', types.Json, server_default=sa.text("'{}'"), nullable=False, comment="what the hospital's time went into"))
    op.alter_column('answers', 'results', existing_type=types.Json, comment="model, or `base` of a training round, to counts")


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

"""Append only."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text  # noqa: F401
from sqlalchemy.dialects import postgresql  # noqa: F401

from medmesh.ledger.tree import fold
from medmesh.store import types

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('conflicts',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('body', sa.LargeBinary(), nullable=False),
    sa.Column('emitter', sa.String(length=80), nullable=False),
    sa.Column('n', types.Counter, nullable=False),
    sa.Column('seq', types.Counter, nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('id', 'sha256', name=op.f('pk_conflicts')),
    comment='records that came under the number or id of another one; `seq` is the one that was logged'
    )
    op.create_table('ddl',
    sa.Column('id', types.Counter, sa.Identity(always=True), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.Column('who', sa.Text(), nullable=False),
    sa.Column('command', sa.Text(), nullable=False),
    sa.Column('object', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_ddl')),
    comment='every change of this schema, written by an event trigger'
    )
    op.create_table('seals',
    sa.Column('kind', sa.String(length=12), nullable=False),
    sa.Column('level', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('number', types.Counter, autoincrement=False, nullable=False),
    sa.Column('version', sa.String(length=80), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.PrimaryKeyConstraint('kind', 'level', 'number', name=op.f('pk_seals')),
    comment='what lies in the object store under lock, and under which version: `entries`, `tile`, or `checkpoint` (number = its size)'
    )
    op.create_table_comment(
        'emitters',
        'follows from the entries, kept for coverage',
        existing_comment=None,
        schema=None
    )
    op.create_unique_constraint(op.f('uq_entries_id'), 'entries', ['id'])
    op.add_column('state', sa.Column('term', types.Counter, server_default='0', nullable=False))
    op.add_column('state', sa.Column('beat', types.Timestamp(), server_default=sa.text('now()'), nullable=False))
    op.add_column('state', sa.Column('ddl_seen', types.Counter, server_default='0', nullable=False))
    op.create_table_comment(
        'state',
        'the writer moves `size` from what it knows, in its own term: one that was overtaken moves nothing',
        existing_comment='the sequencer locks this row: two of them take turns, and neither overwrites the other',
        schema=None
    )
    op.create_check_constraint(op.f('ck_entries_position'), 'entries', 'seq >= 0')
    _only_full_tiles()
    op.create_table_comment(
        'tiles',
        'full tiles only, each with the hash over it; a partial one is read off what lies below it',
        existing_comment=None,
        schema=None
    )


def _only_full_tiles() -> None:
    """Partial tiles go: they follow from the entries and from the full tiles below. Full ones get the hash over them."""
    sql = op.get_bind()
    op.execute("DELETE FROM tiles WHERE length(hashes) < 8192")
    op.add_column('tiles', sa.Column('root', sa.LargeBinary(), nullable=True))
    for level, number, hashes in sql.execute(sa.text("SELECT level, number, hashes FROM tiles")).all():
        root = fold([hashes[i : i + 32] for i in range(0, len(hashes), 32)])
        where = {"root": root, "level": level, "number": number}
        sql.execute(sa.text("UPDATE tiles SET root = :root WHERE level = :level AND number = :number"), where)
    op.alter_column('tiles', 'root', nullable=False)
    op.create_check_constraint(op.f('ck_tiles_full'), 'tiles', 'length(hashes) = 8192 AND length(root) = 32')
    # Hashes do not compress.
    op.execute("ALTER TABLE tiles ALTER COLUMN hashes SET STORAGE EXTERNAL")


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

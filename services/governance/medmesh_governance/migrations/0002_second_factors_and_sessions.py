"""Second factors and sessions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text  # noqa: F401
from sqlalchemy.dialects import postgresql  # noqa: F401

from medmesh.store import types

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('passwords',
    sa.Column('name', sa.String(length=63), nullable=False),
    sa.Column('at', types.Timestamp(), nullable=False),
    sa.Column('hash', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('name', 'at', name=op.f('pk_passwords')),
    comment='the last few of each person, so that none comes again'
    )
    # Sessions live for hours: everybody signs in again.
    op.execute('DELETE FROM sessions')
    op.add_column('sessions', sa.Column('id', sa.String(length=36), nullable=False))
    op.add_column('sessions', sa.Column('must', types.Json, nullable=False, comment='what has to be done first; until then it does nothing else'))
    op.add_column('sessions', sa.Column('strong_at', types.Timestamp(), nullable=True, comment='when the second factor was last shown'))
    op.create_unique_constraint(op.f('uq_sessions_id'), 'sessions', ['id'])
    op.add_column('users', sa.Column('password_at', types.Timestamp(), nullable=True))
    op.add_column('users', sa.Column('signed_in_at', types.Timestamp(), nullable=True))
    op.add_column('users', sa.Column('disabled_at', types.Timestamp(), nullable=True))
    op.add_column('users', sa.Column('factor', sa.LargeBinary(), nullable=True, comment='secret of the authenticator, sealed'))
    op.add_column('users', sa.Column('factor_new', sa.LargeBinary(), nullable=True, comment='the one that was shown and not confirmed yet, sealed'))
    op.add_column('users', sa.Column('factor_step', types.Counter, server_default=sa.text('0'), nullable=False, comment='last step used: a code counts once'))
    one = ' + '.join(f"(roles @> '[\"{kind}_administrator\"]')::int" for kind in ('system', 'security', 'audit'))
    op.create_check_constraint(op.f('ck_users_one_administrator'), 'users', f'{one} <= 1')
    # Passwords of before are as old as their accounts.
    op.execute('UPDATE users SET password_at = created_at WHERE password_hash IS NOT NULL')
    op.execute('INSERT INTO passwords SELECT name, created_at, password_hash FROM users WHERE password_hash IS NOT NULL')


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")

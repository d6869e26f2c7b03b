"""Schemas, roles and migrations: run by an administrator's connection before services start.

A service `x` gets a schema `x`, an owner role `medmesh_x_owner` that cannot log in, and a role `medmesh_x` that logs in
and may read and write rows of that schema only; of tables declared append-only it may read and insert (`guard`).
Migrations run as the owner (Alembic, one folder a service); no service can change its own tables, and none can see another's. None goes
back: what a newer release has written an older one cannot read, and dropping it would lose it; who must go back restores a backup.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.autogenerate.api import AutogenContext
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, BigInteger, Connection, MetaData, text
from sqlalchemy.ext.asyncio import AsyncConnection

from medmesh.store import postgres
from medmesh.store.guard import guard
from medmesh.store.types import Json, Timestamp


@dataclass(frozen=True, slots=True)
class Schema:
    """One service's part of the database. `folder` holds its migrations."""

    service: str
    metadata: MetaData
    folder: Path

    @property
    def owner(self) -> str:
        """The role that owns the tables and cannot log in."""
        return f"medmesh_{self.service}_owner"

    @property
    def role(self) -> str:
        """The role the service logs in with."""
        return f"medmesh_{self.service}"


async def apply(admin_url: str, schemas: Iterable[Schema], passwords: dict[str, str]) -> None:
    """Create what is missing and migrate every schema to its newest version; safe to run again and by two at once."""
    engine = postgres.engine(admin_url, application="medmesh-migrate", autocommit=False)
    try:
        async with engine.begin() as sql:
            await sql.execute(text("SELECT pg_advisory_xact_lock(7236483)"))
            for schema in schemas:
                await _provision(sql, schema, passwords[schema.service])
                await sql.execute(text(f'SET LOCAL ROLE "{schema.owner}"'))
                await sql.execute(text(f'SET LOCAL search_path TO "{schema.service}"'))
                await sql.run_sync(_upgrade, schema)
                await sql.execute(text("INSERT INTO audit_counter (one, n, last_id) VALUES (1, 0, '') ON CONFLICT DO NOTHING"))
                await sql.execute(text("RESET ROLE"))
                await guard(sql, schema)
    finally:
        await engine.dispose()


async def roles(admin_url: str, schemas: Iterable[Schema], passwords: dict[str, str]) -> None:
    """Create the roles alone: what a dump needs before it is restored, and does not hold."""
    engine = postgres.engine(admin_url, application="medmesh-migrate", autocommit=False)
    try:
        async with engine.begin() as sql:
            for schema in schemas:
                await _roles(sql, schema, passwords[schema.service])
    finally:
        await engine.dispose()


def newest(schema: Schema) -> str:
    """The revision that the migrations of this program lead to."""
    return str(_scripts(schema)[1].get_current_head())


async def _roles(sql: AsyncConnection, schema: Schema, password: str) -> None:
    for role, login in ((schema.owner, "NOLOGIN"), (schema.role, "LOGIN")):
        if (await sql.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})).first() is None:
            await sql.execute(text(f'CREATE ROLE "{role}" {login} NOSUPERUSER NOCREATEDB NOCREATEROLE'))
    # The server quotes the password; it never stands in a statement we build.
    alter = await sql.execute(
        text("SELECT format('ALTER ROLE %I PASSWORD %L', CAST(:role AS text), CAST(:password AS text))"),
        {"role": schema.role, "password": password},
    )
    await sql.exec_driver_sql(alter.scalar_one().replace("%", "%%"))
    await sql.execute(text(f'GRANT "{schema.owner}" TO CURRENT_USER'))


async def _provision(sql: AsyncConnection, schema: Schema, password: str) -> None:
    await _roles(sql, schema, password)
    await sql.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema.service}" AUTHORIZATION "{schema.owner}"'))
    await sql.execute(text(f'REVOKE ALL ON SCHEMA "{schema.service}" FROM PUBLIC'))
    await sql.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
    await sql.execute(text(f'GRANT USAGE ON SCHEMA "{schema.service}" TO "{schema.role}"'))
    await sql.execute(text(f'ALTER ROLE "{schema.role}" SET search_path TO "{schema.service}"'))
    for kind, rights in (("TABLES", "SELECT, INSERT, UPDATE, DELETE"), ("SEQUENCES", "USAGE, SELECT")):
        defaults = f'ALTER DEFAULT PRIVILEGES FOR ROLE "{schema.owner}" IN SCHEMA "{schema.service}"'
        await sql.execute(text(f'{defaults} GRANT {rights} ON {kind} TO "{schema.role}"'))


def _scripts(schema: Schema) -> tuple[Config, ScriptDirectory]:
    config = Config()
    config.set_main_option("script_location", str(schema.folder))
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", str(schema.folder))
    return config, ScriptDirectory.from_config(config)


def _upgrade(connection: Connection, schema: Schema) -> None:
    config, scripts = _scripts(schema)
    with EnvironmentContext(config, scripts, fn=lambda revision, _: scripts._upgrade_revs("head", revision)) as environment:
        environment.configure(connection=connection, target_metadata=schema.metadata, transactional_ddl=True)
        environment.run_migrations()


def differences(connection: Connection, schema: Schema) -> str:
    """The Python code of a migration that would make the database equal to the service's `tables.py`; "pass" when it is."""
    context = MigrationContext.configure(
        connection,
        opts={"target_metadata": schema.metadata, "compare_type": True, "render_item": _render, "user_module_prefix": "types."},
    )
    migrations = produce_migrations(context, schema.metadata)
    assert migrations.upgrade_ops is not None
    code = render_python_code(migrations.upgrade_ops, render_item=_render)
    return "\n".join(line for line in code.splitlines() if not line.strip().startswith("# ###"))


def _render(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    if kind == "type":
        if isinstance(item, Timestamp):
            return "types.Timestamp()"
        if isinstance(item, type(Json) | JSON):
            return "types.Json"
        if isinstance(item, BigInteger):
            return "types.Counter"
    return False


_TEMPLATE = '''"""{title}"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text  # noqa: F401
from sqlalchemy.dialects import postgresql  # noqa: F401

from medmesh.store import types

revision = "{revision}"
down_revision = {down}
branch_labels = None
depends_on = None


def upgrade() -> None:
{body}


def downgrade() -> None:
    raise NotImplementedError("restore a backup instead")
'''


async def generate(admin_url: str, schema: Schema, title: str) -> Path | None:
    """Write the next migration of a service from the difference between its `tables.py` and its migrations so far."""
    schema.folder.mkdir(exist_ok=True)
    await apply(admin_url, [schema], {schema.service: "unused"}) if any(schema.folder.glob("*.py")) else None
    engine = postgres.engine(admin_url, application="medmesh-migrate", autocommit=False)
    try:
        async with engine.begin() as sql:
            await sql.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema.service}"'))
            await sql.execute(text(f'SET LOCAL search_path TO "{schema.service}"'))
            body = await sql.run_sync(differences, schema)
    finally:
        await engine.dispose()
    if body.strip() == "pass":
        return None
    number = len(list(schema.folder.glob("[0-9]*.py"))) + 1
    down = f'"{number - 1:04d}"' if number > 1 else "None"
    path = schema.folder / f"{number:04d}_{title.replace(' ', '_')}.py"
    indented = "\n".join(f"    {line}" if line and not line.startswith("    ") else line for line in body.splitlines())
    path.write_text(_TEMPLATE.format(title=title.capitalize() + ".", revision=f"{number:04d}", down=down, body=indented), encoding="utf-8")
    return path

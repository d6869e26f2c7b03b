"""Databases for tests: a service's schema on the session's PostgreSQL, or a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, text
from sqlalchemy.engine import make_url

from medmesh.store import postgres
from medmesh.store.database import Database
from medmesh.store.migrate import Schema, apply
from medmesh.store.objects import incoming
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.tables import service_metadata
from medmesh.store.types import Json
from medmesh.store.unit import AuditEntry, Context

PASSWORD = "test-only"


def swept_though_named(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The tables that name an object, of each that nodes in this process sweep from now on because nobody does."""
    found, erase = list[list[str]](), incoming.erase

    def erased(blobs: DirectoryBlobs, sha256: str) -> None:
        with closing(sqlite3.connect(f"file:{blobs.folder.parent / 'store.db'}?mode=ro", uri=True, timeout=10)) as sql:
            tables = {name for (name,) in sql.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} - {"unnamed"}
            rows = {name: sql.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables}
        if named := [name for name in sorted(rows) if any(sha256 in repr(row) for row in rows[name])]:
            found.append(named)
        erase(blobs, sha256)

    monkeypatch.setattr(incoming, "erase", erased)
    return found


def example_metadata() -> MetaData:
    """The base tables and one of a pretended service."""
    metadata = service_metadata()
    Table("things", metadata, Column("name", String(40), primary_key=True), Column("count", Integer, nullable=False), Column("about", Json))
    return metadata


def plain_record(entry: AuditEntry, context: Context, record_id: str, n: int, previous: str) -> bytes:
    """A recorder that only shows what it was given."""
    return f"{n} {entry.verb} {bool(previous)}".encode()


@asynccontextmanager
async def example_postgres(admin_url: str, schema: str, metadata: MetaData | None = None, **options: Any) -> AsyncIterator[Database]:
    """A fresh schema made from the example's tables, without migrations."""
    engine = postgres.engine(admin_url, pool_size=1)
    async with engine.connect() as sql:
        await sql.execute(text(f'CREATE SCHEMA "{schema}"'))
        await sql.execute(text(f"CREATE ROLE \"{schema}\" LOGIN PASSWORD '{PASSWORD}'"))
        await sql.execute(text(f'GRANT ALL ON SCHEMA "{schema}" TO "{schema}"'))
        await sql.execute(text(f'ALTER ROLE "{schema}" SET search_path TO "{schema}"'))
    await engine.dispose()
    where = make_url(admin_url).set(username=schema).render_as_string(hide_password=False)
    database = Database.postgres(where, password=PASSWORD, recorder=plain_record, **options)
    await database.create(metadata or example_metadata())
    yield database
    await database.close()


@asynccontextmanager
async def service_postgres(admin_url: str, schema: Schema, database: str, **options: Any) -> AsyncIterator[Database]:
    """A service's own schema, by its migrations, in a database of its own."""
    engine = postgres.engine(admin_url, pool_size=1)
    async with engine.connect() as sql:
        await sql.execute(text(f'CREATE DATABASE "{database}"'))
    await engine.dispose()
    admin = make_url(admin_url).set(database=database)
    await apply(admin.render_as_string(hide_password=False), [schema], {schema.service: PASSWORD})
    opened = Database.postgres(
        admin.set(username=schema.role).render_as_string(hide_password=False), password=PASSWORD, recorder=plain_record, **options
    )
    yield opened
    await opened.close()


@asynccontextmanager
async def example_sqlite(folder: Path, metadata: MetaData | None = None, **options: Any) -> AsyncIterator[Database]:
    """A SQLite file with the example's tables."""
    database = Database.sqlite(folder / "store.db", recorder=plain_record, **options)
    await database.create(metadata or example_metadata())
    yield database
    await database.close()


@asynccontextmanager
async def example_memory(**options: Any) -> AsyncIterator[Database]:
    """The same in memory."""
    database = Database.memory(recorder=plain_record, **options)
    await database.create(example_metadata())
    yield database
    await database.close()

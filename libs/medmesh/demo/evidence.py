"""What the demonstration does as the owner of the database: copy everything, and alter one stored record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from medmesh.embedded.run import running
from medmesh.errors import Problem


async def _superuser(data: Path) -> asyncpg.Connection:
    run = running(data)
    if run is None:
        raise Problem("platform.not_running", data=data)
    password = run.paths["postgres.password"].read_text().strip()
    return await asyncpg.connect(run.urls["postgres"], password=password)


async def dump_database(data: Path, folder: Path) -> int:
    """Every row of every table as JSON and as the bytes of its columns, uncompressed; answers how many rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = 0
    database = await _superuser(data)
    try:
        tables = await database.fetch(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for schema, table in tables:
            with (folder / f"{schema}.{table}").open("wb") as file:
                for row in await database.fetch(f'SELECT * FROM "{schema}"."{table}"'):  # noqa: S608 - names from the catalogue
                    rows += 1
                    for value in row.values():
                        file.write(value if isinstance(value, bytes) else json.dumps(value, default=str, ensure_ascii=False).encode())
                        file.write(b"\n")
    finally:
        await database.close()
    return rows


@dataclass(frozen=True)
class Altered:
    """The record that was altered, and what it was before."""

    seq: int
    body: bytes


async def _overwrite(database: asyncpg.Connection, seq: int, body: bytes) -> None:
    """The table refuses changes also to a superuser, who can switch that off; the log tells of it (`audit.alarm.ddl`)."""
    async with database.transaction():
        await database.execute("ALTER TABLE audit.entries DISABLE TRIGGER no_change")
        await database.execute("UPDATE audit.entries SET body = $1 WHERE seq = $2", body, seq)
        await database.execute("ALTER TABLE audit.entries ENABLE ALWAYS TRIGGER no_change")


async def alter_record(data: Path, random: bytes) -> Altered:
    """Flip one bit of one stored record, chosen by 32 random bytes; a superuser can, and the log must show it."""
    database = await _superuser(data)
    try:
        size = await database.fetchval("SELECT size FROM audit.state")
        seq = int.from_bytes(random[:8], "big") % size
        body = bytes(await database.fetchval("SELECT body FROM audit.entries WHERE seq = $1", seq))
        place = int.from_bytes(random[8:16], "big") % len(body)
        changed = body[:place] + bytes([body[place] ^ 1 << random[16] % 8]) + body[place + 1 :]
        await _overwrite(database, seq, changed)
    finally:
        await database.close()
    return Altered(seq, body)


async def restore_record(data: Path, altered: Altered) -> None:
    """Put it back."""
    database = await _superuser(data)
    try:
        await _overwrite(database, altered.seq, altered.body)
    finally:
        await database.close()

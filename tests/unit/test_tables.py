"""A node's store is made as SQLAlchemy would make it, table by table."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine

from medmesh.store.database import Database
from medmesh_edge.tables import METADATA
from medmesh_federation.service import SERVICE

WHOLE = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"


@pytest.mark.parametrize("metadata", [METADATA, SERVICE.metadata])
def test_a_store_has_the_tables_and_indexes_of_its_metadata_also_where_some_were_there(metadata: MetaData) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as sql:
        metadata.create_all(sql)
        wanted = [tuple(row) for row in sql.exec_driver_sql(WHOLE)]

    async def found() -> list[tuple[Any, ...]]:
        database = Database.memory()
        try:
            async with database.engine.connect() as sql:
                await sql.run_sync(metadata.tables["outbox"].create)  # as an interrupted start might have left it
            await database.create(metadata)
            async with database.engine.connect() as sql:
                for kind, name, _, said in wanted:
                    if kind == "index" and said is not None:
                        await sql.exec_driver_sql(f"DROP INDEX {name}")  # which an earlier release did not have
            await database.create(metadata)
            async with database.engine.connect() as sql:
                return [tuple(row) for row in await sql.exec_driver_sql(WHOLE)]
        finally:
            await database.close()

    assert asyncio.run(found()) == wanted

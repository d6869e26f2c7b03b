"""Append-only tables and the watch over a schema that has some (PostgreSQL).

A table is declared append-only in `tables.py` (`info=APPEND_ONLY`); from that follow the rights of the service's role
(INSERT and SELECT), row and statement triggers that fire for everybody (ENABLE ALWAYS), and event triggers that note every
change of the schema in its table `ddl`, in the server's log and as a notification. A superuser can switch all of it off:
`weaknesses` tells when that was done, and the log's own proofs tell what was changed meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, Identity, MetaData, Table, Text, text
from sqlalchemy.ext.asyncio import AsyncConnection

from medmesh.store.types import Counter, Timestamp

if TYPE_CHECKING:
    from medmesh.store.migrate import Schema

APPEND_ONLY = {"append_only": True}


def emptied(columns: tuple[str, ...], *, place: str, below: str) -> dict[str, object]:
    """Append-only but for one way: these columns (bytes) may be emptied, and nothing else done, in rows whose `place` lies below what the
    query `below` answers. The service's role still has no right to; the function `prune(first, end)` does it, and no more than that."""
    return {**APPEND_ONLY, "emptied": (columns, place, below)}


CHANNEL = "medmesh_ddl"


def add_watch_table(metadata: MetaData) -> Table:
    """Where changes of the schema are noted; a schema with append-only tables has it."""
    return Table(
        "ddl",
        metadata,
        Column("id", Counter, Identity(always=True), primary_key=True),
        Column("at", Timestamp, nullable=False),
        Column("who", Text, nullable=False),
        Column("command", Text, nullable=False),
        Column("object", Text, nullable=False),
        info=APPEND_ONLY,
        comment="every change of this schema, written by an event trigger",
    )


def append_only(metadata: MetaData) -> list[str]:
    """The names of the tables that only grow."""
    return sorted(table.name for table in metadata.tables.values() if table.info.get("append_only"))


_REFUSE = """
CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    RAISE EXCEPTION '% on %.% is refused: it is append-only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$body$
"""
_EMPTY_ONLY = """
CREATE FUNCTION empty_only() RETURNS trigger LANGUAGE plpgsql SET search_path = "{schema}", pg_catalog AS $body$
BEGIN
    IF TG_OP = 'UPDATE' AND {empty} AND to_jsonb(NEW) - {names} = to_jsonb(OLD) - {names} AND OLD.{place} < ({below}) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION '% on %.% is refused: it is append-only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$body$
"""
_PRUNE = """
CREATE FUNCTION prune(first bigint, upto bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = "{schema}", pg_catalog AS $body$
    UPDATE "{table}" SET {set} WHERE {place} >= first AND {place} < upto AND {place} < ({below}) AND NOT ({empty})
$body$
"""
# SECURITY DEFINER: whoever changes the schema writes the row, whatever they may otherwise.
_NOTE = """
CREATE FUNCTION "{schema}".note_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $body$
DECLARE found record;
BEGIN
    FOR found IN EXECUTE CASE TG_EVENT
        WHEN 'sql_drop' THEN 'SELECT ''DROP '' || upper(object_type) AS command, object_identity AS object
            FROM pg_event_trigger_dropped_objects() WHERE schema_name = {literal} AND original'
        ELSE 'SELECT command_tag AS command, object_identity AS object
            FROM pg_event_trigger_ddl_commands() WHERE schema_name = {literal}' END
    LOOP
        RAISE LOG 'medmesh: % on % by %', found.command, found.object, session_user;
        INSERT INTO "{schema}".ddl (at, who, command, object) VALUES (clock_timestamp(), session_user, found.command, found.object);
        PERFORM pg_notify('{channel}', '{schema}');
    END LOOP;
END
$body$
"""


async def guard(sql: AsyncConnection, schema: Schema) -> None:
    """Put rights and triggers in their place; what is there already is left alone, so that a start is no change of the schema."""
    names = append_only(schema.metadata)
    if not names:
        return
    await sql.execute(text(f'SET LOCAL ROLE "{schema.owner}"'))
    await sql.execute(text(f'SET LOCAL search_path TO "{schema.service}"'))
    if (await sql.execute(text("SELECT to_regproc('append_only')"))).scalar_one() is None:
        await sql.exec_driver_sql(_REFUSE)
    for name in names:
        rule = schema.metadata.tables[name].info.get("emptied")
        if (await sql.execute(text("SELECT to_regclass(:name)"), {"name": f'"{name}"'})).scalar_one() is None:
            continue  # declared, and its migration is about to be generated
        await sql.execute(text(f'REVOKE ALL ON "{name}" FROM "{schema.role}", PUBLIC'))
        await sql.execute(text(f'GRANT SELECT{"" if name == "ddl" else ", INSERT"} ON "{name}" TO "{schema.role}"'))
        if rule is not None:
            await _one_way(sql, schema, name, *rule)
        for trigger, event, level in (("no_change", "UPDATE OR DELETE", "ROW"), ("no_truncate", "TRUNCATE", "STATEMENT")):
            if await _enabled(sql, schema.service, name, trigger) is None:
                does = "empty_only()" if rule is not None and level == "ROW" else "append_only()"
                body = f'CREATE TRIGGER {trigger} BEFORE {event} ON "{name}" FOR EACH {level} EXECUTE FUNCTION {does}'
                await sql.execute(text(body))
                await sql.execute(text(f'ALTER TABLE "{name}" ENABLE ALWAYS TRIGGER {trigger}'))
    await sql.execute(text("RESET ROLE"))
    await _watch(sql, schema.service)


async def _one_way(sql: AsyncConnection, schema: Schema, table: str, columns: tuple[str, ...], place: str, below: str) -> None:
    """The functions behind `emptied`: the trigger's, and the one the service may call. Names are our own, from `tables.py`."""
    if (await sql.execute(text("SELECT to_regproc('empty_only')"))).scalar_one() is not None:
        return
    parts = {
        "schema": schema.service,
        "table": table,
        "place": place,
        "below": below,
        "names": "ARRAY[" + ", ".join(f"'{column}'" for column in columns) + "]",
        "set": ", ".join(f"{column} = ''" for column in columns),
    }
    await sql.exec_driver_sql(_EMPTY_ONLY.format(**parts, empty=" AND ".join(f"NEW.{column} = ''" for column in columns)))
    await sql.exec_driver_sql(_PRUNE.format(**parts, empty=" AND ".join(f"{column} = ''" for column in columns)))
    await sql.execute(text("REVOKE ALL ON FUNCTION prune(bigint, bigint) FROM PUBLIC"))
    await sql.execute(text(f'GRANT EXECUTE ON FUNCTION prune(bigint, bigint) TO "{schema.role}"'))


async def _watch(sql: AsyncConnection, schema: str) -> None:
    """Event triggers are a superuser's to make; a managed server without one is told of by `weaknesses`."""
    if not (await sql.execute(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))).scalar_one():
        return
    if (await sql.execute(text("SELECT to_regproc(:name)"), {"name": f"{schema}.note_ddl"})).scalar_one() is not None:
        return
    body = _NOTE.format(schema=schema, literal=f"''{schema}''", channel=CHANNEL)
    await sql.exec_driver_sql(body)
    for event in ("ddl_command_end", "sql_drop"):
        await sql.execute(text(f'CREATE EVENT TRIGGER "{schema}_{event}" ON {event} EXECUTE FUNCTION "{schema}".note_ddl()'))
        await sql.execute(text(f'ALTER EVENT TRIGGER "{schema}_{event}" ENABLE ALWAYS'))


async def _enabled(sql: AsyncConnection, schema: str, table: str, trigger: str) -> str | None:
    wanted = text(
        "SELECT t.tgenabled::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = :schema AND c.relname = :table AND t.tgname = :trigger"
    )
    found: str | None = (await sql.execute(wanted, {"schema": schema, "table": table, "trigger": trigger})).scalar_one_or_none()
    return found


async def weaknesses(sql: AsyncConnection, metadata: MetaData) -> list[str]:
    """What protects these tables no longer, as the service's own role sees it: rights it should not have, triggers that are gone or
    off. Empty when all is in place."""
    schema = (await sql.execute(text("SELECT current_schema()"))).scalar_one()
    found = []
    for name in append_only(metadata):
        for right in ("UPDATE", "DELETE", "TRUNCATE", "TRIGGER"):
            if (
                await sql.execute(text("SELECT has_table_privilege(:table, :right)"), {"table": f"{schema}.{name}", "right": right})
            ).scalar():
                found.append(f"right:{name}:{right.lower()}")
        found += [f"trigger:{name}:{t}" for t in ("no_change", "no_truncate") if await _enabled(sql, schema, name, t) != "A"]
    watching = text("SELECT evtenabled::text FROM pg_event_trigger WHERE evtname = :name")
    for event in ("ddl_command_end", "sql_drop"):
        if (await sql.execute(watching, {"name": f"{schema}_{event}"})).scalar_one_or_none() != "A":
            found.append(f"watch:{event}")
    return found

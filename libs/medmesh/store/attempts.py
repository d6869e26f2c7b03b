"""The key of what belongs to one attempt at a round, in the stores of the platform and of a hospital's node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column, ColumnElement, Integer, String, Table, and_, bindparam

KEY = ("federation", "round", "attempt")


def columns() -> Iterator[Column[Any]]:
    """The key as a table's columns: one is one table's, so each gets its own."""
    yield Column("federation", String(36), primary_key=True)
    for name in KEY[1:]:
        yield Column(name, Integer, primary_key=True, autoincrement=False)


def attempt(of: Any) -> dict[str, Any]:
    """The key of the attempt that an event or a row is about."""
    return {name: getattr(of, name) for name in KEY}


def of_attempt(table: Table) -> ColumnElement[bool]:
    """For prepared statements: the table's rows of one attempt, by `**attempt(event)`."""
    return and_(*(table.c[name] == bindparam(name) for name in KEY))


def same_attempt(one: Table, other: Table) -> ColumnElement[bool]:
    """That rows of both tables belong to the same."""
    return and_(*(one.c[name] == other.c[name] for name in KEY))

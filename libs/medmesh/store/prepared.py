"""Statements that run with every request: built and compiled once, and run on the driver's own connection.

SQLAlchemy builds a statement's tree, looks its text up, and wraps its rows anew each time it runs: four fifths of what a short statement
costs (`docs/decisions/0085`, `0096`). What varies in a prepared one are its `bindparam`s; a list (`in_`) is none, unless of `literal`s.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, type_coerce

if TYPE_CHECKING:  # a node does without it, and with 6 MiB less
    from sqlalchemy import Column, ColumnElement, Executable
    from sqlalchemy.engine import Dialect

Look = Callable[..., Awaitable[Sequence[Any]]]
"""Runs a prepared statement: in a transaction (`UnitOfWork.rows`), or alone (`look` of a database)."""
_As = Callable[[Any], Any]
_NEEDED = object()


class Compiled:
    """A statement for one driver."""

    def __init__(self, statement: Executable, kind: Dialect) -> None:
        compiled: Any = statement.compile(dialect=kind)  # type: ignore[attr-defined]
        if compiled.post_compile_params:
            raise TypeError("a prepared statement has no `in_`")
        self.text = str(compiled)
        parts: list[tuple[str, Any, _As | None]] = []
        for name in compiled.positiontup or ():
            bound = compiled.binds[name]
            value = _NEEDED if bound.required else bound.value
            parts.append((name, value, bound.type.dialect_impl(kind).bind_processor(kind)))
        self._parts = parts
        self._names = frozenset(name for name, _, _ in parts)
        self._needed = frozenset(name for name, value, _ in parts if value is _NEEDED)
        # What a value must be given for, and what the statement says itself.
        self._places = [
            (name, None, as_) if value is _NEEDED else (None, value if as_ is None else as_(value), None) for name, value, as_ in parts
        ]
        answered: Any = statement.exported_columns  # type: ignore[attr-defined]
        self.columns = [(column.key, column.type.dialect_impl(kind).result_processor(kind, None)) for column in answered]

    def asked(self, values: Mapping[str, Any]) -> list[Any]:
        """The values of its places in order. Raises `TypeError` unless there is a value for each of its names."""
        if values.keys() == self._needed:
            return [said if name is None else values[name] if as_ is None else as_(values[name]) for name, said, as_ in self._places]
        found = [values.get(name, value) for name, value, _ in self._parts]
        if _NEEDED in found or not values.keys() <= self._names:
            raise TypeError(f"a prepared statement wants {', '.join(name for name, value, _ in self._parts if value is _NEEDED)}")
        return [value if as_ is None else as_(value) for value, (_, _, as_) in zip(found, self._parts, strict=True)]


class Prepared:
    """`statement`, to be run with a value for each of its `bindparam`s: `await uow.rows(PREPARED, name=value)`."""

    def __init__(self, statement: Executable) -> None:
        self.statement = statement

    @cached_property
    def _postgres(self) -> Compiled:
        from sqlalchemy.dialects.postgresql.asyncpg import dialect

        return Compiled(self.statement, dialect())  # type: ignore[no-untyped-call]

    @cached_property
    def sqlite(self) -> tuple[Compiled, Callable[[Sequence[Any]], Any]]:
        """Compiled for SQLite, and what makes a row, with the columns as attributes, of one of the driver's."""
        from pydantic_core import from_json, to_json
        from sqlalchemy.dialects.sqlite.pysqlite import dialect

        compiled = Compiled(self.statement, dialect(json_deserializer=from_json, json_serializer=lambda value: to_json(value).decode()))
        names = [name for name, _ in compiled.columns]
        row: Any = namedtuple("Row", names)  # type: ignore[misc]
        make = partial(tuple.__new__, row)  # `_make`, which would count them
        made = [(place, as_) for place, (_, as_) in enumerate(compiled.columns) if as_ is not None]

        def read(found: Sequence[Any]) -> Any:
            values = list(found)
            for place, as_ in made:
                if values[place] is not None:
                    values[place] = as_(values[place])
            return make(values)

        return compiled, read if made else make

    @property
    def text(self) -> str:
        """For PostgreSQL."""
        return self._postgres.text

    def asked(self, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Its text for PostgreSQL, and the values of `$1`, `$2`... in order. Raises `TypeError` unless there is a value for each name."""
        return self._postgres.text, self._postgres.asked(values)


def as_text(column: Column[Any]) -> ColumnElement[str]:
    """A document as it is stored; who needs it reads it at once into what it is."""
    return type_coerce(column, Text).label(column.name)

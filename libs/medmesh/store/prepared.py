"""Statements that run with every request: built and compiled once, and run on the driver's own connection.

SQLAlchemy builds a statement's tree, looks its text up, and wraps its rows anew each time it runs: four fifths of what a short statement
costs a service (`docs/decisions/0085`). What varies in a prepared one are its `bindparam`s; a list (`in_`) is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a node does without it, and with 6 MiB less
    from sqlalchemy import Executable

_As = Callable[[Any], Any]
_NEEDED = object()


class Prepared:
    """`statement`, to be run with a value for each of its `bindparam`s: `await uow.rows(PREPARED, name=value)`."""

    def __init__(self, statement: Executable) -> None:
        self.statement = statement

    @cached_property
    def _compiled(self) -> tuple[str, list[tuple[str, Any, _As | None]]]:
        """(text, for each `$n` its name, the value it has where nobody gives one, and what a value is made into)."""
        from sqlalchemy.dialects.postgresql.asyncpg import dialect

        kind = dialect()  # type: ignore[no-untyped-call]
        compiled: Any = self.statement.compile(dialect=kind)  # type: ignore[attr-defined]
        if compiled.post_compile_params:
            raise TypeError("a prepared statement has no `in_`")
        parts = []
        for name in compiled.positiontup or ():
            bound = compiled.binds[name]
            value = _NEEDED if bound.required else bound.value
            parts.append((name, value, bound.type.dialect_impl(kind).bind_processor(kind)))
        return str(compiled), parts

    @property
    def text(self) -> str:
        """For PostgreSQL."""
        return self._compiled[0]

    def asked(self, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Its text and the values of `$1`, `$2`... in order. Raises `TypeError` unless there is a value for each of its names."""
        text, parts = self._compiled
        found = [values.get(name, value) for name, value, _ in parts]
        if _NEEDED in found or not values.keys() <= {name for name, _, _ in parts}:
            raise TypeError(f"a prepared statement wants {', '.join(name for name, value, _ in parts if value is _NEEDED)}")
        return text, [value if as_ is None else as_(value) for value, (_, _, as_) in zip(found, parts, strict=True)]

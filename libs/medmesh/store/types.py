"""Column types that mean the same in PostgreSQL and SQLite."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Integer, String, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine


class Timestamp(TypeDecorator[datetime]):
    """An instant, always with its time zone; SQLite keeps it as ISO 8601 text in UTC, which sorts."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(40) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant needs its time zone")
        return value.astimezone(UTC).isoformat(timespec="microseconds") if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return datetime.fromisoformat(value) if isinstance(value, str) else value


class _Json(TypeDecorator[Any]):
    """No variant of `JSON`: a node would load PostgreSQL's dialect for it, and hold 2.5 MiB more."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name != "postgresql":
            return dialect.type_descriptor(JSON())
        from sqlalchemy.dialects.postgresql import JSONB

        return dialect.type_descriptor(JSONB())


Json = _Json()
"""A JSON document; JSONB in PostgreSQL."""


class ReadOnce(TypeDecorator[Any]):
    """For `type_coerce` of a `Json` column whose few documents are read again and again: each is decoded once. Nobody may alter it."""

    impl = Text
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else _decoded(value)


@lru_cache(64)
def _decoded(text: str) -> Any:
    return json.loads(text)


Counter = BigInteger().with_variant(Integer(), "sqlite")
"""A 64-bit integer that may be an automatic key in both."""

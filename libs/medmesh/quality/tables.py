"""Rules about tables and texts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Literal

from medmesh.importing.formats import tables
from medmesh.importing.formats.tables import Column
from medmesh.quality.rules import Finding

MISSING = 0.2  # share of a column
REMEMBERED = 1_000_000  # rows whose hashes are kept (8 bytes each) to find copies
_DAMAGE = re.compile(r"\ufffd|锟斤拷|Ã[\x80-\xbf]|â€[™œ\x9d]|[\x00-\x08\x0b\x0c\x0e-\x1f]")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a column must be: its type (`number` allows whole ones), its range, whether it may be missing."""

    type: Literal["whole", "number", "date", "text"] = "text"
    low: float | None = None
    high: float | None = None
    required: bool = False


def of_table(file: BinaryIO, schema: Mapping[str, Wanted] | None = None) -> list[Finding]:
    """Of a CSV file, read twice. Columns are called by name, values are never shown."""
    table = tables.read(file)
    found = [finding for column in table.columns for finding in _of_column(column, table.rows)]
    found += list(_against(table.columns, schema or {}))
    seen: set[bytes] = set()
    copies = 0
    for _, _, fields in tables.rows(file, table.dialect):
        key = hashlib.blake2b("\x1f".join(fields).encode(), digest_size=8).digest()
        copies += key in seen
        if len(seen) < REMEMBERED:
            seen.add(key)
    if copies:
        found.append(Finding("duplicate_rows", {"count": copies}))
    return found


def of_text(text: str) -> list[Finding]:
    """Of a note: whether there is any, and whether it was decoded as something it was not."""
    if not text.strip():
        return [Finding("empty_text")]
    return [Finding("damaged_encoding")] if _DAMAGE.search(text) else []


def _of_column(column: Column, rows: int) -> Iterator[Finding]:
    about = {"column": column.name}
    if not rows or column.types["missing"] == rows:
        yield Finding("empty_column", about)
        return
    if column.types["missing"] > MISSING * rows:
        yield Finding("missing_values", {**about, "share": f"{100 * column.types['missing'] / rows:.1f}"})
    if rows > 1 and len(column.values) == 1 and not column.types["missing"]:
        yield Finding("constant_column", about)


def _against(columns: list[Column], schema: Mapping[str, Wanted]) -> Iterator[Finding]:
    by_name = {column.name: column for column in columns}
    for name, wanted in schema.items():
        column = by_name.get(name)
        if column is None:
            yield Finding("missing_column", {"column": name})
            continue
        if wanted.required and column.types["missing"]:
            yield Finding("missing_values", {"column": name, "share": f"{100 * column.types['missing'] / column.types.total():.1f}"})
        allowed = {"whole": {"whole"}, "number": {"whole", "number"}, "date": {"date"}}.get(wanted.type)
        if allowed is not None and (wrong := sum(count for kind, count in column.types.items() if kind not in allowed | {"missing"})):
            yield Finding("wrong_type", {"column": name, "type": wanted.type, "count": wrong})
        low, high = wanted.low, wanted.high
        if (low is not None and column.low < low) or (high is not None and column.high > high):
            yield Finding("out_of_range", {"column": name, "low": f"{column.low:g}", "high": f"{column.high:g}"})

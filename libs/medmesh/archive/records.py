"""What the node has yet to put on record of its archive, left with the change itself; it is taken over by its identifier, once.

What one request does in several transactions has one record that grows with them. It is open until its request is over, whatever its end;
the open records of a process that was killed are closed by the next (`interrupted`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Growing:
    """A record that is not whole yet: `body` as it begins, with its counts in `detail`."""

    id: str
    body: Mapping[str, Any]


def add(connection: sqlite3.Connection, identifier: str, body: Mapping[str, Any]) -> None:
    """One that is whole. Part of its caller's transaction, as all here is."""
    connection.execute("INSERT OR IGNORE INTO records (id, body) VALUES (?, ?)", (identifier, _text(body)))


def grow(connection: sqlite3.Connection, record: Growing, counted: Mapping[str, int]) -> None:
    """Count in `detail` what the transaction does."""
    row = connection.execute("SELECT body FROM records WHERE id = ?", (record.id,)).fetchone()
    body: dict[str, Any] = dict(record.body) if row is None else json.loads(row[0])
    detail = body.get("detail", {})
    body["detail"] = detail | {name: detail.get(name, 0) + number for name, number in counted.items()}
    wanted = "INSERT INTO records (id, body, open) VALUES (?, ?, 1) ON CONFLICT (id) DO UPDATE SET body = excluded.body"
    connection.execute(wanted, (record.id, _text(body)))


def close(connection: sqlite3.Connection, record: Growing, last: Mapping[str, Any]) -> None:
    """It is whole: `last` goes over what it says, its `detail` name by name."""
    connection.execute(
        "INSERT INTO records (id, body) VALUES (?1, json_patch(?2, ?3))"
        " ON CONFLICT (id) DO UPDATE SET open = 0, body = json_patch(body, ?3)",
        (record.id, _text(record.body), _text(last)),
    )


def interrupted(connection: sqlite3.Connection, last: Mapping[str, Any]) -> int:
    """Close what a killed process left open; for a process that knows that nobody else has open ones. How many."""
    return connection.execute("UPDATE records SET open = 0, body = json_patch(body, ?) WHERE open", (_text(last),)).rowcount


def waiting(connection: sqlite3.Connection, only: str = "", limit: int = 100) -> list[tuple[str, dict[str, Any]]]:
    """(identifier, body) of those that are whole, oldest first, or `only` that one."""
    rows = connection.execute("SELECT id, body FROM records WHERE NOT open AND ? IN ('', id) ORDER BY id LIMIT ?", (only, limit))
    return [(identifier, json.loads(text)) for identifier, text in rows]


def done(connection: sqlite3.Connection, identifiers: Iterable[str]) -> None:
    """They are on record."""
    connection.executemany("DELETE FROM records WHERE id = ?", [(one,) for one in identifiers])


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False)

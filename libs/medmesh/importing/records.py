"""What of an item is kept as rows: a question, its texts, a row of a published table; by the rules for free text, under pseudonyms."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from medmesh.importing.port import Column, Importer, Item
from medmesh.importing.rows import GROUP, ITEM, QUESTIONS, SPLIT, TEXTS, Field, Kept, Shape, TableKind
from medmesh.text import Sieve

MAX_WORD = 64
"""Characters of a class."""
DOUBTFUL = "text_doubtful"
"""Why a row is put aside: rules doubt whether somebody is named in it."""
_NEEDED = ("question", "choices", "answer")
"""Without one of these a question is none; what else is told with it may be left empty."""
_KEPT: dict[str, Kept] = {
    "identifier": "identifier", "code": "code", "whole": "whole", "number": "number", "time": "time", "text": "text", "vocabulary": "text",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """A row, of the table that `shape` describes. `emptied` names its cells in which rules doubted."""

    shape: Shape
    values: dict[str, Any]
    emptied: tuple[str, ...] = ()


class Names:
    """Pseudonyms under the project's `key`, of everything in the set `layout`."""

    def __init__(self, key: bytes, layout: str) -> None:
        self._key, self._layout = key, layout
        self.group = lru_cache(1 << 14)(lambda unit: self._made("group", unit))
        self.days = lru_cache(1 << 14)(self._days)
        self.identifier = lru_cache(1 << 14)(lambda column, value: self._made(f"id\0{column}", value))

    def item(self, place: str) -> str:
        """16 hexadecimal digits for an item's place in the set."""
        return self._made("item", place)

    def picture(self, name: str) -> str:
        """For a picture that questions are about, shipped or not."""
        return self._made("item", f"picture\0{name}")

    def _days(self, unit: str) -> int:
        from medmesh.imaging.pseudonyms import shift_days

        return shift_days(unit, self._key)

    def _made(self, what: str, value: str) -> str:
        return hmac.digest(self._key, f"{what}\0{self._layout}\0{value}".encode(), "sha256").hex()[:16]


@dataclass(slots=True)
class Records:
    """Makes rows of the items of one set."""

    importer: Importer
    names: Names
    sieve: Sieve
    _tables: dict[str, tuple[Shape, tuple[Column, ...]]] = field(default_factory=dict)

    def of(self, item: Item) -> Iterator[Record | str]:
        """The item's rows; a reason instead of one that is put aside."""
        if "table" in item.labels:
            yield from self._row(item)
        elif item.kind == "question":
            yield self._question(item)
        else:
            for name, role in self.importer.texts.items():
                if isinstance(text := item.meta.get(name), str) and text.strip():
                    yield self._text(item, role, text)

    def _question(self, item: Item) -> Record | str:
        values, emptied = self._known(item), []
        for name, column in self.importer.texts.items():
            found = item.meta.get(name)
            told = list(found.values()) if isinstance(found, dict) else [found]
            if not any(isinstance(one, str) and one.strip() for one in told):
                continue
            made = [self.sieve.kept(str(one)) for one in told]
            if None not in made:
                values[column] = made if isinstance(found, dict) else made[0]
            elif column in _NEEDED:
                return DOUBTFUL
            else:
                emptied.append(column)
        label = item.labels.get(self.importer.target)
        values["label"] = None if label is None else str(label)[:MAX_WORD]
        values["labels"] = {name: str(value)[:MAX_WORD] for name, value in sorted(item.labels.items())}
        return Record(_QUESTIONS, values, tuple(emptied))

    def _text(self, item: Item, role: str, text: str) -> Record | str:
        said = self.sieve.kept(text)
        return DOUBTFUL if said is None else Record(_TEXTS, self._known(item) | {"role": role, "text": said})

    def _known(self, item: Item) -> dict[str, Any]:
        """Whose it is, on which side, and what pictures it is about: an image's own text is about the image."""
        group = None if item.unit is None else self.names.group(item.unit)
        own = item.kind not in ("question", "text")
        images = [self.names.item(item.key)] if own else [self.names.picture(name) for name, _ in item.pictures]
        return {"item": self.names.item(item.key), "group": group, "split": item.split, "images": images}

    def _table(self, table: str, item: Item) -> tuple[Shape, tuple[Column, ...]]:
        if table not in self._tables:
            columns = self.importer.columns(table)
            about: tuple[Field, ...] = (ITEM, GROUP, SPLIT) if any(one.kind == "patient" for one in columns) else (ITEM,)
            kept = tuple(one for one in columns if one.kind != "patient")
            fields = (*about, *(Field(one.name.lower(), _KEPT[one.kind]) for one in kept))
            kind: TableKind = item.kind if item.kind in ("events", "text") else "table"
            self._tables[table] = Shape(table.lower(), kind, fields), kept
        return self._tables[table]

    def _row(self, item: Item) -> Iterator[Record | str]:
        """Of a table that the layout does not describe nothing is kept."""
        shape, columns = self._table(str(item.labels["table"]), item)
        if not columns:
            return
        unit, emptied = item.unit, []
        values: dict[str, Any] = {"item": self.names.item(item.key), "split": item.split}
        values["group"] = None if unit is None else self.names.group(unit)
        for column in columns:
            if not (cell := str(item.meta.get(column.name, ""))):
                continue
            name = column.name.lower()
            if (made := self.cell(column, cell, unit)) is None:
                if shape.kind == "text" and name == "text":
                    yield DOUBTFUL
                    return
                emptied.append(name)
            values[name] = made
        yield Record(shape, values, tuple(emptied))

    def cell(self, column: Column, cell: str, unit: str | None, known: tuple[str, ...] = ()) -> Any:
        """What is kept of a cell that the layout checked; None for text in which rules doubt."""
        match column.kind:
            case "whole":
                return int(cell)
            case "number":
                return float(cell)
            case "time":
                moved = 0 if unit is None else self.names.days(unit)
                return datetime.fromisoformat(cell) - timedelta(days=moved)
            case "identifier":
                return self.names.identifier(column.name, cell)
            case _:
                return self.sieve.kept(cell, known, lenient=column.kind == "vocabulary")


_QUESTIONS = Shape("questions", "question", QUESTIONS, label="label")
_TEXTS = Shape("texts", "text", TEXTS)

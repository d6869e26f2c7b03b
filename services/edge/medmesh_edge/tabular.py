"""Taking in a table: a CSV file, of which only the columns that the hospital named are read, checked against a plan's schema."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medmesh.canonical import canonical
from medmesh.contracts.data import TableSchema
from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import pseudonym
from medmesh.learning.package import MANIFEST, read_manifest
from medmesh.learning.table import Columns, Row, read_columns, read_rows
from medmesh.security.keys import read_secret
from medmesh_edge import intake
from medmesh_edge.intake import Outcome, Prepared, Rows
from medmesh_edge.ports import Site

MEDIA_TYPE = "application/json"


def schema_of(path: Path) -> TableSchema:
    """The table that a training package is about, from its folder or its `medmesh.toml`. Raises `Problem`."""
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise Problem("package.no_manifest")
    manifest = read_manifest(file.read_text(encoding="utf-8", errors="replace"))
    if manifest.data.kind != "table":
        raise Problem("intake.columns", reason="the package is not about a table")
    return manifest.data


def rows_of(columns: Columns, schema: TableSchema, key: bytes) -> Rows:
    """How a table's file becomes rows, each with its label; one that does not fit is a `Problem` with the feature that is amiss."""

    def read(data: bytes) -> Iterator[tuple[Prepared, str] | Problem]:
        for row in read_rows(io.BytesIO(data), columns, schema):
            if isinstance(row, Problem):
                yield row
                continue
            yield _prepared(row, schema, key), row.label or ""
            for name, text in row.texts.items():
                place = f"{schema.table}\0{row.visit}\0{name}"
                yield intake.prepare_note(text, key, row.patient, name=name, place=place, known=row.known), row.label or ""

    return read


async def ingest(site: Site, source: Path, meaning: Path, schema: TableSchema, dataset: str, **options: Any) -> Outcome:
    """Take in every row that fits of a CSV file, or of each in a folder or archive beside what else lies there, with the options of
    `intake.ingest`; `meaning` is the hospital's own file about its columns. A row that is known already is replaced. Raises `Problem`
    (`intake.columns`, `intake.table`, `ethics.*`) before anything of the table was taken in."""
    columns = await asyncio.to_thread(read_columns, meaning, schema)
    rows = rows_of(columns, schema, read_secret(site.layout.site_key).strip())
    return await intake.ingest(site, source, dataset, rows=rows, **options)


def _prepared(row: Row, schema: TableSchema, key: bytes) -> Prepared:
    who = pseudonym(row.patient, key)
    # A row is known again by its patient and visit; the name tells neither.
    named = b"\0".join((b"row", schema.table.encode(), who.encode(), row.visit.encode()))
    item = hmac.new(key, named, hashlib.sha256).hexdigest()[:32]
    # Objects are named by their content: with the item in it, no two patients with equal values share one that only one key opens.
    return Prepared(item, who, schema.modality, canonical({"item": item, "values": dict(row.values)}), (), MEDIA_TYPE)

"""Taking in a table: a CSV file, of which only the columns that the hospital named are read, checked against a plan's schema."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path

from medmesh.canonical import canonical
from medmesh.contracts.data import TableSchema
from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import pseudonym
from medmesh.learning.package import MANIFEST, read_manifest
from medmesh.learning.table import Columns, read_columns, read_rows
from medmesh.security.keys import read_secret
from medmesh_edge.intake import BATCH, Label, Outcome, Prepared, finish, store
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


async def ingest(site: Site, source: Path, meaning: Path, schema: TableSchema, dataset: str, *, ethics: str = "") -> Outcome:
    """Take in every row that fits, under the approval `ethics`; `meaning` is the hospital's own file about its columns. Killed and started
    again, it goes on; a row that is known already is replaced. Raises `Problem` (`intake.columns`, `intake.table`, `ethics.*`) before
    anything was taken in."""
    key = read_secret(site.layout.site_key).strip()
    columns = await asyncio.to_thread(read_columns, meaning, schema)
    outcome = Outcome()
    prepared = await asyncio.to_thread(lambda: list(_prepared(source, columns, schema, key, outcome)))
    for start in range(0, len(prepared), BATCH):
        batch = prepared[start : start + BATCH]
        labels = {row.item: Label(label, "") for row, label in batch if label}
        await store(site, dataset, [(row.item, row) for row, _ in batch], labels, key, outcome, ethics=ethics)
    await finish(site, dataset, outcome, ethics=ethics)
    return outcome


def _prepared(source: Path, columns: Columns, schema: TableSchema, key: bytes, outcome: Outcome) -> Iterator[tuple[Prepared, str | None]]:
    for row in read_rows(source, columns, schema):
        if isinstance(row, Problem):
            outcome.rejected[row.code] += 1
            if feature := row.params.get("feature"):
                outcome.quality[str(feature)] += 1
            continue
        who = pseudonym(row.patient, key)
        # A row is known again by its patient and visit; the name tells neither.
        named = b"\0".join((b"row", schema.table.encode(), who.encode(), row.visit.encode()))
        item = hmac.new(key, named, hashlib.sha256).hexdigest()[:32]
        # Objects are named by their content: with the item in it, no two patients with equal values share one that only one key opens.
        stored = canonical({"item": item, "values": dict(row.values)})
        yield Prepared(item, who, schema.modality, stored, (), MEDIA_TYPE), row.label

"""The readable side of an export: every record once more as CSV, FHIR, OCSF or DICOM, and the check that it says what the evidence says.

What people read is the table, not the evidence beside it: whoever alters the table alone must be found out too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from medmesh.auditing import dicom, fhir, ocsf, sheet
from medmesh.errors import Problem

TABLES = {"csv": "records.csv", "fhir": "records.fhir.ndjson", "ocsf": "records.ocsf.ndjson"}
MESSAGES = "dicom"
"""Folder of one message a record (PS3.15 A.5.1)."""


def head(kind: str) -> bytes:
    """What a table begins with."""
    return sheet.head().encode() if kind == "csv" else b""


def line(kind: str, seq: int, record: dict[str, Any]) -> bytes:
    """A record in a table."""
    if kind == "csv":
        return sheet.line(seq, record).encode()
    document = fhir.audit_event(seq, record) if kind == "fhir" else ocsf.event(seq, record)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def message(folder: Path, seq: int) -> Path:
    """Where a record's DICOM message lies."""
    return folder / MESSAGES / f"{seq:012d}.xml"


def write(folder: Path, kind: str, records: Iterator[tuple[int, dict[str, Any]]] | list[tuple[int, dict[str, Any]]]) -> None:
    """Append records to the table of `kind`, or write their messages; `jsonl` has nothing beside the evidence."""
    if kind in TABLES:
        file = folder / TABLES[kind]
        with file.open("ab") as table:
            if not table.tell():
                table.write(head(kind))
            for seq, record in records:
                table.write(line(kind, seq, record))
    elif kind == "dicom":
        (folder / MESSAGES).mkdir(exist_ok=True)
        for seq, record in records:
            message(folder, seq).write_bytes(dicom.audit_message(seq, record))


def differs(folder: Path, records: Iterator[tuple[int, dict[str, Any]]]) -> Problem | None:
    """The first place where what people read is not what `records`, in their order, say (`audit.export_altered`)."""
    tables = {kind: (folder / name).open("rb") for kind, name in TABLES.items() if (folder / name).exists()}
    messages = set((folder / MESSAGES).iterdir()) if (folder / MESSAGES).is_dir() else None
    try:
        for kind, table in tables.items():
            if table.read(len(head(kind))) != head(kind):
                return Problem("audit.export_altered", file=TABLES[kind], seq=-1)
        for seq, record in records:
            for kind, table in tables.items():
                if not _next(table, line(kind, seq, record)):
                    return Problem("audit.export_altered", file=TABLES[kind], seq=seq)
            if messages is not None:
                file = message(folder, seq)
                if file not in messages or file.read_bytes() != dicom.audit_message(seq, record):
                    return Problem("audit.export_altered", file=f"{MESSAGES}/{file.name}", seq=seq)
                messages.remove(file)
        longer = [TABLES[kind] for kind, table in tables.items() if table.read(1)]
        more = [*longer, *(f"{MESSAGES}/{file.name}" for file in sorted(messages or ()))]
        return Problem("audit.export_altered", file=more[0], seq=-1) if more else None
    finally:
        for table in tables.values():
            table.close()


def _next(table: BinaryIO, wanted: bytes) -> bool:
    return table.read(len(wanted)) == wanted

"""The audit record in its final form: canonical JSON shaped after FHIR AuditEvent and DICOM PS3.15 A.5 audit codes.

`v` version · `id` UUIDv7 · `t` when it happened · `tr` when it was recorded · `src` emitter · `type` coding · `sub` our verb ·
`act` C R U D E · `out` 0 4 8 12 · `why` problem code · `agents` who · `pou` purpose of use · `entities` what, with digests ·
`approval` the approval spent · `ctx` trace and correlation · `detail` small facts · `prev` the emitter's previous record ·
`n` the emitter's own counter, whose gaps reveal a loss before the log. No floats, no direct identifiers.
"""

from __future__ import annotations

from typing import Any

from medmesh.canonical import canonical, read
from medmesh.errors import Problem

FIELDS = frozenset(
    ("v", "id", "t", "tr", "src", "type", "sub", "act", "out", "why", "agents", "pou", "entities", "approval", "ctx", "detail", "prev", "n")
)
MAX_BYTES = 16_384


def record_bytes(document: dict[str, Any]) -> bytes:
    """The canonical bytes of a record. Raises `ValueError` for a field that is missing or unknown, or a record too large."""
    if set(document) != FIELDS:
        raise ValueError(f"an audit record has exactly its fields: {sorted(FIELDS ^ set(document))}")
    body = canonical(document)
    if len(body) > MAX_BYTES:
        raise ValueError(f"an audit record has at most {MAX_BYTES} bytes")
    return body


def read_record(body: bytes) -> dict[str, Any]:
    """The document in canonical bytes. Raises `Problem` (`ledger.record`) for anything that is not its own canonical form."""
    try:
        document = read(body)
    except (ValueError, RecursionError) as error:
        raise Problem("ledger.record", reason=str(error)) from None
    if not isinstance(document, dict):
        raise Problem("ledger.record", reason="not an object")
    if document.keys() != FIELDS or len(body) > MAX_BYTES:
        raise Problem("ledger.record", reason=f"it has exactly its fields and at most {MAX_BYTES} bytes")
    return document

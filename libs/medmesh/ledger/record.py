"""The audit record in its final form: canonical JSON shaped after FHIR AuditEvent and DICOM PS3.15 A.5 audit codes.

`v` version · `id` UUIDv7 · `t` when it happened · `tr` when it was recorded · `src` emitter · `type` DICOM event id and type code ·
`sub` our verb · `act` C R U D E · `out` 0 4 8 12 · `why` problem code · `agents` who · `pou` HL7 v3 purpose of use · `entities` what,
with digests · `orgs` whose it is: who may read it beside the platform's auditors · `policy` the access decision, its rules and the
digest of the table that decided · `approval` the approval spent · `ctx` trace and correlation · `detail` small facts · `prev` the
emitter's previous record · `n` the emitter's own counter, whose gaps reveal a loss before the log. No floats, no direct identifiers.
"""

from __future__ import annotations

import json
from typing import Any

from medmesh.canonical import canonical
from medmesh.errors import Problem

VERSION = 2
FIELDS = frozenset(
    (
        *("v", "id", "t", "tr", "src", "type", "sub", "act", "out", "why", "agents", "pou", "entities", "orgs", "policy"),
        *("approval", "ctx", "detail", "prev", "n"),
    )
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
        document: dict[str, Any] = json.loads(body)
        if record_bytes(document) != body:
            raise ValueError("not in canonical form")
    except (ValueError, TypeError, AttributeError) as error:
        raise Problem("ledger.record", reason=str(error) if isinstance(error, ValueError) else "not an object") from None
    return document

"""The audit record in its final form: canonical JSON shaped after FHIR AuditEvent and DICOM PS3.15 A.5 audit codes.

`v` version · `id` UUIDv7 · `t` when it happened · `tr` when it was recorded · `src` emitter · `type` DICOM event id and type code ·
`sub` our verb · `act` C R U D E · `out` 0 4 8 12 · `why` problem code · `agents` who · `pou` HL7 v3 purpose of use · `entities` what,
with digests · `orgs` whose it is: who may read it beside the platform's auditors · `policy` the access decision, its rules and the
digest of the table that decided · `approval` the approval spent · `ctx` trace and correlation · `detail` small facts · `prev` the
emitter's previous record · `n` the emitter's own counter, whose gaps reveal a loss before the log. No floats, no direct identifiers.
"""

from __future__ import annotations

import json
import re
from typing import Any

from medmesh.canonical import canonical, read
from medmesh.errors import Problem

VERSION = 2
MAX_BYTES = 16_384

_TEXT, _WHOLE, _BOOL = r'"[^"\\\x00-\x1f]*+"', r"(?:0|-?[1-9]\d{0,14})", r"(?:true|false)"
_SCALAR = f"(?:{_TEXT}|{_WHOLE}|{_BOOL})"
_FREE = rf"\{{(?:{_TEXT}:(?:{_SCALAR}|\[(?:{_TEXT}(?:,{_TEXT})*)?\])(?:,{_TEXT}:(?:{_SCALAR}|\[(?:{_TEXT}(?:,{_TEXT})*)?\]))*)?\}}"
_INSTANT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


def _said(name: str) -> str:
    return f'"(?P<{name}>{_TEXT[1:-1]})"'


_FORM: dict[str, Any] = {
    "act": r'"[CRUDE]"', "agents": ("agents", [{"method": _TEXT, "org": _TEXT, "req": _BOOL, "role": _TEXT, "who": _TEXT}]),
    "approval": ("approval", _FREE), "ctx": {"correlation": _said("correlation"), "request": _TEXT, "trace": _TEXT},
    "detail": ("detail", _FREE), "entities": ("entities", [{"digest": _TEXT, "id": _TEXT, "type": _TEXT, "ver": _TEXT}]),
    "id": _said("id"), "n": ("n", _WHOLE), "orgs": ("orgs", [_TEXT]), "out": ("out", "(?:0|4|8|12)"),
    "policy": {"bundle": _TEXT, "decision": _TEXT, "rules": [_TEXT]}, "pou": _said("pou"), "prev": _TEXT,
    "src": {"instance": _TEXT, "node": _TEXT, "org": _TEXT, "service": _said("service"), "ver": _TEXT}, "sub": _said("sub"),
    "t": f"\"(?P<t>{_INSTANT})\"", "tr": f"\"(?P<tr>{_INSTANT})\"",
    "type": ("type", {"code": _TEXT, "subcode": _TEXT, "subsystem": _TEXT, "system": _TEXT}), "v": str(VERSION), "why": _TEXT,
}  # fmt: skip
"""Each part: a regular expression, an object, a list of one kind, or (name, part) for what is read by that name."""
FIELDS = frozenset(_FORM)


def _pattern(form: Any) -> str:
    if isinstance(form, dict):
        return r"\{" + ",".join(f'"{name}":{_pattern(form[name])}' for name in sorted(form)) + r"\}"
    if isinstance(form, tuple):
        return f"(?P<{form[0]}>{_pattern(form[1])})"
    if isinstance(form, list):
        one = _pattern(form[0])
        return rf"\[(?:{one}(?:,{one})*)?\]"
    return str(form)


_LAYOUT = re.compile(_pattern(_FORM), re.ASCII).fullmatch
_NAMES = re.compile(r'"([^"]*)":').findall


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
    if _plain(body) is not None:  # nothing in it could be spelled another way: parsing it is enough
        return dict(json.loads(body))
    try:
        document = read(body)
    except ValueError as error:
        raise Problem("ledger.record", reason=str(error)) from None
    if not isinstance(document, dict):
        raise Problem("ledger.record", reason="not an object")
    if document.keys() != FIELDS or len(body) > MAX_BYTES:
        raise Problem("ledger.record", reason=f"it has exactly its fields and at most {MAX_BYTES} bytes")
    return document


def parts(body: bytes) -> dict[str, str] | None:
    """Parts of a record, each as it is spelled, texts without their quotation marks: `agents`, `approval`, `correlation`, `detail`,
    `entities`, `id`, `n`, `orgs`, `out`, `pou`, `service`, `sub`, `t`, `tr` and `type`. All parts are of the right type. None for what
    has escapes or another layout, and may be a record all the same: `read_record` tells."""
    found = _plain(body)
    return None if found is None else found.groupdict()


def outline(body: bytes) -> tuple[int, str, str, str]:
    """(n, service, t, tr) of canonical bytes: `read_record` for a verifier in a hurry. Raises `Problem` (`ledger.record`).

    One pass of a regular expression made from the form reads and checks a record in a third of the time of parsing and writing it
    again. What it does not match, for instance texts with escapes, goes the long way.
    """
    if (found := _plain(body)) is not None:
        n, service, t, tr = found.group("n", "service", "t", "tr")
        return int(n), service, t, tr
    record = read_record(body)
    try:
        return int(record["n"]), str(record["src"]["service"]), str(record["t"]), str(record["tr"])
    except (TypeError, KeyError, ValueError):
        raise Problem("ledger.record", reason="not of the form") from None


def _plain(body: bytes) -> re.Match[str] | None:
    """The match of a record in its form and canonical spelling; None says nothing."""
    try:
        found = _LAYOUT(body.decode())
    except UnicodeDecodeError:
        return None
    if found is None or len(body) > MAX_BYTES:
        return None
    approval, detail = found.group("approval", "detail")
    return found if (approval == "{}" or _ordered(approval)) and (detail == "{}" or _ordered(detail)) else None


def _ordered(part: str) -> bool:
    """Whether the names in a flat object stand in their one order; its texts have no quotation marks."""
    names = _NAMES(part)
    return len(names) < 2 or names == sorted(set(names))

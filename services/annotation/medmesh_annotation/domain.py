"""The documents annotation reads and writes, as functions of values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import StringConstraints, ValidationError

from medmesh.canonical import canonical, digest
from medmesh.contracts.message import ObjectRef, Record
from medmesh.errors import Problem

MAX_PURPOSE = 500
ItemId = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]


class ContentItem(Record):
    """One item of a data set version. A label that came with the data is never shown to its reader."""

    item: ItemId
    object: ObjectRef
    label: str | None


class Content(Record):
    """The content of a data set version, as `ingestion.dataset.version-created.v1` names it."""

    items: tuple[ContentItem, ...]


def read_content(data: bytes) -> tuple[ContentItem, ...]:
    """The items of a content document: canonical JSON `{"items":[{"item","object":{"sha256","bytes","media_type"},"label"}]}`.

    Raises `Problem` (`annotation.content_malformed`), which names the places at fault but never their values.
    """
    try:
        # Compared whole: a document with a key twice, or in another spelling, means different things to different readers.
        is_canonical = canonical(json.loads(data)) == data
    except (ValueError, RecursionError):
        is_canonical = False
    if not is_canonical:
        raise Problem("annotation.content_malformed", where="it is not canonical JSON")
    try:
        items = Content.model_validate_json(data, strict=True, extra="ignore").items
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False, include_context=False)[:5]
        where = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['type']}" for fault in faults)
        raise Problem("annotation.content_malformed", where=where) from None
    if not items:
        raise Problem("annotation.content_malformed", where="it has no items")
    if len({item.item for item in items}) < len(items):
        raise Problem("annotation.content_malformed", where="an item stands in it twice")
    return items


def labels_document(
    *, project: str, dataset: str, version: int, content: str, classes: Sequence[str], accepted: Iterable[tuple[str, dict[str, Any], str]]
) -> bytes:
    """The exported labels as canonical JSON: the shape of a content document, with what they were made from.

    `accepted` gives (item, object reference, label); the items stand in the order of their ids, so that equal labels are equal
    bytes. Nobody's name is in it: who labelled and who reviewed stands in the audit log.
    """
    return canonical(
        {
            "project": project,
            "dataset": dataset,
            "version": version,
            "content": content,
            "classes": list(classes),
            "items": [{"item": item, "object": dict(ref), "label": label} for item, ref, label in sorted(accepted, key=lambda a: a[0])],
        }
    )


def export_digest(project: str, version: int, labels: str) -> str:
    """What the approval of an export is bound to: this version, and every label in it; it does not tell the object's name."""
    return digest({"project": project, "version": version, "labels": labels})


def check_project(version: int, purpose: str) -> None:
    """Refuse what no project can stand on. Raises `Problem` (`request.invalid`)."""
    if not 1 <= version < 2**31:
        raise Problem("request.invalid", reason="version: it counts from 1")
    if not (1 <= len(purpose) <= MAX_PURPOSE and purpose.isprintable() and purpose.strip()):
        raise Problem("request.invalid", reason=f"purpose: one line of 1 to {MAX_PURPOSE} characters")

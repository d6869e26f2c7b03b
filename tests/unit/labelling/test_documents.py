"""The documents annotation reads and writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from medmesh.canonical import canonical
from medmesh.errors import Problem
from medmesh_annotation.domain import labels_document, read_content

REF = {"sha256": "a" * 64, "bytes": 3, "media_type": "image/png"}


def _item(name: str = "i-1", **changed: Any) -> dict[str, Any]:
    return {"item": name, "object": REF, "label": None} | changed


def test_a_content_document_is_read_in_its_order_and_may_hold_what_a_later_version_adds() -> None:
    document = {"items": [_item("b", label="normal"), _item("a", study="s-1")], "format": 2}
    found = read_content(canonical(document))
    assert [(item.item, item.label, item.object.bytes) for item in found] == [("b", "normal", 3), ("a", None, 3)]


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "canonical"),
        (b"\xff\xfe", "canonical"),
        (b"[" * 100_000, "canonical"),
        (json.dumps({"items": [_item()]}).encode(), "canonical"),
        (b'{"items":[],"items":[' + canonical(_item()) + b"]}", "canonical"),
        (canonical([]), "model"),
        (canonical({}), "items: missing"),
        (canonical({"items": []}), "no items"),
        (canonical({"items": [_item(), _item()]}), "twice"),
        (canonical({"items": [_item(), _item("")]}), "items.1.item"),
        (canonical({"items": [_item("x" * 129)]}), "items.0.item"),
        (canonical({"items": [_item("a\x00")]}), "items.0.item"),
        (canonical({"items": [_item(label=3)]}), "items.0.label"),
        (canonical({"items": [{"item": "i", "object": REF}]}), "items.0.label: missing"),
        (canonical({"items": [_item(object=REF | {"sha256": "A" * 64})]}), "items.0.object.sha256"),
        (canonical({"items": [_item(object=REF | {"bytes": "3"})]}), "items.0.object.bytes"),
        (canonical({"items": [_item(object=REF | {"bytes": -1})]}), "items.0.object.bytes"),
    ],
)
def test_a_malformed_content_is_refused_with_the_place_at_fault(data: bytes, where: str) -> None:
    with pytest.raises(Problem) as caught:
        read_content(data)
    assert caught.value.code == "annotation.content_malformed"
    assert where in caught.value.detail()


def test_a_refusal_never_repeats_a_value_of_the_document() -> None:
    with pytest.raises(Problem) as caught:
        read_content(canonical({"items": [_item("Zhang San\x00", label=19630405)]}))
    told = json.dumps(caught.value.document())
    assert "Zhang" not in told
    assert "1963" not in told


def test_equal_labels_are_equal_bytes_and_readable_as_content() -> None:
    made = {"project": "p", "dataset": "d", "version": 1, "content": "c" * 64, "classes": ["x", "y"]}
    accepted = [("b", REF, "x"), ("a", REF, "y")]
    document = labels_document(**made, accepted=accepted)  # type: ignore[arg-type]
    assert document == labels_document(**made, accepted=reversed(accepted))  # type: ignore[arg-type]
    assert [(item.item, item.label) for item in read_content(document)] == [("a", "y"), ("b", "x")]
    assert json.loads(document)["classes"] == ["x", "y"]

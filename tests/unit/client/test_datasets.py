"""What a person is told of two versions of a data set."""

from __future__ import annotations

from typing import Any

from medmesh.client.datasets import difference


def item(name: str, label: str | None = None, split: str | None = None, sha256: str = "0") -> dict[str, Any]:
    made = {"item": name, "object": {"sha256": sha256}, "label": label}
    return made if split is None else made | {"split": split}


def test_every_item_is_accounted_for() -> None:
    before = {"items": [item("a", "x"), item("b", "x"), item("c", "y", "train"), item("d"), item("e", "x", "val")]}
    after = {"items": [item("a", "x"), item("b", "y", "test"), item("c", "y", "test"), item("d", sha256="1"), item("f")]}
    found = difference(before, after).document(items=True)
    assert found == {
        "added": 1,
        "removed": 1,
        "content": 1,
        "relabelled": [{"from": "x", "to": "y", "items": 1}],
        "moved": [{"from": None, "to": "test", "items": 1}, {"from": "train", "to": "test", "items": 1}],
        "same": 1,
        "items": {"added": ["f"], "removed": ["e"], "content": ["d"], "relabelled": ["b"], "moved": ["b", "c"]},
    }
    assert "items" not in difference(before, after).document()
    assert difference(before, before).document()["same"] == 5

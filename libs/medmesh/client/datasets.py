"""Versions of data sets side by side: what their content documents say, item by item."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmesh.canonical import parse
from medmesh.client.gateway import Gateway
from medmesh.client.transfer import download
from medmesh.contracts.message import ObjectRef


@dataclass(frozen=True, slots=True)
class Difference:
    """Items by what happened to them from one version to another; an item may be in more than one of the last four."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    content: tuple[str, ...]
    """With other bytes."""
    relabelled: Mapping[str, tuple[str | None, str | None]]
    moved: Mapping[str, tuple[str | None, str | None]]
    """To another split."""
    same: int

    def document(self, *, items: bool = False) -> dict[str, Any]:
        """Counts, of labels and splits by (before, after); with `items` also which."""
        made: dict[str, Any] = {name: len(getattr(self, name)) for name in ("added", "removed", "content")}
        for name, changes in (("relabelled", self.relabelled), ("moved", self.moved)):
            counts = Counter(changes.values())
            ordered = sorted(counts.items(), key=lambda one: (-one[1], *(part or "" for part in one[0])))
            made[name] = [{"from": before, "to": after, "items": count} for (before, after), count in ordered]
        made["same"] = self.same
        if items:
            made["items"] = {name: sorted(getattr(self, name)) for name in ("added", "removed", "content", "relabelled", "moved")}
        return made


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Difference:
    """Between two content documents."""
    old, new = ({one["item"]: one for one in document["items"]} for document in (before, after))
    both = sorted(old.keys() & new.keys())
    changed = tuple(item for item in both if old[item]["object"]["sha256"] != new[item]["object"]["sha256"])
    relabelled = {item: (old[item]["label"], new[item]["label"]) for item in both if old[item]["label"] != new[item]["label"]}
    moved = {item: (old[item].get("split"), new[item].get("split")) for item in both if old[item].get("split") != new[item].get("split")}
    same = len(both) - len({*changed, *relabelled, *moved})
    return Difference(tuple(sorted(new.keys() - old.keys())), tuple(sorted(old.keys() - new.keys())), changed, relabelled, moved, same)


async def content(gateway: Gateway, dataset: str, version: int) -> dict[str, Any]:
    """The content document of a version that one may see. Raises `Problem`."""
    found = await gateway.request("GET", f"/v1/datasets/{dataset}", query={"version": version})
    with tempfile.TemporaryDirectory(prefix="medmesh-") as place:
        path = await download(gateway, ObjectRef.model_validate(found["content"]), Path(place) / "content")
        document: dict[str, Any] = parse(path.read_bytes())
    return document

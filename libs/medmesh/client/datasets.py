"""Versions of data sets side by side: what their content documents say, item by item."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmesh.canonical import parse
from medmesh.client.gateway import Gateway
from medmesh.client.transfer import download
from medmesh.contracts.message import ObjectRef

ENDINGS = {
    "application/dicom": ".dcm", "image/png": ".png", "image/jpeg": ".jpg", "application/x-nifti": ".nii.gz", "application/x-npy": ".npy",
    "application/zip": ".zip",
}  # fmt: skip
_AT_ONCE = 4


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
    tables: Mapping[str, Mapping[str, Any]]
    """What became of each table that is not the same: rows, and rows by split."""

    def document(self, *, items: bool = False) -> dict[str, Any]:
        """Counts, of labels and splits by (before, after); with `items` also which."""
        made: dict[str, Any] = {name: len(getattr(self, name)) for name in ("added", "removed", "content")}
        for name, changes in (("relabelled", self.relabelled), ("moved", self.moved)):
            counts = Counter(changes.values())
            ordered = sorted(counts.items(), key=lambda one: (-one[1], *(part or "" for part in one[0])))
            made[name] = [{"from": before, "to": after, "items": count} for (before, after), count in ordered]
        made["same"] = self.same
        if self.tables:
            made["tables"] = dict(self.tables)
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
    gone, tables = tuple(sorted(old.keys() - new.keys())), _tables(before, after)
    return Difference(tuple(sorted(new.keys() - old.keys())), gone, changed, relabelled, moved, same, tables)


def _tables(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    old, new = ({one["name"]: one for one in document.get("tables", ())} for document in (before, after))
    made = {}
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was is not None and now is not None and was["parts"] == now["parts"]:
            continue
        nothing = {"rows": 0, "splits": {}}
        told = {part: {"from": (was or nothing)[part], "to": (now or nothing)[part]} for part in ("rows", "splits")}
        made[name] = {"is": "gone" if now is None else "new" if was is None else "changed", **told}
    return made


@dataclass(frozen=True, slots=True)
class Saved:
    """A file of a version, by its path in the folder that it is saved to."""

    path: str
    object: ObjectRef


def files_of(document: Mapping[str, Any]) -> list[Saved]:
    """What a content document names: `items/ITEM.dcm`, of several files with their roles; `tables/NAME/0000.parquet`, or the files of a
    whole that has a form of its own (MEDS)."""
    made = []
    for item in document["items"]:
        for number, file in enumerate(item.get("files") or [{"object": item["object"]}]):
            ref = ObjectRef.model_validate(file["object"])
            role = f"-{number}-{file['role']}" if "role" in file else ""
            made.append(Saved(f"items/{item['item']}{role}{ENDINGS.get(ref.media_type, '')}", ref))
    made += [Saved(file["path"], ObjectRef.model_validate(file["object"])) for file in document.get("files", ())]
    folders: Counter[str] = Counter()
    for table in () if "files" in document else document.get("tables", ()):
        folder = _plain(table["name"])
        folders[folder] += 1
        folder += f"-{folders[folder]}" if folders[folder] > 1 else ""
        for number, part in enumerate(table["parts"]):
            ref = ObjectRef.model_validate(part["object"])
            made.append(Saved(f"tables/{folder}/{number:04}.parquet", ref))
    return made


def _plain(name: str) -> str:
    """A table's name as that of a folder."""
    return "".join(one if one.isalnum() or one in "-_." else "_" for one in name).lstrip(".") or "_"


async def save(gateway: Gateway, document: Mapping[str, Any], folder: Path, progress: Callable[[int], None]) -> int:
    """Fetch every file of a version into `folder`, which may hold some of them from before; `progress` is told the bytes done. Answers how
    many files there are. Raises `Problem`."""
    files, done, guard = files_of(document), 0, asyncio.Semaphore(_AT_ONCE)

    async def fetch(file: Saved) -> None:
        nonlocal done
        async with guard:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            await download(gateway, file.object, target)
        done += file.object.bytes
        progress(done)

    async with asyncio.TaskGroup() as group:
        for file in files:
            group.create_task(fetch(file))
    return len(files)


async def content(gateway: Gateway, dataset: str, version: int) -> dict[str, Any]:
    """The content document of a version that one may see. Raises `Problem`."""
    found = await gateway.request("GET", f"/v1/datasets/{dataset}", query={"version": version})
    with tempfile.TemporaryDirectory(prefix="medmesh-") as place:
        path = await download(gateway, ObjectRef.model_validate(found["content"]), Path(place) / "content")
        document: dict[str, Any] = parse(path.read_bytes())
    return document

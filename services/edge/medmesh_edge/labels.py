"""`labels.csv`: what the hospital says of its files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

from medmesh.errors import Problem
from medmesh.importing.port import Source

LABELS = "labels.csv"
_LARGEST = 64 << 20
_SUBJECT = re.compile(r"(?:^|/)sub-([0-9A-Za-z]+)(?=[/_])")  # BIDS 1.10, "Subjects"


@dataclass(frozen=True, slots=True)
class Label:
    """A row of `labels.csv`; `split` is "train", "test" or empty for the node to decide. `patient` and `modality` are of files that do not
    say them."""

    label: str
    split: str
    patient: str = ""
    modality: str = ""
    known: tuple[str, ...] = ()
    """The patient's names, to be found in notes; kept nowhere."""


def read_labels(source: Source) -> dict[str, Label]:
    """What `labels.csv` says, if there is one. Raises `Problem` (`intake.labels`, `intake.labels_missing`)."""
    if LABELS not in source.names:
        return {}
    if source.size(LABELS) > _LARGEST:
        raise Problem("intake.labels", row=1, reason="the file is too large")
    with source.open(LABELS) as file:
        labels = _read(file.read())
    there = {*source.names, *(name.rpartition("/")[2] for name in source.names)}
    if missing := set(labels) - there:
        raise Problem("intake.labels_missing", count=len(missing))
    return labels


def label_of(name: str, labels: Mapping[str, Label]) -> Label | None:
    """By its path, else by its name."""
    return labels.get(name) or labels.get(name.rpartition("/")[2])


def subject_of(name: str) -> str:
    """Whose a file is by its path, as BIDS names folders; empty where it does not."""
    found = _SUBJECT.search(name)
    return found[1] if found else ""


def _read(data: bytes) -> dict[str, Label]:
    """`file,label[,split][,patient][,modality][,name]` by file: its name, or its path within the folder. A label may be empty where the
    row says whose the file is. Raises `Problem` (`intake.labels`) with the row's number and nothing of its content."""
    labels: dict[str, Label] = {}
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        columns = set(reader.fieldnames or [])
        if "file" not in columns or not {"label", "patient"} & columns:
            raise Problem("intake.labels", row=1, reason="the columns file and label are needed")
        for number, row in enumerate(reader, start=2):
            name = row["file"]
            label, split, patient, modality = ((row.get(one) or "").strip() for one in ("label", "split", "patient", "modality"))
            if not name or not (label or patient) or split not in ("", "train", "test"):
                raise Problem("intake.labels", row=number, reason="a file, a label, and train, test or nothing as split")
            if modality and not re.fullmatch("[A-Z][A-Z0-9]{0,15}", modality):
                raise Problem("intake.labels", row=number, reason="a modality is a DICOM term, such as MR, ECG or EEG")
            if name in labels:
                raise Problem("intake.labels", row=number, reason="the file has a label already")
            known = tuple(one for one in (row.get("name") or "").split(";") if one.strip())
            labels[name] = Label(label, split, patient, modality, known)
    except (UnicodeDecodeError, csv.Error):
        raise Problem("intake.labels", row=0, reason="not a UTF-8 CSV file") from None
    return labels

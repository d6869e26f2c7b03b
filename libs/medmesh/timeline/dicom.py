"""DICOM objects as events: a study is one event, `DICOM//CT//STUDY`, that points at the study by its de-identified instance UID.

Only headers are read. What a study is of is the modality of its images: reports, presentation states and segmentations about them do not
count, unless there is nothing else.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from medmesh.errors import Problem
from medmesh.importing.port import Source
from medmesh.timeline.codes import word
from medmesh.timeline.events import Draft, Identity, parse_compact
from medmesh.timeline.reading import Place, Reading, start

NAME = "dicom"
ABOUT = frozenset(("SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "AU"))
_TAGS = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "IssuerOfPatientID", "Modality", "StudyDate", "StudyTime",
    "SeriesDate", "AcquisitionDate", "ContentDate",
)  # fmt: skip
_LARGEST_HEADER = 4 << 20


@dataclass
class _Study:
    identity: Identity
    place: Place
    date: str = ""
    time: str = ""
    modalities: Counter[str] = field(default_factory=Counter)


def sniff(source: Source) -> float:
    """By the four letters behind the preamble (PS3.10 §7.1)."""
    return 0.8 if any(start(source, name, 132)[128:] == b"DICM" for name in source.names[:10]) else 0.0


def read(source: Source, reading: Reading) -> Iterator[Draft]:
    """Every study, once its objects were all seen: a study's objects may lie anywhere. What is no DICOM file is left out, by number."""
    studies: dict[str, _Study] = {}
    torn: set[str] = set()
    for name in source.names:
        place = Place(name)
        header = _header(source, place, reading)
        if header is None:
            continue
        uid, patient = header["StudyInstanceUID"], header["PatientID"]
        if not uid:
            place.error(reading.report, "timeline.no_study")
            continue
        if not patient:
            place.error(reading.report, "timeline.no_patient")
            continue
        who = Identity(header["IssuerOfPatientID"], patient)
        study = studies.setdefault(uid, _Study(who, place))
        if study.identity != who:
            place.error(reading.report, "timeline.two_patients")
            torn.add(uid)
            continue
        study.modalities[header["Modality"] or "OT"] += 1
        if not study.date:
            study.date = next((header[tag] for tag in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate") if header[tag]), "")
            study.time = header["StudyTime"] if header["StudyDate"] else ""
    for uid, study in studies.items():
        if uid not in torn:
            yield from _event(uid, study, reading)


def _event(uid: str, study: _Study, reading: Reading) -> Iterator[Draft]:
    date = study.date.replace(".", "")[:8]
    if not date:
        study.place.error(reading.report, "timeline.no_time")
        return
    clock = study.time.replace(":", "").strip()
    at, precision = reading.parsed(date + clock, study.place, "StudyDate", parse_compact)
    if at is None:
        return
    kinds = sorted({one for one in study.modalities if one not in ABOUT} or set(study.modalities))
    count = float(study.modalities.total())
    code = f"DICOM//{word('+'.join(kinds))}//STUDY"
    yield Draft(
        study.identity,
        NAME,
        uid,
        code,
        at,
        precision,
        numeric=count,
        unit="{instances}",
        code_system="DCM",
        modality="imaging",
        study_uid=uid,
    )


def _header(source: Source, place: Place, reading: Reading) -> dict[str, str] | None:
    """Values that are there, as text; None for what is no DICOM file or cannot be read."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        with source.open(place.file) as file:
            head = file.read(_LARGEST_HEADER)
        found = dcmread(io.BytesIO(head), stop_before_pixels=True, specific_tags=list(_TAGS))
        return {tag: _text(found.get(tag)) for tag in _TAGS}
    except InvalidDicomError:
        reading.left_out["not DICOM"] += 1
    except (Problem, OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError):
        # pydicom raises whatever a damaged header makes it stumble over, and only once a value is looked at.
        place.error(reading.report, "timeline.bad_header")
    return None


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    return text.strip().strip("\0").strip()

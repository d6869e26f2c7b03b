"""DICOM (PS3.10), by the platform's own reader. Cleaning needs the hospital's key and is de-identification, not a matter of format."""

from __future__ import annotations

from typing import Any, BinaryIO

from medmesh.errors import Problem
from medmesh.importing.formats.content import Content, Format, bounded, damaged, unsupported

_DIRECTORY = "1.2.840.10008.1.3.10"
IDENTITY = ("DICOM",)


def describe(file: BinaryIO, size: int) -> Content:
    """The object's kind and geometry; a DICOMDIR names its files in `meta["refers"]`."""
    from medmesh.imaging.reading import parse

    try:
        found = parse(file.read(bounded(size, "the file")))
    except Problem as problem:
        raise damaged("the data set", str(problem.params.get("reason", "it is no DICOM file"))) from None
    if str(found.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
        return Content("table", {"directory": True, "refers": sorted(_referred(found))}, (("DICOM", ""),))
    meta: dict[str, Any] = {"modality": str(found.get("Modality") or ""), "sop_class": str(found.get("SOPClassUID") or "")}
    for name, keyword in (("rows", "Rows"), ("columns", "Columns"), ("frames", "NumberOfFrames")):
        if isinstance(number := found.get(keyword), int):
            meta[name] = int(number)
    kind = (
        "signal"
        if "WaveformSequence" in found
        else "text"
        if meta["modality"] == "SR"
        else "volume"
        if meta.get("frames", 1) > 1
        else "image"
    )
    return Content(kind, meta, (("DICOM", ""),))


def clean(data: bytes) -> bytes:
    """Refused: see the module."""
    raise unsupported("DICOM outside de-identification; give it to `medmesh edge ingest`")


def _referred(found: Any) -> set[str]:
    names = set()
    for record in found.get("DirectoryRecordSequence") or ():
        value = record.get("ReferencedFileID")
        if value:
            names.add(value if isinstance(value, str) else "/".join(map(str, value)))
    return names


def _matches(start: bytes) -> bool:
    """The magic; or, as older systems wrote, no preamble: an element of group 0002 or 0008, with a VR or a short length."""
    if start[128:132] == b"DICM":
        return True
    if start[:2] not in (b"\x02\x00", b"\x08\x00") or len(start) < 132:
        return False
    return (start[4:6].isalpha() and start[4:6].isupper()) or (start[3] == 0 and start[5:8] == bytes(3))


DICOM = Format("dicom", "application/dicom", (".dcm", ".dicom", ".ima"), _matches, describe, clean, bytes)

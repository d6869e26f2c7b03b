"""Croissant 1.0 metadata of a MEDS data set (https://docs.mlcommons.org/croissant/docs/croissant-spec.html): JSON-LD that says what the
files are, with their hashes, and what the columns mean."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medmesh.timeline.export import Exported

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_PARQUET = "application/x-parquet"
_EVENTS = {
    "subject_id": ("sc:Integer", "the patient, under a pseudonym"),
    "time": ("sc:DateTime", "when, on the patient's shifted axis; empty for what is static"),
    "code": ("sc:Text", "what: KIND//SYSTEM//CODE"),
    "numeric_value": ("sc:Float", "its value as a number"),
    "text_value": ("sc:Text", "its value as text, where texts were exported"),
    "unit": ("sc:Text", "the unit of the number"),
    "modality": ("sc:Text", "what kind of data it is"),
}
_SPLITS = {"subject_id": ("sc:Integer", "the patient, under a pseudonym"), "split": ("sc:Text", "train, tuning or held_out")}
_CODES = {"code": ("sc:Text", "as in the events"), "description": ("sc:Text", "in words")}


def describe(done: Exported, release: str, licence: str | None) -> dict[str, Any]:
    """The document."""
    distribution, sets = [], []
    shards = []
    for name, (sha256, size) in sorted(done.files.items()):
        kind = _PARQUET if name.endswith(".parquet") else "application/json"
        distribution.append(
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "encodingFormat": kind,
                "contentSize": f"{size} B",
                "sha256": sha256,
            }
        )
        if name.startswith("data/"):
            shards.append(name)
    for place, name in enumerate(shards):
        sets.append(_records("events" if len(shards) == 1 else f"events-{place}", name, _EVENTS))
    sets += [_records("subject_splits", "metadata/subject_splits.parquet", _SPLITS), _records("codes", "metadata/codes.parquet", _CODES)]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": done.name,
        "description": f"{done.events} events of {done.subjects} patients in order of time, in the form of MEDS 0.4.",
        "version": f"{release}.0.0" if release.isdecimal() else release,
        "datePublished": datetime.now(UTC).date().isoformat(),
        "license": licence or "not released: for the use that was approved",
        "url": f"urn:medmesh:dataset:{done.name}",
        "distribution": distribution,
        "recordSet": sets,
    }


def _records(name: str, file: str, fields: dict[str, tuple[str, str]]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{column}",
                "name": f"{name}/{column}",
                "description": meaning,
                "dataType": kind,
                "source": {"fileObject": {"@id": file}, "extract": {"column": column}},
            }
            for column, (kind, meaning) in fields.items()
        ],
    }

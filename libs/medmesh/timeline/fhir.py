"""FHIR R4: bundles and single resources as JSON, and NDJSON as bulk exports write it. Tolerant: what is there is taken, the rest is left.

https://hl7.org/fhir/R4. What R5 spells otherwise (an encounter's class, a procedure's occurrence) is read as well. A condition counts from
when it was recorded, where that is said: before, nobody could know it from the record.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from medmesh.canonical import parse
from medmesh.importing.port import Source
from medmesh.timeline.codes import coded, system, word
from medmesh.timeline.events import BIRTH, DEATH, Draft, Identity, Merge, parse_time
from medmesh.timeline.reading import LARGEST_FLOAT32, Place, Reading, lines, opened, start

NAME = "fhir"
LARGEST_BUNDLE = 256 << 20
_WRONG = frozenset(("entered-in-error", "cancelled", "not-done", "refuted"))
_SPEAK_OF = (b'"Patient"', b'"Medication"')
_TEXTS = ("text/plain", "text/markdown", "")


def sniff(source: Source) -> float:
    """By what the first of its JSON files begin with."""
    for name in [one for one in source.names if _maybe(one)][:20]:
        if b'"resourceType"' in start(source, name):
            return 0.9
    return 0.0


def _maybe(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith((".json", ".ndjson", ".jsonl", ".fhir"))


def read(source: Source, reading: Reading) -> Iterator[Draft | Merge]:
    """Two passes: who the patients are and what medications are called, then the events."""
    known = _Known()
    for name in source.names:
        if _maybe(name):
            quiet = Reading(type(reading.report)(), reading.zone)
            for place, address, resource, _ in _resources(source, name, quiet, only=_SPEAK_OF):
                known.learn(place, address, resource)
    for name in source.names:
        if not _maybe(name):
            continue
        for place, _, resource, raw in _resources(source, name, reading):
            kind = resource.get("resourceType")
            make = _MAKERS.get(str(kind))
            if make is None:
                reading.left_out[str(kind)] += 1
                continue
            try:
                yield from make(_Resource(resource, raw, place, known, reading))
            except (TypeError, AttributeError, KeyError, ValueError):
                place.error(reading.report, "timeline.resource", kind=word(str(kind)))


def _resources(
    source: Source, name: str, reading: Reading, only: tuple[bytes, ...] = ()
) -> Iterator[tuple[Place, str, dict[str, Any], bytes]]:
    """(place, full address, resource, as it was written); of lines those alone that hold one of `only`."""
    if _by_lines(source, name):
        for line, text in lines(source, name, reading.report):
            if text.strip() and (not only or any(one in text for one in only)):
                yield from _parsed(text, Place(name, line=line), reading)
        return
    with opened(source, name) as file:
        content = file.read(LARGEST_BUNDLE + 1)
    if len(content) > LARGEST_BUNDLE:
        reading.report.error("timeline.too_long", name, limit=LARGEST_BUNDLE)
        return
    yield from _parsed(content, Place(name), reading)


def _by_lines(source: Source, name: str) -> bool:
    if name.lower().removesuffix(".gz").endswith((".ndjson", ".jsonl")):
        return True
    first = start(source, name, 1 << 16).lstrip().partition(b"\n")[0].rstrip()
    return first.endswith(b"}") and len(first) > 2


def _parsed(text: bytes, place: Place, reading: Reading) -> Iterator[tuple[Place, str, dict[str, Any], bytes]]:
    try:
        found = parse(text.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        place.error(reading.report, "timeline.not_json")
        return
    if not isinstance(found, dict) or not isinstance(found.get("resourceType"), str):
        place.error(reading.report, "timeline.not_fhir")
    elif found["resourceType"] != "Bundle":
        yield place, "", found, text
    else:
        for number, entry in enumerate(_dicts(found.get("entry"))):
            inner = entry.get("resource")
            if isinstance(inner, dict) and isinstance(inner.get("resourceType"), str):
                key = f"entry[{number}]"
                yield Place(place.file, place.line, key), str(entry.get("fullUrl") or ""), inner, _written(inner)


def _written(resource: Any) -> bytes:
    import json

    return json.dumps(resource, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass
class _Known:
    """Who a reference means, and what a medication is: kept over all files."""

    people: dict[str, Identity] = field(default_factory=dict)
    medications: dict[str, dict[str, Any]] = field(default_factory=dict)

    def learn(self, place: Place, address: str, resource: Mapping[str, Any]) -> None:
        kind, name = resource["resourceType"], str(resource.get("id") or "")
        if kind == "Patient":
            identity = _identity(resource) or (Identity("fhir", name) if name else None)
            for key in (f"Patient/{name}" if name else "", address):
                if key and identity:
                    self.people[key] = identity
        elif kind == "Medication" and isinstance(code := resource.get("code"), dict):
            for key in (f"Medication/{name}" if name else "", address):
                if key:
                    self.medications[key] = code


def _identity(patient: Mapping[str, Any]) -> Identity | None:
    """The hospital's number of a patient: by type MR, else one in use, else the first."""
    best: tuple[int, Identity] | None = None
    for one in _dicts(patient.get("identifier")):
        value = str(one.get("value") or "").strip()
        if not value or one.get("use") == "old":
            continue
        types = {str(coding.get("code")) for coding in _dicts(_dict(one.get("type")).get("coding"))}
        rank = 3 if "MR" in types else 2 if "PI" in types else 0 if one.get("use") in ("secondary", "temp") or types & {"NI", "SS"} else 1
        if best is None or rank > best[0]:
            best = rank, Identity(str(one.get("system") or ""), value)
    return best[1] if best else None


def _short(reference: str) -> str:
    parts = reference.split("/_history/")[0].rstrip("/").split("/")
    return "/".join(parts[-2:]) if len(parts) > 1 else reference


@dataclass
class _Resource:
    """A resource with what is needed to make events of it."""

    body: dict[str, Any]
    raw: bytes
    place: Place
    known: _Known
    reading: Reading

    @property
    def key(self) -> str:
        name = self.body.get("id")
        return f"{self.body['resourceType']}/{name or hashlib.sha256(self.raw).hexdigest()}"

    def patient(self) -> Identity | None:
        """Whose it is; reported where it says of nobody."""
        if self.body["resourceType"] == "Patient":
            name = str(self.body.get("id") or "")
            found = _identity(self.body) or (Identity("fhir", name) if name else None)
        else:
            found = self.meant(_dict(self.body.get("subject") or self.body.get("patient")))
        if found is None:
            self.place.error(self.reading.report, "timeline.no_patient")
        return found

    def meant(self, reference: Mapping[str, Any]) -> Identity | None:
        """Whom a reference means: by the patient's resource, by an identifier in it, else by the reference itself."""
        text = str(reference.get("reference") or "")
        if text and (found := self.known.people.get(text) or self.known.people.get(_short(text))):
            return found
        inner = _dict(reference.get("identifier"))
        if inner.get("value"):
            return Identity(str(inner.get("system") or ""), str(inner["value"]))
        return Identity("fhir", _short(text).removeprefix("Patient/")) if _short(text).startswith("Patient/") else None

    def revision(self) -> int | None:
        meta = _dict(self.body.get("meta"))
        version = str(meta.get("versionId") or "")
        if version.isascii() and version.isdecimal() and len(version) < 18:
            return int(version)
        try:
            time, _ = parse_time(str(meta.get("lastUpdated") or ""), self.reading.zone)
        except ValueError:
            return None
        return int(f"{time:%Y%m%d%H%M%S}{time.microsecond // 1000:03d}")

    def when(self, *names: str) -> str:
        """The first of these times that is there; of a period its start."""
        for name in names:
            value: Any = self.body
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, str) and value:
                return value
        return ""

    def event(self, code: str, time: str, *, suffix: str = "", **values: Any) -> Iterator[Draft]:
        """One draft, unless nobody is known of it or its time is wrong."""
        who = self.patient()
        if who is None:
            return
        at, precision = self.reading.time(time, self.place, "time")
        if time and at is None:
            return
        statuses = {str(self.body.get("status")), *self.codes("verificationStatus")}
        yield Draft(
            who,
            NAME,
            self.key + suffix,
            code,
            at,
            precision,
            revision=self.revision(),
            withdrawn=bool(statuses & _WRONG),
            raw=self.raw,
            **values,
        )

    def codes(self, name: str) -> set[str]:
        return {str(one.get("code")) for one in _dicts(_dict(self.body.get(name)).get("coding"))}

    def dated(self, kind: str, concept: Any, time: str, *, suffix: str = "", **values: Any) -> Iterator[Draft]:
        """An event under a concept's code; without a time it says nothing of when, and is reported."""
        code, name = _code(kind, concept)
        if not code:
            self.place.error(self.reading.report, "timeline.no_code")
        elif not time:
            self.place.error(self.reading.report, "timeline.no_time")
        else:
            yield from self.event(code, time, suffix=suffix, code_system=name, **values)


def _code(kind: str, concept: Any) -> tuple[str, str]:
    """(code, system) of a CodeableConcept or Coding: a standard system's before a local one, text where there is no code."""
    concept = _dict(concept)
    codings = _dicts(concept.get("coding")) or ([concept] if concept.get("code") else [])
    best = ("", "")
    for one in codings:
        value = str(one.get("code") or "").strip()
        if value:
            name = system(str(one.get("system") or ""))
            if not best[0] or (best[1] == "LOCAL" and name != "LOCAL"):
                best = coded(kind, name, value), name
    text = str(concept.get("text") or "").strip()
    return best if best[0] or not text else (f"{kind}//TEXT//{word(text)}", "TEXT")


def _value(body: Mapping[str, Any]) -> dict[str, Any]:
    """What an observation says: number and unit, or text."""
    quantity = _dict(body.get("valueQuantity"))
    if quantity:
        found, unit = _number(quantity.get("value")), str(quantity.get("unit") or quantity.get("code") or "") or None
        sign = str(quantity.get("comparator") or "")
        if found is not None and not sign:
            return {"numeric": found, "unit": unit}
        return {"text": f"{sign}{quantity.get('value', '')}", "unit": unit}
    if (found := _number(body.get("valueInteger"))) is not None:
        return {"numeric": found}
    if isinstance(body.get("valueBoolean"), bool):
        return {"text": str(body["valueBoolean"]).lower()}
    if concept := _dict(body.get("valueCodeableConcept")):
        first = (_dicts(concept.get("coding")) or [{}])[0]
        return {"text": str(concept.get("text") or first.get("display") or first.get("code") or "") or None}
    for name in ("valueString", "valueDateTime", "valueTime"):
        if isinstance(body.get(name), str):
            return {"text": body[name]}
    if ratio := _dict(body.get("valueRatio")):
        return {"text": "{}:{}".format(*(_dict(ratio.get(part)).get("value", "") for part in ("numerator", "denominator")))}
    return {}


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT32
    return float(value) if good else None


def _patient(one: _Resource) -> Iterator[Draft | Merge]:
    body = one.body
    if body.get("birthDate"):
        yield from one.event(BIRTH, str(body["birthDate"]), suffix="#birth")
    if body.get("deceasedDateTime"):
        yield from one.event(DEATH, str(body["deceasedDateTime"]), suffix="#death")
    if body.get("gender"):
        yield from one.event(f"GENDER//{word(str(body['gender']))}", "", suffix="#gender")
    who = one.patient()
    for link in _dicts(body.get("link")):
        other = one.meant(_dict(link.get("other")))
        if who is None or other is None or other == who:
            continue
        pair = {"replaced-by": (other, who), "replaces": (who, other)}.get(str(link.get("type")))
        if pair:
            yield Merge(*pair, NAME, f"{pair[0].authority}|{pair[0].local_id}<{pair[1].authority}|{pair[1].local_id}")


def _encounter(one: _Resource) -> Iterator[Draft]:
    kind = one.body.get("class")
    first = (_dicts(kind) or [{}])[0] if isinstance(kind, list) else _dict(kind)
    first = (_dicts(first.get("coding")) or [first])[0]
    name = word(str(first.get("code") or ""))
    period = _dict(one.body.get("period") or one.body.get("actualPeriod"))
    for part, end in (("start", "START"), ("end", "END")):
        if period.get(part):
            yield from one.event(f"ENCOUNTER//{name}//{end}", str(period[part]), suffix=f"#{part}", modality="encounter")


def _condition(one: _Resource) -> Iterator[Draft]:
    time = one.when("recordedDate", "assertedDate", "onsetDateTime", "onsetPeriod.start")
    yield from one.dated("DIAGNOSIS", one.body.get("code"), time, modality="diagnosis")


def _observation(one: _Resource) -> Iterator[Draft]:
    categories = {code.get("code") for each in _dicts(one.body.get("category")) for code in _dicts(each.get("coding"))}
    kind = "LAB" if "laboratory" in categories else "VITAL" if "vital-signs" in categories else "OBSERVATION"
    time = one.when("effectiveDateTime", "effectivePeriod.start", "effectiveInstant", "issued")
    parts = _dicts(one.body.get("component"))
    value = _value(one.body)
    if value or not parts:
        yield from one.dated(kind, one.body.get("code"), time, modality=kind.lower(), **value)
    for number, part in enumerate(parts):
        name = _code(kind, part.get("code"))[0] or str(number)
        yield from one.dated(kind, part.get("code"), time, suffix=f"#{name}", modality=kind.lower(), **_value(part))


def _medication(one: _Resource, *, kind: str, times: tuple[str, ...]) -> Iterator[Draft]:
    concept = one.body.get("medicationCodeableConcept") or _dict(one.body.get("medication")).get("concept")
    if not concept:
        outer = _dict(one.body.get("medication"))
        reference = str(_dict(one.body.get("medicationReference") or outer.get("reference")).get("reference") or "")
        inside = {f"#{each.get('id')}": each.get("code") for each in _dicts(one.body.get("contained"))}
        concept = inside.get(reference) or one.known.medications.get(reference) or one.known.medications.get(_short(reference))
    dose = _dict(_dict(one.body.get("dosage")).get("dose"))
    value: dict[str, Any] = {"numeric": _number(dose.get("value")), "unit": str(dose.get("unit") or "") or None} if dose else {}
    yield from one.dated(kind, concept, one.when(*times), modality="medication", **value)


def _procedure(one: _Resource) -> Iterator[Draft]:
    names = (f"{base}{kind}" for base in ("performed", "occurrence") for kind in ("DateTime", "Period.start"))
    yield from one.dated("PROCEDURE", one.body.get("code"), one.when(*names), modality="procedure")


def _report(one: _Resource) -> Iterator[Draft]:
    text = str(one.body.get("conclusion") or "") or _attached(one.body.get("presentedForm"))
    time = one.when("effectiveDateTime", "effectivePeriod.end", "issued")
    yield from one.dated("REPORT", one.body.get("code"), time, modality="text", text=text or None)


def _imaging(one: _Resource) -> Iterator[Draft]:
    kinds = {str(each.get("code")) for each in _dicts(one.body.get("modality")) if each.get("code")}
    kinds |= {str(_dict(each.get("modality")).get("code")) for each in _dicts(one.body.get("series")) if each.get("modality")}
    uid = next((str(each["value"]) for each in _dicts(one.body.get("identifier")) if each.get("system") == "urn:dicom:uid"), None)
    code = f"IMAGING_STUDY//{word('+'.join(sorted(kinds)))}"
    if not (time := one.when("started")):
        one.place.error(one.reading.report, "timeline.no_time")
        return
    yield from one.event(code, time, modality="imaging", study_uid=uid.removeprefix("urn:oid:") if uid else None)


def _document(one: _Resource) -> Iterator[Draft]:
    contents = [_dict(each.get("attachment")) for each in _dicts(one.body.get("content"))]
    yield from one.dated("NOTE", one.body.get("type"), one.when("date", "context.period.start"), modality="text", text=_attached(contents))


def _attached(attachments: Any) -> str | None:
    """The text of the first attachment that is text."""
    for one in _dicts(attachments):
        kind = str(one.get("contentType") or "").partition(";")[0].strip().lower()
        if kind in _TEXTS and isinstance(one.get("data"), str):
            try:
                data = base64.b64decode(one["data"], validate=True)
            except (binascii.Error, ValueError):
                continue
            try:
                return data.decode("utf-8")
            except UnicodeDecodeError:
                return data.decode("gb18030", "replace")
    return None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    found: Iterable[Any] = value if isinstance(value, list) else ()
    return [one for one in found if isinstance(one, dict)]


_MAKERS: dict[str, Any] = {
    "Patient": _patient,
    "Encounter": _encounter,
    "Condition": _condition,
    "Observation": _observation,
    "MedicationRequest": partial(_medication, kind="MEDICATION_ORDER", times=("authoredOn", "dateWritten")),
    "MedicationAdministration": partial(
        _medication, kind="MEDICATION", times=("effectiveDateTime", "effectivePeriod.start", "occurenceDateTime", "occurencePeriod.start")
    ),
    "Procedure": _procedure,
    "DiagnosticReport": _report,
    "ImagingStudy": _imaging,
    "DocumentReference": _document,
}

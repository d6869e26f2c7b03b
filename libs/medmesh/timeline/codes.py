"""How codes are spelt: `KIND//SYSTEM//CODE`, one name for one code system whatever a source calls it.

ICD codes have their point where WHO puts it, also where a source leaves it out (MIMIC does), so that a prefix means the same everywhere.
"""

from __future__ import annotations

import re

_SYSTEMS = {
    "LOINC": ("http://loinc.org", "urn:oid:2.16.840.1.113883.6.1", "LN", "LOINC"),
    "SNOMED": ("http://snomed.info/sct", "urn:oid:2.16.840.1.113883.6.96", "SCT", "SNM3", "SNOMED", "SNOMEDCT"),
    "ICD10": ("http://hl7.org/fhir/sid/icd-10", "urn:oid:2.16.840.1.113883.6.3", "I10", "ICD10", "ICD-10"),
    "ICD10CM": ("http://hl7.org/fhir/sid/icd-10-cm", "urn:oid:2.16.840.1.113883.6.90", "I10C", "ICD10CM", "ICD-10-CM"),
    "ICD10CN": ("urn:oid:2.16.156.10011.2.3.3.11", "http://hl7.org/fhir/sid/icd-10-cn", "ICD10CN", "ICD-10-CN", "GB/T 14396"),
    "ICD9CM": ("http://hl7.org/fhir/sid/icd-9-cm", "http://hl7.org/fhir/sid/icd-9", "I9", "I9C", "I9CDX", "ICD9CM", "ICD-9-CM", "ICD9"),
    "ICD9PROC": ("http://hl7.org/fhir/sid/icd-9-cm/procedure", "I9CP", "ICD9PROC", "ICD-9-CM3"),
    "ICD10PCS": ("http://www.cms.gov/Medicare/Coding/ICD10", "I10P", "ICD10PCS"),
    "RXNORM": ("http://www.nlm.nih.gov/research/umls/rxnorm", "RXNORM"),
    "ATC": ("http://www.whocc.no/atc", "ATC"),
    "NDC": ("http://hl7.org/fhir/sid/ndc", "NDC"),
    "CPT": ("http://www.ama-assn.org/go/cpt", "CPT4", "C4", "CPT"),
    "DCM": ("http://dicom.nema.org/resources/ontology/DCM", "DCM"),
}
_NAMES = {spelt.upper().replace("URN:OID:", ""): name for name, spellings in _SYSTEMS.items() for spelt in spellings}
_ICD = {"ICD10": 3, "ICD10CM": 3, "ICD10CN": 3, "ICD9CM": 3, "ICD9PROC": 2}
"""Characters before the point."""
DIAGNOSES = ("ICD10CN", "ICD10", "ICD10CM", "ICD9CM")
_KEPT = 200


def system(text: str) -> str:
    """Our name of a code system; what is not known stays what it is called, the last part of an address."""
    text = text.strip()
    known = _NAMES.get(text.upper().replace("URN:OID:", ""))
    if known or not text:
        return known or "LOCAL"
    short = re.split(r"[/:]", text.rstrip("/"))[-1]
    return re.sub(r"[^\w.-]", "_", short)[:40].upper() or "LOCAL"


def spell(code: str, name: str) -> str:
    """A code as it is written in its system."""
    code = " ".join(code.split())[:_KEPT]
    if (before := _ICD.get(name)) is None:
        return code
    code = code.upper()
    bare = code.replace(".", "", 1)
    if name == "ICD9CM" and bare.startswith("E"):
        before = 4
    return code if len(bare) <= before else f"{bare[:before]}.{bare[before:]}"


def coded(kind: str, name: str, code: str) -> str:
    """`KIND//SYSTEM//CODE`, for a system by our name of it."""
    return f"{kind}//{name}//{spell(code, name)}"


def word(text: str, default: str = "UNKNOWN") -> str:
    """A word of a source as part of a code."""
    return re.sub(r"[^\w.+-]+", "_", text.strip()).strip("_")[:80].upper() or default


def category(code: str) -> str | None:
    """Of an event's code, the category of diagnosis that ICD-10 has it in, `ICD10//J18` whichever nation's edition, or ICD-9's
    (`ICD9CM//486`); None of anything else."""
    kind, _, rest = code.partition("//")
    name, _, one = rest.partition("//")
    if kind != "DIAGNOSIS" or name not in DIAGNOSES or not one:
        return None
    return f"{'ICD10' if name.startswith('ICD10') else name}//{one.partition('.')[0]}"

"""RibSeg v2: one label a rib and centrelines, over the CT volumes and fracture labels of RibFrac, which may lie beside it or not.

L. Jin et al., "RibSeg v2", IEEE TMI 2023; RibFrac: L. Jin et al., EBioMedicine 2020. `cl/RibFracN.npz` holds `cl`, (24, 500, 3) voxels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from medmesh.importing.port import File, Importer, Item, Label, Report, Source, Tally
from medmesh.importing.reading import nifti_shape, npz, published, rows, same_grid

SCANS = 660
RIBS = {0: "background", **{number: f"rib {number}" for number in range(1, 25)}}
CODES = {-1: "unknown type", 0: "background", 1: "displaced", 2: "non-displaced", 3: "buckle", 4: "segmental"}
_FILE = re.compile(r"(?:.*/)?(?P<case>RibFrac\d+)(?:-(?P<role>image|label|rib-seg)\.nii(?:\.gz)?|(?P<npz>\.npz))", re.IGNORECASE)
_ROLES = {"image": "image", "label": "fractures", "rib-seg": "mask"}


class RibSeg(Importer):
    name = "ribseg"
    title = "RibSeg v2"
    licence = "CC BY-NC 4.0"
    looked_for = "RibFracN-rib-seg.nii.gz"

    def sniff(self, source: Source) -> float:
        return 0.95 if any(name.endswith(("-rib-seg.nii.gz", "-rib-seg.nii")) for name in source.names) else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        report.means("mask", RIBS)
        cases: dict[str, dict[str, str]] = defaultdict(dict)
        for name in source.names:
            if (match := _FILE.fullmatch(name)) is not None:
                role = "centrelines" if match["npz"] else _ROLES[match["role"].lower()]
                if role in cases[match["case"]]:
                    report.error("importing.twice", name, what=f"{match['case']} {role}")
                cases[match["case"]].setdefault(role, name)
        fractures = _fractures(source, frozenset(cases), report)
        for case in sorted(cases, key=lambda case: int(case[7:])):
            yield from _item(source, case, cases[case], fractures, report)

    def check(self, tally: Tally, report: Report) -> None:
        published(report, tally.source, "scans", tally.items, SCANS)


def _item(source: Source, case: str, files: dict[str, str], fractures: dict[str, list[str]], report: Report) -> Iterator[Item]:
    mask, image = files.get("mask"), files.get("image")
    if mask is None:
        report.error("importing.unpaired", next(iter(files.values())), role=f"{case}-rib-seg.nii.gz")
        return
    if not (nifti_shape(source, mask, report) if image is None else same_grid(source, image, mask, report)):
        return
    if (lines := files.get("centrelines")) is not None:
        arrays = npz(source, lines, report)
        if arrays is None:
            return
        if "cl" not in arrays or arrays["cl"].shape != (24, 500, 3):
            report.error("importing.json_key", lines, key="cl", expected="(24, 500, 3)")
            return
    labels: dict[str, Label] = {"fractures": tuple(fractures[case])} if case in fractures else {}
    roles = ("image", "mask", "fractures", "centrelines")
    found = tuple(File(files[role], role) for role in roles if role in files)
    split = next((split for split in ("train", "val", "test") if image and f"ribfrac-{split}-" in image.lower()), None)
    kind, missing = ("mask", ("image",)) if image is None else ("volume", ())
    yield Item(case, kind, found, patient=case, split=split, labels=labels, missing=missing)  # type: ignore[arg-type]


def _fractures(source: Source, cases: frozenset[str], report: Report) -> dict[str, list[str]]:
    """The types of the fractures of each case, from `ribfrac-*-info.csv`."""
    found: dict[str, list[str]] = {}
    for name in source.names:
        if not re.fullmatch(r"(?:.*/)?ribfrac-(train|val|test)-info.*\.csv", name):
            continue
        report.means("fractures", CODES)
        for row in rows(source, name, report, columns=("public_id", "label_id", "label_code")):
            code = row["label_code"].strip()
            if code not in {str(known) for known in CODES}:
                report.error("importing.value", name, line=row.line, column="label_code", expected="-1 to 4")
                continue
            kinds = found.setdefault(row["public_id"].strip(), [])
            if code != "0":
                kinds.append(CODES[int(code)])
    return {case: kinds for case, kinds in found.items() if case in cases}

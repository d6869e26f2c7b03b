"""CTPelvic1K: CT volumes of seven sources with masks of the pelvic bones; the images of sources 1 to 5 must be had elsewhere.

P. Liu et al., "Deep learning to segment pelvic bones", IJCARS 16 (2021). Labels as in the authors' conversion script.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from medmesh.importing.port import File, Importer, Item, Report, Source, Tally
from medmesh.importing.reading import nifti_shape, published, same_grid

VOLUMES = 1_184
SOURCES = {"1": "ABDOMEN", "2": "COLONOG", "3": "MSD_T10", "4": "KITS19", "5": "CERVIX", "6": "CLINIC", "7": "CLINIC-metal"}
BONES = {0: "background", 1: "sacrum", 2: "right hip", 3: "left hip", 4: "lumbar vertebra"}
_MASK, _IMAGE = "_mask_4label.nii.gz", "_data.nii.gz"
_NUMBER = re.compile(r"dataset(\d)_")


class CTPelvic1K(Importer):
    name = "ctpelvic1k"
    title = "CTPelvic1K"
    licence = "CC BY-NC-SA 4.0; images of sources 1 to 5 under their own licences"
    looked_for = "*_mask_4label.nii.gz"

    def sniff(self, source: Source) -> float:
        return 0.95 if any(name.endswith(_MASK) for name in source.names) else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        report.means("mask", BONES)
        images = _by_case(source, _IMAGE, report)
        for name in source.names:
            if name.endswith(".pkl"):
                report.note("importing.not_read", name)
        for case, mask in sorted(_by_case(source, _MASK, report).items()):
            image = images.pop(case, None)
            number, stem = case
            labels = {"source": SOURCES[number]}
            patient = f"{number}/{stem.split('_')[0] if number == '2' else stem}"  # source 2: patient_series_slices
            files = (File(mask, "mask"),)
            if image is None:
                if nifti_shape(source, mask, report) is not None:
                    yield Item(mask, "mask", files, patient=patient, labels=labels, missing=("image",))
            elif same_grid(source, image, mask, report):
                yield Item(image, "volume", (File(image, "image"), *files), patient=patient, labels=labels)
        for image in images.values():
            report.error("importing.unpaired", image, role="*" + _MASK)

    def check(self, tally: Tally, report: Report) -> None:
        published(report, tally.source, "volumes", tally.items, VOLUMES)


def _by_case(source: Source, ending: str, report: Report) -> dict[tuple[str, str], str]:
    """(source, case) to file. Masks of source 7 lack the prefix that its images have: its folder, or `CLINIC_metal`, tells."""
    found: dict[tuple[str, str], str] = {}
    for name in source.names:
        if not name.endswith(ending):
            continue
        last = name.rpartition("/")[2]
        match = _NUMBER.match(last) or re.search(r"dataset(\d)", name)
        number = match[1] if match else "7" if last.startswith("CLINIC_metal") else "6" if last.startswith("CLINIC") else ""
        case = (number, _NUMBER.sub("", last.removesuffix(ending), count=1))
        if number not in SOURCES:
            report.error("importing.value", name, column="dataset", expected="1 to 7")
        elif case in found:
            report.error("importing.twice", name, what=last)
        else:
            found[case] = name
    return found

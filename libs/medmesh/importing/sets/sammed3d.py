"""SA-Med3D-140K, the training data of SAM-Med3D: a binary mask a class, and the folder names are the metadata.

H. Wang et al., "SAM-Med3D", arXiv:2310.15161. `<class>/<modality>_<dataset>/{imagesTr,labelsTr}/<case>.nii.gz`, validation in `...Va`.
One scan appears under each class that it shows: scans, not items, are what a split keeps together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from medmesh.importing.port import File, Importer, Item, Report, Source, Tally
from medmesh.importing.reading import published, same_grid

THOUSANDS = 143
"""Of masks, as published."""
_PATH = re.compile(
    r"(?P<top>(?:.*/)?)(?P<cls>[^/]+)/(?P<modality>[A-Za-z0-9]+)_(?P<dataset>[^/]+)/(?P<what>images|labels)(?P<part>Tr|Va)/(?P<case>[^/]+)\.nii\.gz"
)
SPLITS = {"Tr": "train", "Va": "val"}


class SAMMed3D(Importer):
    name = "sammed3d"
    title = "SAM-Med3D (SA-Med3D-140K)"
    licence = "that of each source data set"
    looked_for = "<class>/<modality>_<dataset>/{imagesTr,labelsTr}/*.nii.gz"

    def sniff(self, source: Source) -> float:
        listed = any(name.rpartition("/")[2] == "dataset.json" for name in source.names)  # nnU-Net's folders have an index
        return 0.9 if not listed and any(_PATH.fullmatch(name) for name in source.names) else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        report.means("mask", {0: "background", 1: "the class"})
        known = frozenset(source.names)
        for name in source.names:
            if (match := _PATH.fullmatch(name)) is None:
                if name.endswith(".nii.gz"):
                    report.warning("importing.stray", name)
                continue
            image, mask = (re.sub(r"/(images|labels)(Tr|Va)/", rf"/{what}\2/", name) for what in ("images", "labels"))
            if match["what"] == "images":
                if mask not in known:
                    report.error("importing.unpaired", name, role="mask (labels" + match["part"] + "/)")
            elif image not in known:
                report.error("importing.unpaired", name, role="image (images" + match["part"] + "/)")
            elif same_grid(source, image, mask, report):
                yield Item(
                    mask,
                    "volume",
                    (File(image, "image"), File(mask, "mask")),
                    group=f"{match['modality']}_{match['dataset']}/{match['case']}",
                    split=SPLITS[match["part"]],
                    labels={"class": match["cls"], "modality": match["modality"], "dataset": match["dataset"]},
                )

    def check(self, tally: Tally, report: Report) -> None:
        published(report, tally.source, "thousand masks", tally.items // 1000, THOUSANDS)

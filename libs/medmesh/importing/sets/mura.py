"""MURA v1.1: radiographs of seven regions, labelled by study, split by patient.

P. Rajpurkar et al., "MURA", MIDL 2018. Four CSV files without a header list images and studies; their paths start at `MURA-v1.1/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from medmesh.importing.port import File, Importer, Item, Report, Source
from medmesh.importing.reading import JPEG, PNG, begins, folder_of, published, rows

STUDIES = 14_863 - 207
"""Of the paper; the test part is not shipped."""
REGIONS = ("ELBOW", "FINGER", "FOREARM", "HAND", "HUMERUS", "SHOULDER", "WRIST")
_TOP = "MURA-v1.1/"
_STUDY = re.compile(
    rf"(?P<split>train|valid)/XR_(?P<region>{'|'.join(REGIONS)})/(?P<patient>patient\d+)/study\d+_(?P<sign>positive|negative)"
)


class MURA(Importer):
    name = "mura"
    title = "MURA v1.1"
    licence = "Stanford University Dataset Research Use Agreement"
    target = "abnormal"
    looked_for = "train_labeled_studies.csv and train_image_paths.csv, or valid_..."

    def sniff(self, source: Source) -> float:
        return 0.95 if any(_top(source, split) is not None for split in ("train", "valid")) else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        report.means("abnormal", {0: "normal", 1: "abnormal"})
        known, listed = frozenset(source.names), set()
        total = 0
        for split in ("train", "valid"):
            if (top := _top(source, split)) is None:
                continue
            studies = _studies(source, f"{top}{split}_labeled_studies.csv", split, report)
            total += len(studies)
            unseen = dict(studies)
            paths = f"{top}{split}_image_paths.csv"
            for row in rows(source, paths, report, header=("path",)):
                path = row["path"].strip().removeprefix(_TOP)
                study = folder_of(path).rstrip("/")
                match, name = _STUDY.fullmatch(study), top + path
                if match is None or match["split"] != split:
                    report.error(
                        "importing.value",
                        paths,
                        line=row.line,
                        column="path",
                        expected="{train,valid}/XR_REGION/patientN/studyK_SIGN/imageJ.png",
                    )
                elif name not in known:
                    report.error("importing.named_missing", paths, line=row.line, named=path)
                elif study not in studies:
                    report.error("importing.named_missing", paths, line=row.line, named=f"{study}/ (labelled)")
                elif name in listed:
                    report.error("importing.twice", paths, line=row.line, what=path)
                elif begins(source, name, report, expected="PNG", magics=(PNG, JPEG)):
                    unseen.pop(study, None)
                    listed.add(name)
                    labels = {"abnormal": studies[study][0], "region": match["region"]}
                    yield Item(
                        path, "image", (File(name, "image"),), patient=match["patient"], split=split, labels=labels, meta={"study": study}
                    )
            for study, (_, line) in unseen.items():
                report.error("importing.unpaired", f"{top}{split}_labeled_studies.csv", line=line, role=f"image ({study})")
        for name in source.names:
            if name.lower().endswith((".png", ".jpg")) and name not in listed:
                report.warning("importing.stray", name)
        published(report, source, "studies", total, STUDIES)


def _top(source: Source, split: str) -> str | None:
    """The folder in which both lists of a split lie."""
    lists = (f"{split}_labeled_studies.csv", f"{split}_image_paths.csv")
    tops = [folder_of(name) for name in source.names if name.rpartition("/")[2] == lists[0]]
    return next((top for top in tops if top + lists[1] in source.names), None)


def _studies(source: Source, name: str, split: str, report: Report) -> dict[str, tuple[int, int]]:
    """Study to label and line."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows(source, name, report, header=("path", "label")):
        study, label = row["path"].strip().removeprefix(_TOP).rstrip("/"), row["label"].strip()
        match = _STUDY.fullmatch(study)
        if match is None or match["split"] != split:
            report.error("importing.value", name, line=row.line, column="path", expected="{train,valid}/XR_REGION/patientN/studyK_SIGN/")
        elif label not in ("0", "1"):
            report.error("importing.value", name, line=row.line, column="label", expected="0 / 1")
        elif study in found:
            report.error("importing.twice", name, line=row.line, what=study)
        elif (label == "1") != (match["sign"] == "positive"):
            report.error("importing.contradiction", name, line=row.line, found=label, other="folder", expected=match["sign"])
        else:
            found[study] = (int(label), row.line)
    return found

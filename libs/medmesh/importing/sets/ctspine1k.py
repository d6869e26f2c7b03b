"""CTSpine1K: CT volumes with a label for each vertebra, one patient a volume; folders of images and masks are spelt differently.

Y. Deng et al., "CTSpine1K", arXiv:2105.14711. `data_split.txt` lists names under `trainset:`, `test_public:` and `test_private:`.
"""

from __future__ import annotations

from collections.abc import Iterator

from medmesh.importing.port import File, Importer, Item, Report, Source, Tally
from medmesh.importing.reading import nifti_shape, plain, published, same_grid, stem, within

SECTIONS = {"trainset": "train", "test_public": "test_public", "test_private": "test_private"}
SPLITS = {"train": 610, "test_public": 197, "test_private": 198}
VERTEBRAE = {
    0: "background",
    **{number: f"C{number}" for number in range(1, 8)},
    **{number: f"T{number - 7}" for number in range(8, 20)},
    **{number: f"L{number - 19}" for number in range(20, 26)},
}
_FAMILIES = (("1.3.6.1.4.1.9328.50.4.", "colon"), ("liver", "liver"), ("volume-covid19", "COVID-19"), ("hn_p", "HNSCC"))


class CTSpine1K(Importer):
    name = "ctspine1k"
    title = "CTSpine1K"
    licence = "CC BY-NC-SA; images under the licences of their sources"
    looked_for = "data_split.txt beside data/ and label/ with *_seg.nii.gz"

    def sniff(self, source: Source) -> float:
        masks = any(within(name, "label") and name.endswith("_seg.nii.gz") for name in source.names)
        listed = any(name.rpartition("/")[2] == "data_split.txt" for name in source.names)
        return 0.95 if masks and listed else 0.9 if masks and any(within(name, "data") for name in source.names) else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        report.means("mask", VERTEBRAE)
        splits = {case: found for name in source.names if name.endswith("data_split.txt") for case, found in _split(source, name, report)}
        images, masks = _volumes(source, "data", report), _volumes(source, "label", report)
        unsplit = 0
        for case in sorted(images.keys() | masks.keys()):
            image, mask = images.get(case), masks.get(case)
            if mask is None:
                report.error("importing.unpaired", image or case, role="mask (label/.../*_seg.nii.gz)")
                continue
            split, _, _ = splits.pop(case, (None, "", 0))
            unsplit += split is None
            labels = {"source": next((family for start, family in _FAMILIES if case.startswith(start)), "other")}
            if image is None:
                if nifti_shape(source, mask, report) is not None:
                    yield Item(mask, "mask", (File(mask, "mask"),), patient=case, split=split, labels=labels, missing=("image",))
            elif same_grid(source, image, mask, report):
                yield Item(image, "volume", (File(image, "image"), File(mask, "mask")), patient=case, split=split, labels=labels)
        if unsplit:
            report.warning("importing.unsplit", source.name, items=unsplit)
        for case, (_, file, line) in splits.items():
            report.warning("importing.split_absent", file, line=line, named=case)

    def check(self, tally: Tally, report: Report) -> None:
        for split, count in SPLITS.items():
            published(report, tally.source, split, tally.total(split=split), count)


def _split(source: Source, name: str, report: Report) -> Iterator[tuple[str, tuple[str, str, int]]]:
    """(case, (split, file, line)) of each name in the list."""
    seen: set[str] = set()
    section: str | None = None
    with plain(source, name) as file:
        for line, raw in enumerate(file, start=1):
            text = raw.decode("utf-8", "replace").strip()
            if text.endswith(":"):
                section = SECTIONS.get(text[:-1].strip())
                if section is None:
                    report.error("importing.value", name, line=line, column="section", expected=", ".join(SECTIONS))
            elif text and (section is None or not text.endswith((".nii.gz", ".nii"))):
                report.error("importing.value", name, line=line, column="name", expected="*.nii.gz")
            elif text:
                case = stem(text).casefold()
                if case in seen:
                    report.error("importing.twice", name, line=line, what=text)
                    continue
                seen.add(case)
                yield case, (str(section), name, line)


def _volumes(source: Source, folder: str, report: Report) -> dict[str, str]:
    """Case (folded) to file below a folder, whatever the folders between are called: `conlon` and `Liver` are there."""
    found: dict[str, str] = {}
    for name in source.names:
        if within(name, folder) and name.endswith((".nii.gz", ".nii")):
            case = stem(name).casefold()
            case = case.removesuffix("_seg") if folder == "label" else case
            if case in found:
                report.error("importing.twice", name, what=case)
            else:
                found[case] = name
    return found

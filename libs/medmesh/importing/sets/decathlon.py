"""Medical Segmentation Decathlon, and every data set in the form nnU-Net took from it: `dataset.json` beside imagesTr, labelsTr, imagesTs.

M. Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 13 (2022). Accepted alike: `modality` or `channel_names`,
labels by number or by name, one 4-D image or a file `case_0000` for each channel, a `training` list or the folders alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from medmesh.importing.port import File, Importer, Item, Report, Source
from medmesh.importing.reading import document, folder_of, nifti_shape, published, same_grid

TRAINING = {"Hippocampus": 260, "Spleen": 41}
"""Published sizes of training parts that could be confirmed."""
_CHANNEL = re.compile(r"_(\d{4})$")


class Decathlon(Importer):
    name = "decathlon"
    title = "Medical Segmentation Decathlon"
    licence = "CC BY-SA 4.0"
    looked_for = "dataset.json beside imagesTr/"

    def sniff(self, source: Source) -> float:
        return 0.95 if _tops(source) else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        licences = set()
        for top in _tops(source):
            about = document(source, f"{top}dataset.json", report)
            if about is None:
                continue
            if isinstance(said := about.get("licence", about.get("license")), str) and said:
                licences.add(said)
                report.licence = "; ".join(sorted(licences))
            yield from _task(source, top, about, report)


def _tops(source: Source) -> list[str]:
    folders = {folder_of(name) for name in source.names}
    return [
        top
        for name in source.names
        if name.rpartition("/")[2] == "dataset.json" and {f"{(top := folder_of(name))}imagesTr/", f"{top}labelsTr/"} & folders
    ]


def _task(source: Source, top: str, about: dict[str, Any], report: Report) -> Iterator[Item]:
    file, task = f"{top}dataset.json", str(about.get("name") or top.rstrip("/").rpartition("/")[2] or source.name)
    meanings, channels = _labels(about, file, report), _channels(about, file, report)
    if meanings is None or channels is None:
        return
    report.means(f"{task}.mask", meanings)
    ending = str(about.get("file_ending") or ".nii.gz")
    images, masks = _folder(source, f"{top}imagesTr/", ending), _folder(source, f"{top}labelsTr/", ending)
    training = _listed(about, "training", file, ending, report)
    if training is None:
        training = dict.fromkeys(masks, "")
    tests = _listed(about, "test", file, ending, report)
    for key, cases in (("numTraining", training), ("numTest", tests)):
        if cases is not None and isinstance(about.get(key), int) and about[key] != len(cases):
            report.error("importing.contradiction", file, key=key, found=about[key], other="its list", expected=len(cases))
    for case, place in training.items():
        pictures, mask = images.pop(case, {}), masks.pop(case, {}).get(-1)
        if not pictures or mask is None:
            named = f"{'labelsTr' if pictures else 'imagesTr'}/{case}{ending}"
            report.error("importing.named_missing", file, key=place or "training", named=named)
        elif _whole(pictures, channels, report) and all(same_grid(source, one, mask, report) for one in pictures.values()):
            yield _item(task, top, case, "train", pictures, mask)
    for leftover in images.values():
        report.warning("importing.stray", next(iter(leftover.values())))
    test = _folder(source, f"{top}imagesTs/", ending)
    for case, place in (tests or {}).items():
        if case not in test:
            report.error("importing.named_missing", file, key=place, named=f"imagesTs/{case}{ending}")
    for case, pictures in test.items():
        if _whole(pictures, channels, report) and all(nifti_shape(source, one, report) for one in pictures.values()):
            yield _item(task, top, case, "test", pictures, None)
    for name, count in TRAINING.items():
        if name.lower() in task.lower():
            published(report, source, f"{name} training", len(training), count)


def _item(task: str, top: str, case: str, split: str, pictures: dict[int, str], mask: str | None) -> Item:
    files = [File(name, "image", f"channel {number}" if number >= 0 else "") for number, name in sorted(pictures.items())]
    files += [File(mask, "mask")] if mask else []
    return Item(f"{top}{split}/{case}", "volume", tuple(files), group=f"{task}/{case}", split=split, labels={"task": task})


def _labels(about: dict[str, Any], file: str, report: Report) -> dict[str, str] | None:
    """Value to name, from either way round; regions of nnU-Net v2 (a list of values) are `name` to `1+2`."""
    labels = about.get("labels")
    if not isinstance(labels, dict) or not labels:
        report.error("importing.json_key", file, key="labels", expected="an object of labels")
        return None
    found: dict[str, str] = {}
    for key, value in labels.items():
        if key.isdigit() and isinstance(value, str):
            found[key] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            found[str(value)] = key
        elif isinstance(value, list) and all(isinstance(one, int) for one in value):
            found["+".join(map(str, value))] = key
        else:
            report.error("importing.json_key", file, key=f"labels.{key}", expected="number: name or name: number")
            return None
    return found


def _channels(about: dict[str, Any], file: str, report: Report) -> int | None:
    channels = about.get("channel_names", about.get("modality"))
    if not isinstance(channels, dict) or not channels:
        report.error("importing.json_key", file, key="modality", expected="an object of channels")
        return None
    return len(channels)


def _listed(about: dict[str, Any], key: str, file: str, ending: str, report: Report) -> dict[str, str] | None:
    """Case to its key in the list; None without a list. Entries are {"image", "label"} or a path."""
    entries = about.get(key)
    if not isinstance(entries, list):
        return None
    found: dict[str, str] = {}
    for number, entry in enumerate(entries):
        path, place = entry.get("image") if isinstance(entry, dict) else entry, f"{key}[{number}]"
        if not isinstance(path, str) or not path.endswith(ending):
            report.error("importing.json_key", file, key=place, expected=f"a path that ends with {ending}")
            continue
        case = path.rpartition("/")[2].removesuffix(ending)
        if case in found:
            report.error("importing.twice", file, key=place, what=case)
        found.setdefault(case, place)
    return found


def _folder(source: Source, folder: str, ending: str) -> dict[str, dict[int, str]]:
    """Case to its files by channel; -1 for one without a suffix of a channel."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    inside = [name for name in source.names if name.startswith(folder) and name.endswith(ending)]
    stems = {name: name[len(folder) : -len(ending)] for name in inside}
    for name, stem in stems.items():
        channel = _CHANNEL.search(stem) if folder.endswith(("imagesTr/", "imagesTs/")) else None
        found[stem[: channel.start()] if channel else stem][int(channel[1]) if channel else -1] = name
    return found


def _whole(pictures: dict[int, str], channels: int, report: Report) -> bool:
    """Whether a case has a file for each channel, or one for all."""
    if -1 in pictures or sorted(pictures) == list(range(channels)):
        return True
    lost = next(number for number in range(channels) if number not in pictures)
    report.error("importing.unpaired", next(iter(pictures.values())), role=f"channel {lost:04d}")
    return False

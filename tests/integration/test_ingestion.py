"""Ingestion on real servers: what is kept is de-identified, labelled and the same every time; what is wrong leaves nothing behind."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from tests.platform import Platform, platform
from tests.unit.importing import layouts

from medmesh.contracts.governance import ApprovalGranted, ApprovalRevoked
from medmesh.contracts.ingestion import (
    Catalogue,
    DatasetReleased,
    DatasetVersionCreated,
    DatasetView,
    Descriptor,
    DescriptorPublished,
    GetDataset,
    IngestArchive,
    ListDescriptors,
    PublishDescriptor,
    SplitVersion,
)
from medmesh.contracts.message import ObjectRef, OperationFinished, new_id
from medmesh.contracts.system import DeadLetters, ListDeadLetters
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.imaging import reading
from medmesh.importing.sources import Limits
from medmesh.security import statements
from medmesh.security.emergency import Emergency
from medmesh.security.tokens import Actor, person_token
from medmesh.service.runtime import running
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.port import load
from medmesh.store.tables import service_metadata
from medmesh_ingestion.archive import opened_archive
from medmesh_ingestion.service import SERVICE, project_key
from medmesh_ingestion.tables import versions
from medmesh_training.domain import Item, held_out

REAL = Path(pydicom.__file__).parent / "data" / "test_files"
CANARIES = ("Canaryname", "Zebedee", "金丝雀", "CANARY-PID-7781", "CANARYACC42", "1.2.826.4444.7", "canary-file-name", "19530917")
Files = dict[str, bytes]


def picture(seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    return Image.frombytes("L", size, random.Random(seed).randbytes(size[0] * size[1]))


def canary(seed: int, **extra: str) -> bytes:
    """A DICOM file with an identity in it."""
    return reading.wrap(
        picture(seed),
        patient_id=CANARIES[3],
        patient_name=f"{CANARIES[0]}^{CANARIES[1]}={CANARIES[2]}",
        study_uid=f"{CANARIES[5]}.1",
        series_uid=f"{CANARIES[5]}.2",
        sop_uid=f"{CANARIES[5]}.{100 + seed}",
        modality="MR",
        study_date=CANARIES[7],
        extra={"AccessionNumber": CANARIES[4], "SpecificCharacterSet": "ISO_IR 192"} | extra,
    )


def png(seed: int) -> bytes:
    text = PngInfo()
    text.add_text("Comment", f"taken of {CANARIES[0]}")
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def zipped(files: Files, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Files, mode: str = "w", **member: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in member.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


LABELS = "item,label\ncanary-file-name-1.dcm,tumour\nscan/canary-file-name-2.dcm,none\nview.png,none\n".encode("utf-8-sig")


def good() -> Files:
    """Two DICOM files and an image, labelled, and pydicom's own as some of them are: fit, truncated, no image, a screen capture."""
    return {
        "set/labels.csv": LABELS,
        "set/canary-file-name-1.dcm": canary(1),
        "set/scan/canary-file-name-2.dcm": canary(2),
        "set/view.png": png(3),
        "set/ct": (REAL / "CT_small.dcm").read_bytes(),
        "set/mr.dcm": (REAL / "MR_small_RLE.dcm").read_bytes(),
        "set/cut.dcm": (REAL / "MR_truncated.dcm").read_bytes(),
        "set/plan.dcm": (REAL / "rtplan.dcm").read_bytes(),
        "set/capture.dcm": (REAL / "SC_rgb_rle.dcm").read_bytes(),
        "set/notes.txt": b"about Canaryname Zebedee",
        "set/._view.png": b"what a desktop adds",
    }


REJECTED = {"unreadable": 1, "no_pixels": 1, "burned_in": 1, "not_dicom": 1}


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings={"ingestion": {"key": private / "secrets" / "project.key"}}) as made:
        yield made


async def ingest(p: Platform, archive: bytes, dataset: str = "brain", *, id: str | None = None) -> OperationFinished:
    ref = await p.stores.kept.put(archive)
    return await p.send(IngestArchive(dataset=dataset, archive=ref), p.person("li", "researcher"), id=id)


async def view(p: Platform, dataset: str = "brain", version: int = 0) -> DatasetView:
    return await p.ask(GetDataset(dataset=dataset, version=version), DatasetView, p.person("li", "researcher"))


async def items(p: Platform, content: ObjectRef) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await load(p.stores.kept, content))["items"]
    return found


def kept(p: Platform) -> dict[str, bytes]:
    store = p.stores.kept
    assert isinstance(store, EncryptedStore)
    return {sha256: b"".join(store.open(sha256)) for sha256 in store.objects()}


def leaks(datas: list[bytes]) -> set[str]:
    needles = {name: {name.encode(code).lower() for code in ("utf-8", "gb18030", "utf-16-le")} for name in CANARIES}
    return {name for name, forms in needles.items() if any(form in data.lower() for form in forms for data in datas)}


def code(answer: OperationFinished) -> str:
    assert not answer.succeeded
    assert answer.problem
    return str(answer.problem["code"])


async def test_an_archive_becomes_a_version_in_which_nobody_can_be_recognised(p: Platform) -> None:
    archive = zipped(good())
    assert leaks([archive]) == set(CANARIES), "the search finds what is there"
    answer = await ingest(p, archive)
    assert answer.result == {"dataset": "brain", "version": 1}, answer.problem
    event = (await p.wait(DatasetVersionCreated)).data
    assert (event.dataset, event.version, event.samples, event.rejected) == ("brain", 1, 5, 4)
    assert event.labels == {"none": 2, "tumour": 1}
    shown = await view(p)
    assert (shown.content, shown.samples, shown.labels, shown.rejected) == (event.content, 5, event.labels, REJECTED)

    left = [path.read_bytes() for path in p.folder.rglob("*") if path.is_file()]
    assert leaks(left) == set(), "neither in the stores, nor in the service's folder, nor on the bus's disk"
    audits = await p.audited("ingestion")
    assert leaks([json.dumps(audits, ensure_ascii=False).encode(), *(body for _, body in p.seen)]) == set()
    (record,) = [record for record in audits if record["sub"] == "dataset.create"]
    assert event.content.sha256 in json.dumps(record)

    found = await items(p, event.content)
    assert [one["item"] for one in found] == sorted({one["item"] for one in found})
    assert all(len(one["item"]) == 16 and set(one["item"]) <= set("0123456789abcdef") for one in found)
    pictures = {}
    for one in found:
        dataset = reading.read(await load(p.stores.kept, ObjectRef(**one["object"])))
        assert dataset.PatientIdentityRemoved == "YES"
        assert one["object"]["media_type"] == "application/dicom"
        pictures[(reading.pixels(dataset) * 255).round().astype("uint8").tobytes()] = one["label"]
    expected = {1: "tumour", 2: "none", 3: "none"}
    assert {seed: pictures.get(picture(seed).tobytes()) for seed in expected} == expected, "each label stands with its own picture"
    assert sorted(label or "" for label in pictures.values()) == ["", "", "none", "none", "tumour"]
    key = p.folder / "secrets" / "project.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert project_key(key) == key.read_bytes(), "the next start uses the same key"


async def test_the_same_archive_is_the_same_version_and_the_same_images_are_the_same_items(p: Platform) -> None:
    files = {"a.dcm": canary(1), "b.dcm": canary(2)}
    archive = zipped(files)  # once: it holds the second it was made in
    first = await ingest(p, archive)
    again = await ingest(p, archive)
    assert first.result == again.result == {"dataset": "brain", "version": 1}
    assert zipped(files) not in kept(p).values(), "an archive uploaded again is erased again"
    packed = await ingest(p, tarred({f"./other/{name}": data for name, data in files.items()}, "w:gz"))
    assert packed.result == {"dataset": "brain", "version": 2}
    assert (await view(p, version=1)).content == (await view(p)).content, "names and packing play no part"
    assert (await ingest(p, tarred(files), "liver")).result == {"dataset": "liver", "version": 1}
    await p.wait(DatasetVersionCreated, lambda found: found.data.dataset == "liver")
    assert len(p.emitted(DatasetVersionCreated)) == 3
    assert [record["sub"] for record in await p.audited("ingestion")].count("dataset.create") == 3
    with pytest.raises(Problem) as caught:
        await view(p, version=3)
    assert caught.value.code == "request.not_found"


def rng_array(rng: random.Random, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(rng.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)


async def test_a_published_set_keeps_its_splits_labels_and_patients(p: Platform, tmp_path: Path) -> None:
    layouts.mura(tmp_path)
    pictures = sorted(path for path in tmp_path.rglob("*.png"))
    for seed, path in enumerate(pictures, start=10):
        path.write_bytes(png(min(seed, 12)))  # two of them are one picture
    archive = zipped({path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in sorted(tmp_path.rglob("*.*")) if path.is_file()})
    answer = await ingest(p, archive, "mura")
    assert answer.result == {"dataset": "mura", "version": 1}, answer.problem
    shown = await view(p, "mura")
    assert (shown.samples, shown.labels, shown.rejected) == (4, {"abnormal": 2, "normal": 2}, {})
    document = json.loads(await load(p.stores.kept, shown.content))
    assert document["about"]["layout"] == "mura"
    assert "Stanford" in document["about"]["licence"]
    found = document["items"]
    assert sorted((one["split"], one["label"], one["labels"]["region"]) for one in found) == [
        ("train", "abnormal", "SHOULDER"),
        ("train", "abnormal", "SHOULDER"),
        ("train", "normal", "WRIST"),
        ("valid", "normal", "HAND"),
    ]
    assert len({one["group"] for one in found}) == 2, "two patients, under pseudonyms"
    assert not [body for body in [shown.content.sha256, json.dumps(document)] if "patient0" in body]
    assert leaks(list(kept(p).values())) == set()
    assert sorted(sum(held_out(Item.model_validate(one, extra="ignore")) == (one["split"] == "valid") for one in found) for _ in "x") == [4]

    def split(version: int = 1, *, dataset: str = "mura", who: str = "li", **asked: Any) -> Awaitable[OperationFinished]:
        return p.send(SplitVersion(dataset=dataset, version=version, **asked), p.person(who, "researcher"))

    assert code(await split()) == "ingestion.split_published"
    assert code(await split(2)) == "request.not_found"
    assert code(await split(ratios=(1, 0, 0))) == "request.invalid"
    assert not (await split(who="somebody")).succeeded, "a version is its maker's alone"
    for _ in range(2):
        answer = await split(anew=True, ratios=(1, 0, 1))
        assert answer.result == {"dataset": "mura", "version": 2}, answer.problem
    anew = json.loads(await load(p.stores.kept, (await view(p, "mura")).content))
    assert anew["about"] == document["about"]
    sides = {(one["group"], one["split"]) for one in anew["items"]}
    assert len(sides) == 2
    assert {split for _, split in sides} == {"train"}, "one picture stands under both patients: nothing may come between"
    assert [record["detail"]["from"] for record in await p.audited("ingestion") if "from" in record.get("detail", {})] == [1]

    # An array of images; and a set at fault is refused by code, without a name of a file, and its archive is erased.
    layouts.medmnist(tmp_path / "m")
    packed = zipped({"pneumoniamnist.npz": (tmp_path / "m/pneumoniamnist.npz").read_bytes()})
    assert code(await ingest(p, packed, "flat")) == "ingestion.nothing_accepted", "of one value each: refused by the rules of quality"
    rng = random.Random(1)
    layouts.medmnist(tmp_path / "m", fill=lambda shape: rng_array(rng, shape))
    npz = (tmp_path / "m/pneumoniamnist.npz").read_bytes()
    assert (await ingest(p, zipped({"pneumoniamnist.npz": npz}), "pneumonia")).result == {"dataset": "pneumonia", "version": 1}
    content = await items(p, (await view(p, "pneumonia")).content)
    assert Counter((one["split"], one["label"]) for one in content) == {
        ("train", "normal"): 3, ("train", "pneumonia"): 3, ("val", "normal"): 1, ("val", "pneumonia"): 1,
        ("test", "normal"): 2, ("test", "pneumonia"): 1,
    }  # fmt: skip
    with np.load(io.BytesIO(npz)) as arrays:
        expected = {image.tobytes() for split in ("train", "val", "test") for image in arrays[f"{split}_images"]}
    taken = [reading.pixels(reading.read(await load(p.stores.kept, ObjectRef(**one["object"])))) for one in content]
    assert {(pixels * 255).round().astype("uint8").tobytes() for pixels in taken} == expected, "each row of each array"

    # Volumes with their masks, and colour: in their own formats, without identity.
    layouts.decathlon(tmp_path / "d")
    layouts.ctspine1k(tmp_path / "d/spine")
    for name, count in (("Task09_Spleen", 3), ("spine/CTSpine1K", 4)):
        files = {path.relative_to(tmp_path / "d").as_posix(): path.read_bytes() for path in (tmp_path / "d" / name).rglob("*.*")}
        assert (await ingest(p, zipped(files), "volumes")).result, name
        found = await items(p, (await view(p, "volumes")).content)
        assert len(found) == count
        assert {one["object"]["media_type"] for one in found} == {"application/x-nifti"}
        pairs = [one for one in found if one["split"] != "test" and one["kind"] == "volume"]
        assert pairs
        assert all([file["role"] for file in one["files"]] == ["image", "mask"] for one in pairs)
        for one in pairs:
            for file in one["files"]:
                assert (await load(p.stores.kept, ObjectRef(**file["object"])))[:2] == b"\x1f\x8b"
    for flag, classes, media_type in (("pathmnist", 9, "image/png"), ("organmnist3d", 11, "application/x-npy")):
        layouts.medmnist(tmp_path / "m", flag, classes=classes, fill=lambda shape: rng_array(rng, shape))
        assert (await ingest(p, zipped({f"{flag}.npz": (tmp_path / f"m/{flag}.npz").read_bytes()}), flag)).result, flag
        assert {one["object"]["media_type"] for one in await items(p, (await view(p, flag)).content)} == {media_type}

    (tmp_path / "MURA-v1.1/valid_labeled_studies.csv").write_text("MURA-v1.1/valid/XR_HAND/patient00002/study1_negative/,7\n")
    broken = zipped(
        {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.glob("MURA-v1.1/**/*") if path.is_file()}
    )
    refused = await ingest(p, broken, "broken")
    assert code(refused) == "ingestion.layout"
    assert "patient0" not in json.dumps(refused.problem)
    assert broken not in kept(p).values()


@pytest.mark.parametrize("method", ["put_file", "put", "delete"])
async def test_work_that_broke_off_ends_in_the_same_version(p: Platform, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Broken off while images are stored, before the version is committed, and after that before the archive is erased."""
    store = p.runtimes["ingestion"].ports.stores.kept
    real: Callable[..., Any] = getattr(store, method)
    calls = 0

    async def fails_once(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionResetError
        return await real(*arguments)

    archive = zipped({"a.dcm": canary(1), "b.dcm": canary(2)})
    ref = await p.stores.kept.put(archive)
    monkeypatch.setattr(store, method, fails_once)
    answer = await p.send(IngestArchive(dataset="brain", archive=ref), p.person("li", "researcher"))
    assert answer.result == {"dataset": "brain", "version": 1}, answer.problem
    for _ in range(300):
        if calls >= 2 and archive not in kept(p).values():
            break
        await asyncio.sleep(0.02)
    assert calls >= 2
    content = (await view(p)).content
    wanted = {content.sha256, *(one["object"]["sha256"] for one in await items(p, content))}
    assert set(kept(p)) == wanted, "all of the version, nothing else, and no archive"
    assert len(p.emitted(DatasetVersionCreated)) == 1


async def test_a_command_delivered_twice_has_one_effect(p: Platform) -> None:
    id_ = new_id()
    archive = zipped({"a.dcm": canary(1)})
    assert (await ingest(p, archive, id=id_)).result == (await ingest(p, archive, id=id_)).result
    assert len(p.emitted(DatasetVersionCreated)) == 1


async def test_originals_a_killed_run_left_are_gone_after_the_next_start(p: Platform, servers: RunningServers) -> None:
    settings = p.runtimes["ingestion"].settings
    left = settings.state / "originals" / "x" / "archive"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"names")
    async with running(SERVICE, settings):
        assert not left.exists()


WRONG_LABELS = {
    "unknown item": (b"item,label\na.dcm,x\nCanaryname.dcm,y\n", 3),
    "item twice": (b"item,label\na.dcm,x\n\nb.dcm,x\na.dcm,x\n", 5),
    "no column": (b"item,class\na.dcm,x\n", 1),
    "empty file": (b"", 1),
    "no cell": (b"item,label\na.dcm\n", 2),
    "no label": (b"item,label\na.dcm,\n", 2),
    "long label": (b"item,label\na.dcm," + b"x" * 65 + b"\n", 2),
    "itself": (b"item,label\nlabels.csv,x\n", 2),
    "one image, two labels": (b"item,label\na.dcm,x\ncopy.dcm,y\n", 3),
    "not UTF-8": ("item,label\na.dcm,肿瘤\n".encode("gb18030"), 1),
}


async def test_a_wrong_label_file_is_refused_by_row_and_nothing_is_stored(p: Platform) -> None:
    for name, (labels, row) in WRONG_LABELS.items():
        answer = await ingest(p, zipped({"a.dcm": canary(1), "b.dcm": canary(2), "copy.dcm": canary(1), "labels.csv": labels}))
        assert code(answer) == "ingestion.labels", name
        assert answer.problem
        assert answer.problem["params"]["row"] == row, name
        assert leaks([json.dumps(answer.problem, ensure_ascii=False).encode()]) == set()
        assert kept(p) == {}, name
    with pytest.raises(Problem):
        await view(p)
    assert p.emitted(DatasetVersionCreated) == []


async def test_copies_are_one_item_and_another_image_with_the_same_uid_overwrites_nothing(p: Platform) -> None:
    forged = reading.read(canary(1))
    forged.PixelData = bytes(reversed(forged.PixelData))
    files = {"a.dcm": canary(1), "b.dcm": canary(1), "c.dcm": reading.write(forged), "labels.csv": b"item,label\nb.dcm,x\nc.dcm,y\n"}
    assert (await ingest(p, zipped(files))).succeeded
    shown = await view(p)
    assert shown.rejected == {"duplicate": 1, "uid_conflict": 1}
    (item,) = await items(p, shown.content)
    assert item["label"] == "x"
    stored = reading.read(await load(p.stores.kept, ObjectRef(**item["object"])))
    assert stored.PixelData == reading.read(canary(1)).PixelData


async def test_images_that_may_not_be_kept_are_rejected_by_reason(p: Platform) -> None:
    def saved(image: Image.Image, kind: str) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind)
        return buffer.getvalue()

    colours = Image.merge("RGB", [picture(1), picture(2), picture(3)])
    files = {
        "grey.jpg": saved(Image.merge("RGB", [Image.linear_gradient("L")] * 3), "JPEG"),
        "colour.png": saved(colours, "PNG"),
        "deep.png": saved(Image.new("I;16", (64, 64), 9), "PNG"),
        "small.png": saved(picture(1, (16, 16)), "PNG"),
        "flat.png": saved(Image.new("L", (64, 64), 9), "PNG"),
        "broken.png": saved(picture(1), "PNG")[:600],
        "burned.dcm": canary(5, BurnedInAnnotation="YES"),
    }
    assert (await ingest(p, zipped(files))).succeeded
    reasons = {"not_greyscale", "unsupported_image", "too_small", "constant_image", "unreadable", "burned_in"}
    assert (await view(p)).rejected == dict.fromkeys(reasons, 1)
    only = await ingest(p, zipped({"colour.png": files["colour.png"], "burned.dcm": files["burned.dcm"]}), "none")
    assert code(only) == "ingestion.nothing_accepted"
    assert only.problem
    assert only.problem["params"]["reasons"] == "burned_in 1, not_greyscale 1"


async def test_what_is_no_archive_of_images_is_refused_and_left_where_it_is(p: Platform) -> None:
    package = zipped({"medmesh.toml": b"", "a.dcm": canary(1)})
    table = zipped({"weights.npy": b"\x93NUMPY"})
    for data, expected in (
        (package, "ingestion.archive_unsafe"),
        (table, "ingestion.nothing_accepted"),
        (b"no archive", "ingestion.archive_unreadable"),
    ):
        assert code(await ingest(p, data)) == expected
        assert list(kept(p).values()) == [data], "it may be somebody else's"
        await p.stores.kept.delete(next(iter(kept(p))))
    missing = IngestArchive(dataset="brain", archive=ObjectRef(sha256="0" * 64, bytes=1))
    assert code(await p.send(missing, p.person("li", "researcher"))) == "objects.missing"
    assert code(await p.send(missing, p.person("wu", "annotator"))) == "access.denied"


LIMITS = Limits(files=5, bytes=200_000, ratio=200, slack=0)


def linked() -> bytes:
    info = zipfile.ZipInfo("a.dcm")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(zipped({"a": b"abc"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


NOISE = random.Random(1).randbytes(150_000)


@pytest.mark.parametrize(
    ("archive", "expected"),
    [
        (zipped({"zeros": b"\0" * 190_000}, zipfile.ZIP_DEFLATED), "too_large"),
        (tarred({"zeros": b"\0" * 190_000}, "w:gz"), "too_large"),
        (zipped({"a": NOISE, "b": NOISE}), "too_large"),
        (tarred({"a": NOISE, "b": NOISE}), "too_large"),
        (zipped({str(n): b"x" for n in range(6)}), "too_large"),
        (tarred({str(n): b"x" for n in range(6)}), "too_large"),
        (zipped({"../a.dcm": b"x"}), "unsafe"),
        (zipped({"a/../../b.dcm": b"x"}), "unsafe"),
        (zipped({"/etc/cron.d/a": b"x"}), "unsafe"),
        (zipped({"C:a.dcm": b"x"}), "unsafe"),
        (zipped({"..\\a.dcm": b"x"}), "unsafe"),
        (tarred({"../a.dcm": b"x"}), "unsafe"),
        (tarred({"/a.dcm": b"x"}, "w:gz"), "unsafe"),
        (linked(), "unsafe"),
        (encrypted(), "unsafe"),
        (tarred({"a": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "unsafe"),
        (tarred({"a": b""}, type=tarfile.LNKTYPE, linkname="/etc/passwd"), "unsafe"),
        (tarred({"a": b""}, type=tarfile.CHRTYPE), "unsafe"),
        (zipped({"a": b"x"}, zipfile.ZIP_BZIP2), "unsafe"),
        (zipped({"harmless.dcm": zipped({"a": b"x"})}), "unsafe"),
        (zipped({"harmless.dcm": tarred({"a": b"x"})}), "unsafe"),
        (tarred({"harmless.dcm": gzip.compress(b"x")}), "unsafe"),
        (tarred({"a": b"x", "./a": b"y"}), "unsafe"),
        (tarred({"a": NOISE})[:100_000], "unreadable"),
        (tarred({"a": b"x", "b": b"y"})[:1024], "unreadable"),
        (tarred({"a": NOISE}, "w:gz")[:-20], "unreadable"),
        (b"", "unreadable"),
    ],
)
def test_bombs_and_what_leads_out_are_refused(tmp_path: Path, archive: bytes, expected: str) -> None:
    with pytest.raises(Problem) as caught:
        _unpacked(tmp_path, archive)
    assert caught.value.code == f"ingestion.archive_{expected}"
    assert not (tmp_path.parent / "a.dcm").exists()


def test_a_bomb_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tarred({"zeros": b"\0" * 30_000_000}, "w:gz")
    with pytest.raises(Problem):
        _unpacked(tmp_path, bomb)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"], "nothing is left, and nothing had a name"
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: (dir / "plain").open("w+b"))
    with pytest.raises(Problem):
        _unpacked(tmp_path, bomb)
    assert (tmp_path / "plain").stat().st_size <= LIMITS.bytes


def test_damage_of_any_kind_is_said_to_be_so(tmp_path: Path) -> None:
    """Never another error, which would be tried again and again; never a file less without a word."""
    chance = random.Random(7)
    files = {"a": b"first file " * 40, "日本/b": b"second file"}
    codes = []
    for number in range(400):
        data = bytearray([zipped(files, zipfile.ZIP_DEFLATED), tarred(files), tarred(files, "w:gz")][number % 3])
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            _unpacked(folder, bytes(data[: chance.choice((len(data), chance.randrange(len(data))))]))
        except Problem as problem:
            codes.append(problem.code)
    assert len(codes) > 200
    assert {code.rpartition("_")[0] for code in codes} <= {"ingestion.archive", "ingestion.archive_too"}


@pytest.mark.parametrize("code", ["utf-8", "gb18030"])
def test_names_are_read_as_macos_and_chinese_windows_write_them(tmp_path: Path, code: str) -> None:
    name = "影像/甲.dcm".encode(code)
    placeholder = "x" * len(name)
    (found,) = _unpacked(tmp_path, zipped({placeholder: b"x"}).replace(placeholder.encode(), name))
    assert found == "影像/甲.dcm"


def _unpacked(folder: Path, archive: bytes) -> list[str]:
    """The names of an archive's files, each read to its end."""
    (folder / "archive").write_bytes(archive)
    with opened_archive(folder / "archive", LIMITS) as source:
        for name in source.names:
            with source.open(name) as file:
                file.read()
        return list(source.names)


COUNTS = Descriptor(dataset="brain", version=1, modality="MR", samples=40, patients=None, labels={"tumour": 20, "none": 20})


async def test_a_hospital_publishes_counts_but_none_of_a_few(p: Platform) -> None:
    renji = p.hospital("renji")
    for few in (
        {"samples": 4},
        {"patients": 1},
        {"labels": {"tumour": 36, "none": 4}},
        {"labels": {"tumour": 0}},
        {"patients": -1},
        {"diseases": {"ICD10//I21": 4}},
    ):
        refused = await p.send(PublishDescriptor(descriptor=COUNTS.model_copy(update=few)), renji)
        assert code(refused) == "ingestion.small_cell"
    assert code(await p.send(PublishDescriptor(descriptor=COUNTS.model_copy(update={"version": 0})), renji)) == "request.invalid"
    assert code(await p.send(PublishDescriptor(descriptor=COUNTS), p.person("li", "researcher"))) == "access.denied"
    assert p.emitted(DescriptorPublished) == []

    hidden = COUNTS.model_copy(update={"samples": 5, "labels": {"tumour": None, "none": 5}, "image_size": (64, 64)})
    assert (await p.send(PublishDescriptor(descriptor=hidden), renji)).succeeded
    assert (await p.send(PublishDescriptor(descriptor=hidden), renji)).succeeded, "again is harmless"
    assert code(await p.send(PublishDescriptor(descriptor=COUNTS), renji)) == "ingestion.descriptor_changed"
    assert (await p.send(PublishDescriptor(descriptor=COUNTS), p.hospital("ruijin"))).succeeded, "each hospital has its own"
    event = (await p.wait(DescriptorPublished, lambda found: found.data.hospital == "renji")).data
    assert event.descriptor == hidden
    listed = await p.ask(ListDescriptors(), Catalogue, p.person("li", "researcher"))
    assert [(entry.hospital, entry.descriptor) for entry in listed.descriptors] == [("ruijin", COUNTS), ("renji", hidden)], "newest first"
    await p.wait(DescriptorPublished, lambda found: found.data.hospital == "ruijin")
    assert len(p.emitted(DescriptorPublished)) == 2
    done = [record for record in await p.audited("ingestion") if record["sub"] == "catalogue.publish" and record["out"] == 0]
    assert [record["entities"][0]["id"] for record in done] == ["renji/brain", "ruijin/brain"]


async def test_the_catalogue_is_searched_by_what_a_researcher_looks_for(p: Platform) -> None:
    renji, ruijin, li = p.hospital("renji"), p.hospital("ruijin"), p.person("li", "researcher")
    volumes = {"dataset": "lung_ct", "modality": "volume:CT", "samples": 200, "patients": 90, "labels": {"Nodule": 100, "none": None}}
    made = [
        (renji, COUNTS.model_copy(update={"diseases": {"ICD10//I63": 12, "ICD10//J18": 5}})),
        (renji, COUNTS.model_copy(update=volumes | {"diseases": {"ICD10//C34": 60}})),
        (ruijin, COUNTS.model_copy(update={"dataset": "few", "samples": None})),
    ]
    for hospital, told in made:
        assert (await p.send(PublishDescriptor(descriptor=told), hospital)).succeeded

    async def found(**asked: Any) -> set[str]:
        listed = await p.ask(ListDescriptors(**asked), Catalogue, li)
        return {f"{one.hospital}/{one.descriptor.dataset}" for one in listed.descriptors}

    brain, lung, few = "renji/brain", "renji/lung_ct", "ruijin/few"
    assert await found() == {brain, lung, few}
    assert await found(disease="j18.9") == {brain}, "a descriptor has categories"
    assert await found(disease="C3") == {lung}
    assert await found(disease="%") == await found(disease="18") == await found(disease="ICD10") == set()
    assert await found(modality="ct") == await found(modality="VOLUME") == {lung}
    assert await found(modality="volume:CT") == {lung}
    assert await found(modality="MR") == {brain, few}
    assert await found(labelled="nodule") == {lung}
    assert await found(labelled="none", hospital="renji") == {brain, lung}, "a hidden count is a label all the same"
    assert await found(hospital="ruijin") == {few}
    assert await found(name="G_C") == {lung}
    assert await found(samples=1) == {brain, lung}, "what is hidden counts as none"
    assert await found(patients=90) == {lung}
    assert await found(patients=91) == await found(modality="MR", disease="C34") == set()

    again = made[0][1].model_copy(update={"diseases": {"ICD10//I63": 13}})
    assert (await p.send(PublishDescriptor(descriptor=again), renji)).succeeded, "what is known of diseases is no part of the version"
    assert await found(disease="J18") == set()
    assert await found(disease="I63") == {brain}
    other = again.model_copy(update={"labels": {"tumour": 40}})
    assert code(await p.send(PublishDescriptor(descriptor=other), renji)) == "ingestion.descriptor_changed"
    told = [(r["act"], r["entities"][0]["id"]) for r in await p.audited("ingestion") if r["sub"] == "catalogue.publish" and r["out"] == 0]
    assert told == [("C", brain), ("C", lung), ("C", few), ("U", brain)]


def test_the_service_starts_without_the_learning_frameworks() -> None:
    heavy = "torch", "onnxruntime", "onnx", "mindspore", "fastapi"
    script = f"import sys, medmesh_ingestion.service; print(sorted(set(sys.modules) & set({heavy})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def ingested(p: Platform, who: str = "maker", organisation: str = "platform", dataset: str = "brain") -> DatasetView:
    """A version that somebody made."""
    actor = Actor("person", who, organisation, frozenset(("researcher",)), "pwd+otp", datetime.now(UTC))
    ref = await p.stores.kept.put(zipped({"a.dcm": canary(len(p.seen) + 1)}))
    done = await p.send(IngestArchive(dataset=dataset, archive=ref), person_token(p.identities["governance"], actor))
    version = (done.result or {})["version"]
    return await p.ask(GetDataset(dataset=dataset, version=version), DatasetView, p.service("training"))


async def seen_by(p: Platform, who: str, *roles: str, version: int = 0, emergency: Emergency | None = None, dataset: str = "brain") -> int:
    """The version somebody gets; 0 when there is none for them."""
    actor = Actor("person", who, "platform", frozenset(roles), "pwd+otp", datetime.now(UTC), emergency=emergency)
    token = person_token(p.identities["governance"], actor)
    try:
        return (await p.ask(GetDataset(dataset=dataset, version=version), DatasetView, token)).version
    except Problem as problem:
        if problem.code not in ("request.not_found", "access.denied"):
            raise
        return 0


async def given(p: Platform, approval: str, token: str, target: str, digest: str) -> str:
    """Send a grant; the event's id."""
    return await p.publish(ApprovalGranted(approval=approval, action="dataset.release", target=target, digest=digest, token=token))


async def dead(p: Platform, event: str) -> str:
    """The code under which it was given up."""
    async with asyncio.timeout(20):
        while True:
            for letter in (await p.ask(ListDeadLetters(service="ingestion"), DeadLetters, p.service("operator"))).letters:
                if letter.event == event:
                    return letter.code
            await asyncio.sleep(0.05)


async def test_a_version_is_its_makers_alone_until_somebody_else_agreed_to_exactly_it(p: Platform) -> None:
    first = await ingested(p)
    digest = str(first.release_digest)
    assert (first.maker, first.released) == ("person:maker@platform", False)
    assert await seen_by(p, "maker", "researcher") == 1
    for role in ("researcher", "annotator", "reviewer"):
        assert await seen_by(p, "zhao", role) == 0
    await given(p, "a-1", p.approval("dataset.release", "brain/1", digest, approval="a-1"), "brain/1", digest)
    released = (await p.wait(DatasetReleased)).data
    assert (released.dataset, released.version, released.content, released.approval) == ("brain", 1, first.content, "a-1")
    assert await seen_by(p, "zhao", "annotator") == 1
    second = await ingested(p)
    assert second.version == 2
    assert await seen_by(p, "maker", "researcher") == 2
    assert await seen_by(p, "zhao", "researcher") == 1, "the newest that was released"
    assert await seen_by(p, "zhao", "researcher", version=2) == 0
    (record,) = [r for r in await p.audited("ingestion") if r["sub"] == "dataset.release"]
    assert "person:checker@platform" in statements.unpack(record["approval"].pop("statements")), "what the approver signed is in the record"
    assert record["approval"] == {
        "id": "a-1",
        "target": "brain/1",
        "requester": "person:maker@platform",
        "approvers": "person:checker@platform",
        "digest": digest,
    }
    assert (record["type"]["code"], record["type"]["subcode"]) == ("110113", "110135")
    with pytest.raises(IntegrityError, match="released_with_approval"):
        async with p.runtimes["ingestion"].unit() as uow:
            await uow.execute(update(versions).values(released_at=uow.now).where(versions.c.version == 2))


async def test_a_grant_of_another_version_another_maker_expired_revoked_or_used_releases_nothing(p: Platform) -> None:
    mine, theirs = await ingested(p), await ingested(p, "li")
    digest, other = str(mine.release_digest), str(theirs.release_digest)
    assert digest != other
    for approval, token, target, code in (
        ("a-1", p.approval("dataset.release", "brain/1", other, approval="a-1"), "brain/1", "security.approval_other"),
        ("a-2", p.approval("dataset.release", "brain/2", digest, approval="a-2"), "brain/1", "security.approval_other"),
        ("a-3", p.approval("dataset.release", "brain/2", other, approval="a-3"), "brain/2", "security.approval_other"),
        ("a-4", p.approval("model.release", "brain/1", digest, approval="a-4"), "brain/1", "security.approval_other"),
        ("a-5", p.approval("dataset.release", "brain/1", digest, approval="a-5", minutes=-10), "brain/1", "security.approval_expired"),
        ("a-6", p.approval("dataset.release", "brain/9", digest, approval="a-6"), "brain/9", "request.not_found"),
        ("a-7", p.approval("dataset.release", "brain/x", digest, approval="a-7"), "brain/x", "request.not_found"),
        ("a-8", "nonsense", "brain/1", "security.approval_signature"),
    ):
        assert await dead(p, await given(p, approval, token, target, digest)) == code, approval
    await p.publish(ApprovalRevoked(approval="a-9", action="dataset.release", target="brain/1", digest=digest))
    late = p.approval("dataset.release", "brain/1", digest, approval="a-9")
    async with asyncio.timeout(20):
        while await spent(p) != {"a-9"}:
            await asyncio.sleep(0.02)
    assert await dead(p, await given(p, "a-9", late, "brain/1", digest)) == "approval.spent"
    assert p.emitted(DatasetReleased) == []
    good = p.approval("dataset.release", "brain/1", digest, approval="a-10")
    await given(p, "a-10", good, "brain/1", digest)
    await p.wait(DatasetReleased)
    assert await dead(p, await given(p, "a-10", good, "brain/1", digest)) == "approval.spent"
    again = p.approval("dataset.release", "brain/1", digest, approval="a-11")
    assert await dead(p, await given(p, "a-11", again, "brain/1", digest)) == "ingestion.released"
    await p.publish(ApprovalRevoked(approval="a-10", action="dataset.release", target="brain/1", digest=digest))
    assert await seen_by(p, "zhao", "researcher") == 1, "what was released stays released"


async def spent(p: Platform) -> set[str]:
    async with p.runtimes["ingestion"].unit() as uow:
        return {row.id for row in await uow.all(select(service_metadata().tables["approvals_spent"]))}


async def test_an_emergency_access_opens_what_is_its_organisations_and_nothing_else(p: Platform) -> None:
    await ingested(p, "maker", "renji")
    await ingested(p, "li", "ruijin", "heart")
    hour = datetime.now(UTC) + timedelta(hours=1)
    here, over = Emergency("e", "renji", hour), Emergency("e", "renji", datetime.now(UTC) - timedelta(seconds=1))
    assert await seen_by(p, "chen", "clinician") == 0
    assert await seen_by(p, "chen", "clinician", emergency=here) == 1, "also what was not released yet"
    assert await seen_by(p, "chen", "clinician", emergency=over) == 0
    assert await seen_by(p, "chen", "clinician", emergency=here, dataset="heart") == 0
    assert await seen_by(p, "zhao", "researcher", emergency=here) == 1
    counts = Descriptor(dataset="ct", version=1, modality="CT", samples=9, patients=9, labels={})
    for hospital in ("renji", "ruijin"):
        assert (await p.send(PublishDescriptor(descriptor=counts, within=True), p.hospital(hospital))).succeeded
    actor = Actor("person", "chen", "platform", frozenset(("clinician",)), "pwd+otp", emergency=here)
    listed = await p.ask(ListDescriptors(), Catalogue, person_token(p.identities["governance"], actor))
    assert [entry.hospital for entry in listed.descriptors] == ["renji"]

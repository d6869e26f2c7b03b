"""De-identification of small objects on one core: read, de-identify, write and verify, beside dicognito on the same files in turn."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from time import process_time

import pydicom
from dicognito.anonymizer import Anonymizer

from medmesh.imaging import reading
from medmesh.imaging.deidentify import Options, deidentify
from medmesh.imaging.verify import verify
from tests.bench.common import Measure, Run, medians

OBJECTS = int(os.environ.get("MEDMESH_BENCH_OBJECTS", "200"))
KEY = b"a key of the bench, 32 bytes long"


def measure(names: Sequence[str]) -> list[Measure]:
    """Every figure whose name begins with one of these."""
    return asyncio.run(_rate()) if not names or any("deid.rate_all_options".startswith(name) for name in names) else []


async def _rate() -> list[Measure]:
    with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
        files = _files(Path(place))
        every = Options.parse("dates=shift uids device institution patient private descriptors structured graphics")
        runs = (_ours(files, Options()), _ours(files, every), _dicognito(files), _parsed(files))
        basic, options, peer, parsed = await medians(*runs)
    return [
        Measure("deid.rate", basic, "objects/s", parsed, "dicognito, nothing verified", peer, goal=max(150.0, peer), better="more"),
        Measure("deid.rate_all_options", options, "objects/s", parsed, "dicognito, nothing verified", peer, better="more"),
    ]


def _files(folder: Path) -> list[Path]:
    """CT_small.dcm (262 elements, 39 KB) again and again, each with UIDs of its own."""
    source = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm")
    files = []
    for number in range(OBJECTS):
        source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = f"2.25.{10**30 + number}"
        files.append(folder / f"{number}.dcm")
        source.save_as(files[-1])
    return files


def _ours(files: Sequence[Path], options: Options) -> Run:
    async def once() -> float:
        began = process_time()
        for file in files:
            original = reading.read(file.read_bytes(), lazily=True)
            result = reading.write(deidentify(original, KEY, options).dataset)
            file.with_suffix(".out").write_bytes(result)
            assert not verify(original, result, kept=options.kept)
        return len(files) / (process_time() - began)

    return once


def _dicognito(files: Sequence[Path]) -> Run:
    async def once() -> float:
        anonymizer = Anonymizer(seed="bench")
        began = process_time()
        for file in files:
            dataset = pydicom.dcmread(file)
            anonymizer.anonymize(dataset)
            dataset.save_as(file.with_suffix(".out"))
        return len(files) / (process_time() - began)

    return once


def _parsed(files: Sequence[Path]) -> Run:
    """The floor: pydicom finds the elements and decodes none."""

    async def once() -> float:
        began = process_time()
        for file in files:
            len(pydicom.dcmread(BytesIO(file.read_bytes())))
        return len(files) / (process_time() - began)

    return once

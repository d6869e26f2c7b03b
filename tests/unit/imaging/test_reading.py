"""Reading real and broken files, stored pixels as numbers, and plain images as DICOM."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

from medmesh.errors import Problem
from medmesh.imaging import reading
from medmesh.imaging.deidentify import deidentify
from medmesh.quality.dicom import check
from medmesh.quality.rules import BLOCKING

PERSON = {"patient_id": "P-1", "patient_name": "张^三", "study_date": "20240131"}
UIDS = {"study_uid": "1.2.3.1", "series_uid": "1.2.3.2", "sop_uid": "1.2.3.3"}


def wrapped(image: Image.Image, **extra: str) -> bytes:
    return reading.wrap(image, **PERSON, **UIDS, modality="MR", extra=extra)


def grey(columns: int = 41, rows: int = 37) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (rows, columns), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("README.txt", "imaging.not_dicom"),
        ("zipMR.gz", "imaging.not_dicom"),
        ("no_meta.dcm", "imaging.not_dicom"),
        ("badVR.dcm", "imaging.unreadable"),
        ("MR_truncated.dcm", "imaging.unreadable"),
        ("nested_priv_SQ.dcm", "imaging.unreadable"),
        ("meta_missing_tsyntax.dcm", "imaging.unreadable"),
        ("rtplan.dcm", "imaging.no_pixels"),
        ("rtplan_truncated.dcm", "imaging.no_pixels"),
        ("test-SR.dcm", "imaging.no_pixels"),
        ("waveform_ecg.dcm", "imaging.no_pixels"),
        ("ExplVR_BigEndNoMeta.dcm", "imaging.no_pixels"),
    ],
)
def test_files_that_are_no_images_are_told_apart(folder: Path, name: str, code: str) -> None:
    with pytest.raises(Problem) as caught:
        reading.read((folder / name).read_bytes())
    assert caught.value.code == code


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "image_dfl.dcm", "MR_small_RLE.dcm"]
)
def test_images_in_every_transfer_syntax_are_read_without_a_word(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = reading.read((folder / name).read_bytes())
        values = reading.pixels(dataset)
    assert values.shape == (dataset.Rows, dataset.Columns) and values.dtype == np.float32
    assert 0 <= values.min() < values.max() <= 1
    assert not caplog.records


def test_one_image_is_the_same_in_every_encoding(folder: Path) -> None:
    names = ("MR_small", "MR_small_bigendian", "MR_small_implicit", "MR_small_RLE", "MR_small_padded")
    images = [reading.pixels(reading.read((folder / f"{name}.dcm").read_bytes())) for name in names]
    assert all((image == images[0]).all() for image in images)


def test_every_cut_ends_in_a_problem_or_an_image(folder: Path) -> None:
    data = (folder / "CT_small.dcm").read_bytes()
    codes = set()
    for end in range(0, len(data), 397):
        with pytest.raises(Problem) as caught:
            reading.read(data[:end])
        codes.add(caught.value.code)
    assert codes == {"imaging.not_dicom", "imaging.unreadable", "imaging.no_pixels"}


def test_random_damage_never_raises_anything_else(folder: Path) -> None:
    data, random = (folder / "MR_small.dcm").read_bytes(), np.random.default_rng(7)
    for _ in range(150):
        broken = bytearray(data)
        for position in random.integers(132, 1600, 6):
            broken[position] = random.integers(0, 256)
        with contextlib.suppress(Problem):
            dataset = reading.read(bytes(broken))
            reading.write(deidentify(dataset, b"k" * 32).dataset)
            reading.pixels(dataset)


def test_an_unreadable_value_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    data = wrapped(grey(), KVP="120.", Manufacturer="x").replace(b"DS\x04\x00120.", b"DS\x04\x00Zhao")
    damaged = wrapped(grey()).replace(b"US\x02\x00\x25\x00", b"US\x03\x00Zha", 1)
    assert data.count(b"Zha") == damaged.count(b"Zha") == 1
    caplog.set_level(logging.DEBUG)
    problems = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for content in (data, damaged):
            try:
                reading.read(content)
            except Problem as problem:
                problems.append(str(problem.document()) + repr(problem))
    assert len(problems) == 1 and "Zha" not in problems[0]
    assert not seen and "Zha" not in caplog.text


def test_small_files_cannot_ask_for_much_memory() -> None:
    huge = reading.parse(wrapped(grey()))
    huge.Rows = huge.Columns = 65535
    with pytest.raises(Problem, match="too large"):
        reading.read(reading.write(huge))


def test_a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = wrapped(Image.new("L", (2000, 2000)))
    length = 144 + int.from_bytes(plain[140:144], "little")
    meta, dataset = plain[:length], plain[length:]
    old = b"UI\x14\x001.2.840.10008.1.2.1\0"
    new = b"UI\x16\x001.2.840.10008.1.2.1.99"
    assert old in meta
    meta = meta.replace(old, new)
    meta = meta[:140] + (int.from_bytes(meta[140:144], "little") + 2).to_bytes(4, "little") + meta[144:]
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = meta + packer.compress(dataset) + packer.flush()
    assert reading.read(bomb).Rows == 2000
    monkeypatch.setattr(reading, "LARGEST", 1 << 20)
    with pytest.raises(Problem, match="data set is too large"):
        reading.read(bomb)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_wrap_then_read_gives_the_picture_back(mode: str) -> None:
    image = grey().convert(mode)
    dataset = reading.read(wrapped(image, InstitutionName="市立医院"))
    assert np.allclose(reading.pixels(dataset) * 255, np.asarray(image.convert("L")), atol=1e-4)
    assert (dataset.PatientID, str(dataset.PatientName), dataset.InstitutionName) == ("P-1", "张^三", "市立医院")
    assert (dataset.Modality, dataset.StudyDate, dataset.SOPInstanceUID) == ("MR", "20240131", "1.2.3.3")
    assert check(dataset) == []


def test_a_wrapped_file_is_a_dicom_file_and_always_the_same() -> None:
    data = wrapped(grey(41, 37))  # an odd number of pixels
    assert data == wrapped(grey(41, 37))
    assert data[:132] == b"\0" * 128 + b"DICM" and len(data) % 2 == 0
    dataset = reading.read(data)
    assert dataset.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert len(dataset.PixelData) == 41 * 37 + 1


def test_wrap_refuses_what_it_cannot_store() -> None:
    with pytest.raises(Problem) as caught:
        wrapped(Image.new("I;16", (40, 40)))
    assert caught.value.code == "imaging.unsupported_image"
    with pytest.raises(ValueError, match="keyword"):
        wrapped(grey(), Nonsense="1")


def grey_object(values: np.ndarray, *, stored: int, signed: bool, interpretation: str = "MONOCHROME2") -> Dataset:
    dataset = reading.parse(wrapped(Image.new("L", values.shape[::-1])))
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, stored, stored - 1, int(signed)
    dataset.PhotometricInterpretation = interpretation
    dataset.add_new(0x7FE00010, "OW", values.astype("<i2" if signed else "<u2").tobytes())
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.WindowCenter, dataset.WindowWidth = "2", "-1024", "40", "80"
    return reading.read(reading.write(dataset))


@pytest.mark.parametrize(
    ("stored", "signed", "values", "expected"),
    [
        (12, False, [[0, 4095, 1365]], [[0, 1, 1 / 3]]),
        (12, True, [[-2048, 2047, -683]], [[0, 1, 1 / 3]]),
        (16, False, [[0, 65535, 13107]], [[0, 1, 0.2]]),
    ],
)
def test_the_ends_of_the_stored_range_are_0_and_1(stored: int, signed: bool, values: list[list[int]], expected: list[list[float]]) -> None:
    array = np.array(values)
    assert np.allclose(reading.pixels(grey_object(array, stored=stored, signed=signed)), expected, atol=1e-6)
    inverse = grey_object(array, stored=stored, signed=signed, interpretation="MONOCHROME1")
    assert np.allclose(reading.pixels(inverse), 1 - np.array(expected), atol=1e-6)


@pytest.mark.parametrize("name", ["SC_rgb_rle.dcm", "examples_palette.dcm", "rtdose.dcm"])
def test_colour_and_several_frames_have_no_grey_pixels(folder: Path, name: str) -> None:
    with pytest.raises(Problem) as caught:
        reading.pixels(reading.read((folder / name).read_bytes()))
    assert caught.value.code == "imaging.not_greyscale"


def test_pixels_that_cannot_be_decoded_are_said_to_be_so(folder: Path) -> None:
    with pytest.raises(Problem) as caught:
        reading.pixels(reading.read((folder / "JPEG-lossy.dcm").read_bytes()))
    assert caught.value.code == "imaging.unreadable"


def test_quality_rules(folder: Path) -> None:
    good = reading.read(wrapped(grey()))
    assert check(good) == []
    broken = [check(reading.read(wrapped(image))) for image in (Image.new("L", (64, 64), 9), grey(31, 64), grey(64, 31))]
    assert broken == [["constant_image"], ["too_small"], ["too_small"]]
    good.Modality = ""
    good.HighBit = 6
    assert check(good) == ["missing_modality", "bits_inconsistent"]
    assert check(reading.read((folder / "SC_rgb_rle.dcm").read_bytes())) == ["not_greyscale"]
    assert check(reading.read((folder / "JPEG-lossy.dcm").read_bytes())) == ["unreadable_pixels"]


def test_quality_rules_speak_of_every_readable_image_in_known_codes(parsed: dict[str, Dataset]) -> None:
    checked = [check(dataset) for dataset in parsed.values() if "PixelData" in dataset]
    assert any(not codes for codes in checked)
    assert {code for codes in checked for code in codes} <= BLOCKING
    assert all(re.fullmatch(r"[a-z_]+", rule) for rule in BLOCKING)


def test_who_reads_does_not_load_what_downloads() -> None:
    names = ("requests", "tqdm", "urllib3")
    assert importlib.util.find_spec("requests"), "it is installed: others use it"
    program = f"import sys, medmesh.imaging.reading; print([n for n in {names} if n in sys.modules]); import requests"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

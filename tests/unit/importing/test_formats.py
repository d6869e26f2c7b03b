"""Files by their content: each format against another library, no word of the patient left, hostile ones refused with their place."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import struct
import wave
import zipfile
from typing import Any

import edfio
import nibabel
import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.unit.importing import making
from tests.unit.importing.making import EVERY, GOLDEN, NAME, NUMBER

from medmesh.errors import Problem
from medmesh.importing.formats import arrays, cleaned, edf, found, identity, nifti, tables, wav, wfdb
from medmesh.importing.formats.content import START, Content, inflated

MUTANTS = 60
WORDS = (NUMBER, NAME, "Zhang", "张三", "ADM7788", "Li_Si", "1951", "13800138000", "164889003")


def described(data: bytes) -> Content:
    form = found(data[:START])
    assert form is not None
    return form.describe(io.BytesIO(data), len(data))


@pytest.mark.parametrize("name", EVERY)
def test_a_file_is_known_by_its_bytes_and_cleaned_of_its_patient(name: str) -> None:
    data = EVERY[name]()
    before = described(data)
    form, after, made = cleaned(data)
    assert form.name == name.partition("-")[0].replace("nifti2", "nifti")
    assert before.identity, "the fixture is about somebody"
    assert not after.identity
    opened = inflated(made) if name != "npz" else b"".join(zipfile.ZipFile(io.BytesIO(made)).read(entry) for entry in ("image.npy",))
    for word in WORDS:
        for encoding in ("utf-8", "gb18030", "utf-16-le"):
            assert word.encode(encoding) not in opened, word
    assert cleaned(made)[2] == made, "cleaning what is clean changes nothing"
    assert {key: value for key, value in after.meta.items() if key not in ("encoding", "columns", "arrays")} == {
        key: value for key, value in before.meta.items() if key not in ("encoding", "columns", "arrays")
    }


@pytest.mark.parametrize("version", [1, 2])
def test_nifti_is_read_as_nibabel_reads_it(version: int) -> None:
    data = making.nifti(version)
    peer: Any = (nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image).from_bytes(gzip.decompress(data))
    values, header = nifti.decode(data)
    assert np.array_equal(values, peer.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(header.affine, peer.affine, atol=1e-6)
    np.testing.assert_allclose(header.spacing, peer.header.get_zooms(), rtol=1e-6)
    assert nifti.orientation(header.affine) == "".join(nibabel.aff2axcodes(peer.affine)) == "AL"[:0] + described(data).meta["orientation"]
    clean = cleaned(data)[2]
    again: Any = type(peer).from_bytes(gzip.decompress(clean))
    assert np.array_equal(again.get_fdata(), peer.get_fdata()) and np.array_equal(again.affine, peer.affine) and not again.header.extensions


def test_nifti_geometry_from_quaternions_big_endian_and_scaled() -> None:
    dice = np.random.default_rng(11)
    for turn in range(20):
        values = dice.integers(0, 99, (3, 4, 2)).astype(">i2" if turn % 2 else "<i2")
        axes, _ = np.linalg.qr(dice.normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = axes * dice.uniform(0.5, 4, 3)
        affine[:3, 3] = dice.normal(size=3) * 50
        sheared = affine.copy()
        sheared[:3, :3] = affine[:3, :3] @ (np.eye(3) + 0.6 * np.triu(dice.normal(size=(3, 3)), 1))
        assert nifti.orientation(sheared) == "".join(nibabel.aff2axcodes(sheared))
        header = nibabel.Nifti1Header(endianness=">" if turn % 2 else "<")
        image = nibabel.Nifti1Image(values, None, header)
        image.set_qform(affine, code=1)
        image.set_sform(None, code=0)
        image.header.set_slope_inter(0.5, -3)
        raw = bytearray(image.to_bytes())
        peer: Any = nibabel.Nifti1Image.from_bytes(bytes(raw))
        made, ours = nifti.decode(bytes(raw))
        np.testing.assert_allclose(ours.affine, peer.affine, atol=1e-4)
        np.testing.assert_allclose(made, peer.get_fdata(), atol=1e-4)
        assert nifti.orientation(ours.affine) == "".join(nibabel.aff2axcodes(peer.affine))


@pytest.mark.parametrize("form", [8, 16, 24, 32, 61, 80, 160, 212, 310, 311])
def test_wfdb_signals_are_read_as_the_wfdb_package_reads_them(form: int) -> None:
    one = GOLDEN[str(form)]
    header = wfdb.read_header(one["header"].encode())
    values, _ = wfdb.decode(header, {f"r{form}.dat": base64.b64decode(one["data"])})
    wanted = np.array([[np.nan if value is None else value for value in row] for row in one["values"]], dtype=np.float64)
    if form == 8:  # differences begin at the first line's initial value, 5 and -9
        wanted = wanted - wanted[:, :1] + values[:, :1]
    np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-5, equal_nan=True)


def test_wfdb_annotations_lose_their_texts_and_nothing_else() -> None:
    data = base64.b64decode(GOLDEN["annotations"])
    assert list(wfdb.read_annotations(data)) == [(5, "N", ""), (1500, "V", "Zhang San"), (1_000_000, "+", "(AFIB")]
    assert list(wfdb.read_annotations(wfdb.clean_annotations(data))) == [(5, "N", ""), (1500, "V", ""), (1_000_000, "+", "(AFIB")]
    with pytest.raises(Problem, match="annotations"):
        list(wfdb.read_annotations(data[:-2]))


def test_wfdb_comments_that_are_labels_are_kept_as_labels() -> None:
    assert dict(described(making.record()["r212.hea"]).labels) == {"age": 63, "sex": "F", "dx": "164889003"}


def test_edf_is_read_as_edfio_reads_it_before_and_after() -> None:
    data = making.edf()
    clean = cleaned(data)[2]
    peer, again = edfio.read_edf(io.BytesIO(data)), edfio.read_edf(io.BytesIO(clean))
    values, _ = edf.decode(data)
    for ours, theirs, kept in zip(values, peer.signals, again.signals, strict=True):
        np.testing.assert_allclose(ours, theirs.data, rtol=1e-5, atol=1e-4)
        assert np.array_equal(theirs.data, kept.data)
    assert again.patient.name == "X" and again.recording.investigator_technician_code == "X"
    assert [note.text for note in again.annotations] == ["Sleep stage W", "XXXXX coughs"]
    assert described(data).meta["rates"] == [250, 10]


def test_bdf_has_three_bytes_a_sample() -> None:
    values = np.array([-8388608, -1, 0, 8388607])
    fields = [
        b"Fz".ljust(16),
        b" " * 80,
        b"uV".ljust(8),
        b"-8388608",
        b"8388607 ",
        b"-8388608",
        b"8388607 ",
        b" " * 80,
        b"4".ljust(8),
        b" " * 32,
    ]
    head = b"\xffBIOSEMI" + b"X X X X".ljust(80) + b" " * 80 + b"01.01.8500.00.00" + b"512".ljust(8) + b"24BIT".ljust(44) + b"1".ljust(8)
    data = head + b"1".ljust(8) + b"1".ljust(4) + b"".join(fields) + b"".join(int(v).to_bytes(3, "little", signed=True) for v in values)
    assert found(data) is edf.EDF
    np.testing.assert_allclose(edf.decode(data)[0][0], values, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_samples_are_those_of_the_standard_library(width: int) -> None:
    data = making.wav(width)
    with wave.open(io.BytesIO(data)) as file:
        raw = file.readframes(file.getnframes())
    numbers = [
        int.from_bytes(raw[at : at + width], "little", signed=width > 1) - (128 if width == 1 else 0) for at in range(0, len(raw), width)
    ]
    values, rate = wav.decode(data)
    np.testing.assert_allclose(values.T.ravel(), np.array(numbers) / 2 ** (8 * width - 1), rtol=1e-6)
    assert rate == 4000 and wav.decode(cleaned(data)[2])[0].tobytes() == values.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_png_pixels_stay_and_the_colour_is_told(mode: str) -> None:
    if mode == "I;16":
        made = io.BytesIO()
        Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(made, "PNG")
        data = made.getvalue()
    else:
        data = making.png(mode)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(cleaned(data)[2])) as after:
        assert np.array_equal(np.asarray(before.convert("RGBA")), np.asarray(after.convert("RGBA")))
        assert not after.text and not after.getexif()  # type: ignore[attr-defined]
    wanted = {"1": "grey", "L": "grey", "P": "palette", "RGB": "rgb", "RGBA": "rgba", "LA": "grey+alpha", "I;16": "grey"}[mode]
    assert described(data).meta["colour"] == wanted


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "RGB"}, {"mode": "CMYK"}, {"turned": 1}])
def test_jpeg_pixels_stay_upright(options: dict[str, Any]) -> None:
    data = making.jpeg(**options)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(cleaned(data)[2])) as after:
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(before)), np.asarray(ImageOps.exif_transpose(after)))
        assert set(after.getexif()) <= {0x0112}
        assert "comment" not in after.info


def test_npz_numbers_stay_and_text_goes() -> None:
    made = cleaned(making.npz())[2]
    assert list(arrays.decode(made)) == ["image"]
    assert np.array_equal(arrays.decode(made)["image"], np.load(io.BytesIO(making.npz()))["image"])


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8", ","), ("utf-8-sig", ";"), ("gb18030", ","), ("utf-16", "\t"), ("utf-8", "|")]
)
def test_tables_as_hospitals_write_them(encoding: str, delimiter: str) -> None:
    table = tables.read(io.BytesIO(making.table(encoding, delimiter)))
    assert table.dialect.delimiter == delimiter and table.rows == 2
    assert [column.name for column in table.columns if column.identifying] == ["姓名", "联系方式"]
    assert [column.type for column in table.columns] == ["text", "whole", "number", "text", "whole", "date"]
    assert [column.types["missing"] for column in table.columns] == [0, 1, 1, 0, 0, 0]
    rows = list(tables.rows(io.BytesIO(making.table(encoding, delimiter)), table.dialect))
    assert rows[0][2][3] == 'said "no",\nthen left' and (rows[1][0], rows[1][1]) == (2, 4)


def _nifti(at: int, form: str, *values: float) -> bytes:
    data = bytearray(making.nifti(packed=False))
    struct.pack_into(form, data, at, *values)
    return bytes(data)


def _bomb() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", making.npy(np.zeros(1 << 24, np.uint8)))
    data = bytearray(made.getvalue())
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, 200)  # it says that it is small
    return bytes(data)


def _promising() -> bytes:
    """An array whose header says less than lies there; the archive itself is sound."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("x.npy", making.npy(np.arange(9)).replace(b"(9,)", b"(8,)"))
    return made.getvalue()


def _header(text: str) -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nifti: no dimension": (_nifti(40, "<h", 0), "dim"),
    "nifti: a negative size": (_nifti(42, "<h", -3), "dim"),
    "nifti: more than memory": (_nifti(40, "<8h", 4, 32767, 32767, 32767, 9, 1, 1, 1), "dim"),
    "nifti: not a number": (_nifti(280, "<f", float("nan")), "sform"),
    "nifti: an infinite offset": (_nifti(108, "<f", float("inf")), "vox_offset"),
    "nifti: an unknown type": (_nifti(70, "<h", 7), "datatype"),
    "nifti: cut short": (making.nifti(packed=False)[:-9], "voxels"),
    "nifti: cut short, compressed": (making.nifti()[:-40], "compressed"),
    "npy: a pickle": (making.npy(np.arange(3)).replace(b"'<i8'", b"'|O' "), "numbers"),
    "npy: code": (_header("{'descr': '<i8', 'fortran_order': False, 'shape': (__import__('os').getpid(),)}\n"), "constants"),
    "npy: nested": (_header("(" * 5000 + ")" * 5000), "constants"),
    "npy: too large": (_header("{'descr': '<i8', 'fortran_order': False, 'shape': (9999999, 9999999)}\n"), "memory"),
    "npy: negative": (_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}\n"), "shape"),
    "npy: cut short": (making.npy(np.arange(30))[:-1], "values"),
    "npz: a bomb": (_bomb(), "entry"),
    "npz: a size that contradicts its shape": (_promising(), "entry"),
    "png: cut short": (EVERY["png"]()[:200], "chunk"),
    "png: a changed chunk": (EVERY["png"]().replace(b"IDAT", b"IDAU", 1), "checksum"),
    "jpeg: cut short": (making.jpeg()[:700], ""),
    "wav: longer than the file": (making.wav()[:-20], "RIFF"),
    "wav: no channel": (making.wav()[:22] + b"\0\0" + making.wav()[24:], "fmt"),
    "edf: records that are not there": (making.edf()[:-1], "records"),
    "edf: a count that is none": (making.edf()[:252] + b"9e9 " + making.edf()[256:], "signals"),
    "edf: infinite": (making.edf()[:244] + b"inf     " + making.edf()[252:], "duration"),
    "vcf: columns": (making.vcf() + b"chr1\t5\n", "record"),
    "vcf: a position": (making.vcf().replace(b"\t99\t", b"\tx9\t"), "POS"),
    "csv: a quote without end": (making.table() + b'"open,1,2,3,4,5\r\n', "quotes"),
    "csv: columns": (making.table() + b"1,2\r\n", "row 3"),
    "wfdb: lines": (making.record()["r212.hea"].replace(b" 2 360", b" 3 360"), "record line"),
    "text": (b"nothing in particular", "known format"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_broken_is_refused_with_its_place_and_no_value(name: str) -> None:
    data, place = HOSTILE[name]
    with pytest.raises(Problem) as refused:
        cleaned(data)
    assert place in refused.value.detail()
    assert not any(word in json.dumps(refused.value.document()) for word in WORDS)


@pytest.mark.parametrize("name", EVERY)
def test_mutants_are_taken_or_refused(name: str) -> None:
    data, dice = EVERY[name](), random.Random(name)
    refused = 0
    for _ in range(MUTANTS):
        mutant = bytearray(data)
        for _ in range(dice.choice((1, 1, 2, 8))):
            at = min(int(dice.expovariate(1 / 120)), len(data) - 1) if dice.random() < 0.7 else dice.randrange(len(data))
            match dice.randrange(4):
                case 0:
                    mutant[at : at + 1] = bytes((dice.choice((0, 1, 0x7F, 0x80, 0xFF)),))
                case 1:
                    mutant[at : at + 1] = bytes((dice.randrange(256),))
                case 2:
                    del mutant[at : at + dice.randrange(1, 9)]
                case 3:
                    mutant[at:at] = mutant[at : at + dice.randrange(1, 40)]
        try:
            _, after, made = cleaned(bytes(mutant))
        except Problem:
            refused += 1
            continue
        assert not after.identity and cleaned(made)[2] == made
    assert refused


def test_identity_that_cleaning_missed_refuses_the_file() -> None:
    before = Content("image", {}, (("COM", f"{NAME} {NUMBER}"),))
    assert identity.residue(before, b"...MRN0042337...", b"") == ["COM"]
    assert identity.residue(before, b"", "Zhang".encode("utf-16-le")) == ["COM"]
    assert identity.residue(Content("image", {}, (("COM", "张三"),)), b"", "张三".encode("gb18030")) == ["COM"]
    assert identity.residue(before, b"...MRN004...", b"...San...") == []
    form = found(making.png()[:START])
    assert form is not None
    with pytest.raises(Problem, match="COM"):
        identity.proven(form, before, making.png(), making.png(), Content("image", {}))

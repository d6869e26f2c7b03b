"""Files in every format, each about an invented patient."""

from __future__ import annotations

import base64
import io
import json
import struct
import wave
import zipfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import edfio
import nibabel
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

NAME, NUMBER = "Zhang^San", "MRN0042337"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "wfdb.json").read_text())


def nifti(version: int = 1, *, packed: bool = True, shape: tuple[int, ...] = (7, 6, 5)) -> bytes:
    values = np.random.default_rng(3).integers(-900, 1200, shape).astype(np.int16)
    affine = np.array([[0, -0.8, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1.0]])
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(values, affine)
    image.header["descrip"], image.header["aux_file"] = NAME.encode(), NUMBER.encode()
    image.header.set_xyzt_units("mm")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{NAME} {NUMBER}".encode()))
    plain = image.to_bytes()
    if not packed:
        return bytes(plain)
    import gzip

    made = io.BytesIO()
    with gzip.GzipFile(f"{NUMBER}.nii", "wb", fileobj=made, mtime=1_700_000_000) as file:
        file.write(plain)
    return made.getvalue()


def npy(values: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, values)
    return made.getvalue()


def npz() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy(np.arange(60, dtype=np.uint8).reshape(3, 4, 5)))
        archive.writestr("who.npy", npy(np.array([NAME, NUMBER])))
        archive.comment = NUMBER.encode()
    return made.getvalue()


def png(mode: str = "L") -> bytes:
    picture = Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 50, 4), dtype=np.uint8), "RGBA").convert(mode)
    said = PngInfo()
    said.add_text("Patient", NAME)
    said.add_text("Comment", NUMBER, zip=True)
    said.add_itxt("Description", "张三丰", zip=True)
    exif = Image.Exif()
    exif[0x010E] = NUMBER
    made = io.BytesIO()
    picture.save(made, "PNG", pnginfo=said, exif=exif)
    return made.getvalue() + NUMBER.encode()


def jpeg(mode: str = "L", turned: int = 6, **options: bool) -> bytes:
    picture = Image.fromarray(np.random.default_rng(5).integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((60, 50)).convert(mode)
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = f"{NAME} {NUMBER}", turned
    made = io.BytesIO()
    picture.save(made, "JPEG", exif=exif, comment=NUMBER.encode(), **options)
    return made.getvalue() + NUMBER.encode()


def wav(width: int = 2) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(4000)
        file.writeframes(np.random.default_rng(6).integers(0, 256, 2 * width * 99, dtype=np.uint8).tobytes())
    info = b"INFOIART" + struct.pack("<I", 10) + NUMBER.encode()
    data = made.getvalue() + b"LIST" + struct.pack("<I", len(info)) + info
    return b"RIFF" + struct.pack("<I", len(data) - 8) + data[8:]


def edf() -> bytes:
    dice = np.random.default_rng(7)
    signals = [edfio.EdfSignal(dice.normal(size=500) * 90, 250, label="EEG Fpz-Cz", physical_dimension="uV"),
               edfio.EdfSignal(dice.normal(size=20), 10, label="Temp", physical_dimension="degC")]  # fmt: skip
    patient = edfio.Patient(code=NUMBER, sex="F", birthdate=date(1951, 5, 2), name="Zhang_San")
    recording = edfio.Recording(startdate=date(2024, 3, 4), hospital_administration_code="ADM7788", investigator_technician_code="Li_Si")
    notes = [edfio.EdfAnnotation(0.5, 1, "Sleep stage W"), edfio.EdfAnnotation(1.25, None, "Zhang coughs")]
    made = io.BytesIO()
    edfio.Edf(signals, patient=patient, recording=recording, annotations=notes).write(made)
    return made.getvalue()


def record(form: int = 212) -> dict[str, bytes]:
    """A WFDB record's files."""
    one = GOLDEN[str(form)]
    first, _, rest = one["header"].partition("\n")
    header = f"{first} 12:30:00 02/05/1951\n{rest}# Age: 63\n# Sex: F\n# Dx: 164889003\n# {NAME} {NUMBER}\n"
    return {
        f"r{form}.hea": header.encode(),
        f"r{form}.dat": base64.b64decode(one["data"]),
        f"r{form}.atr": base64.b64decode(GOLDEN["annotations"]),
    }


def table(encoding: str = "utf-8", delimiter: str = ",") -> bytes:
    rows = [["姓名", "age", "hb", "note", "联系方式", "when"], ["张三", "63", "12.5", 'said "no",\nthen left', "13800138000", "2024-01-02"]]
    rows += [["李四", "NA", "", "plain", "13912345678", "2024-02-03 10:20"]]
    quoted = [delimiter.join('"' + field.replace('"', '""') + '"' for field in row) for row in rows]
    return ("\r\n".join(quoted) + "\r\n").encode(encoding)


def vcf() -> bytes:
    head = f"##fileformat=VCFv4.2\n##source=caller /home/{NUMBER}/x\n##contig=<ID=chr1,length=1000>\n##SAMPLE=<ID={NUMBER}>\n"
    columns = f"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t{NUMBER}\tZhangSan\n"
    return (head + columns + "chr1\t12\t.\tA\tG\t50\tPASS\t.\tGT\t0/1\t1/1\nchr1\t99\trs1\tAT\tA\t9\t.\t.\tGT\t0/0\t0/1\n").encode()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


EVERY = {
    "nifti": lambda: nifti(packed=False), "nifti-packed": nifti, "nifti2": lambda: nifti(2, packed=False), "npz": npz,
    "npy": lambda: npy(np.arange(12.0).reshape(3, 4)) + NUMBER.encode(), "png": png, "jpeg": jpeg, "wav": wav, "edf": edf, "csv": table,
    "vcf": vcf, "wfdb": lambda: record()["r212.hea"],
}  # fmt: skip
"""One of each, with an identity in every place that has room for one."""

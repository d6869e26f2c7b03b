"""One item as it came, as what may be kept of it: the one way in which a hospital's node and the platform's ingestion clean data.

DICOM is de-identified by the standard's profile and verified; a picture becomes a DICOM object first. Every other file loses what it says
of people, is read again to prove it, and is kept beside the item's name in one object (`medmesh.importing.stored`).
"""

from __future__ import annotations

import hashlib
import hmac
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps

from medmesh.canonical import canonical
from medmesh.errors import Problem
from medmesh.importing import stored
from medmesh.importing.formats import arrays, cleaned, edf, found, wfdb
from medmesh.importing.formats.arrays import NPY
from medmesh.importing.formats.content import START, THIS, Content, Format, unsupported
from medmesh.importing.formats.files import nameless_record
from medmesh.importing.formats.identity import residue
from medmesh.quality.rules import BLOCKING
from medmesh.text import as_text

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DICOM = "application/dicom"
GROUPS = {"nifti": ("volume", "OT"), "npy": ("volume", "OT"), "wfdb": ("signal", "ECG"), "edf": ("signal", "EEG"), "wav": ("signal", "AU")}
"""Which group of items a format's are, and the modality where nobody says another (PS3.3 C.7.3.1.1.1)."""
_PICTURES: dict[bytes, Literal["PNG", "JPEG"]] = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_LONGEST = 2**16 - 1  # Rows and Columns are 16 bits, PS3.3 C.7.6.3
_SURE = 6  # digits


@dataclass(frozen=True, slots=True)
class Project:
    """How a project, or a hospital, has its data cleaned.

    `key` makes pseudonyms; `options` are words as `Options.parse` takes them, `rules` the hospital's own for text in pixels (TOML, as
    `gate.read` takes it). `published`: whose they are is not known, and who brings a picture answers for the text in it. An item that
    breaks a rule of quality in `blocking` is to be kept out. With `volumes` a DICOM object of several frames is one.
    """

    key: bytes
    options: str = ""
    rules: str = ""
    published: bool = False
    blocking: frozenset[str] = BLOCKING
    volumes: bool = False


@dataclass(frozen=True, slots=True)
class Clean:
    """`source` names what it was made from, the same wherever that lies (secret: an original UID, or a hash); `uid` is the new UID of a
    DICOM object or series. `patient` is a pseudonym, `quality` the blocking rules it breaks, `said` the fields that told of somebody."""

    source: bytes
    patient: str
    modality: str
    data: bytes
    media_type: str = DICOM
    uid: str = ""
    item: str = ""
    quality: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


def is_image(start: bytes) -> bool:
    """Whether a file that begins so (132 bytes) is a DICOM file, a PNG or a JPEG."""
    return start[128:132] == b"DICM" or start.startswith(tuple(_PICTURES))


def clean(files: bytes | Mapping[str, bytes], project: Project, *, patient: str = "", modality: str = "") -> Clean:
    """What may be kept of one item: a file, or several by their names, the one that describes the others first.

    `patient` is whose it is, as the hospital knows them; a DICOM object says it itself. `modality` is what a file without one is of. Raises
    `Problem`: `imaging.*` and `formats.*` for what cannot be read or de-identified, `intake.residual` when something identifying was left,
    `intake.no_patient`, `intake.table`.
    """
    parts = {"": files} if isinstance(files, bytes) else dict(files)
    data = next(iter(parts.values()))
    picture = next((kind for magic, kind in _PICTURES.items() if data.startswith(magic)), None)
    form = found(data[:START])
    if project.published and form is not None and form.name == "csv":
        raise Problem("intake.columns_needed")
    if picture is None and (form is None or form.name == "dicom" or (project.published and form.name not in (*GROUPS, "npz"))):
        return _alone(data, project) if len(parts) == 1 else _series(list(parts.values()), project)
    if not project.published and not patient.strip():
        raise Problem("intake.no_patient")
    if picture is not None:
        return _alone(_wrapped(data, picture, project.key, patient.strip(), modality or "OT"), project, picture=data)
    assert form is not None
    return _file(form, parts, project, patient.strip(), modality)


def uncleaned(files: Mapping[str, bytes], item: str, modality: str = "") -> Clean:
    """The same item with nothing taken out of it, for who simulates with data of their own: as it is kept, `item` its name. Raises
    `Problem` (`formats.*`, `imaging.*`) for what is no volume, signal, sound or note."""
    data = next(iter(files.values()))
    form = found(data[:START])
    if form is None:
        if (text := as_text(data)) is None:
            raise Problem("formats.unknown", place=THIS)
        return Clean(item.encode(), "", "text:note", canonical({"item": item, "text": text}), "application/json", item=item)
    if form.name == "dicom":
        from medmesh.imaging import reading

        header = reading.read(data, lazily=True)
        group = "volume" if len(files) > 1 or reading.frame_count(header) > 1 else "image"
        patient, modality = str(header.get("PatientID") or ""), str(header.get("Modality"))
    else:
        form, files = (NPY, {"0": _only_array(data)}) if form.name == "npz" else (form, files)
        if form.name not in GROUPS:
            raise unsupported(f"files of the format {form.name}")
        (group, usual), patient = GROUPS[form.name], ""
        modality = modality or usual
    raw = stored.pack(stored.Stored(item, form.name, files))
    return Clean(item.encode(), patient, f"{group}:{modality}", raw, stored.MEDIA_TYPE, item=item)


def _alone(data: bytes, project: Project, picture: bytes | None = None) -> Clean:
    """One object that is no part of a volume here: where faces must go, what may show one cannot be judged by a slice."""
    from medmesh.imaging import reading
    from medmesh.imaging.deidentify import Options, faces

    original = reading.read(data, lazily=True)
    if Options.parse(project.options).faces and faces.may_show(original):
        raise Problem("imaging.face_alone")
    return _object(original, project, picture=picture)


def _object(
    original: Dataset, project: Project, *, picture: bytes | None = None, faceless: bool = False, meant: frozenset[str] = frozenset()
) -> Clean:
    """`faceless`: it is of a volume whose face was removed. Rules of quality in `meant` are broken on purpose."""
    from medmesh.imaging import reading
    from medmesh.imaging.deidentify import Options, deidentify, gate
    from medmesh.imaging.verify import verify
    from medmesh.quality import frames
    from medmesh.quality.dicom import check

    chosen = Options.parse(project.options)
    own = (*gate.read(project.rules), *gate.default()) if project.rules else None
    rules = gate.OPEN if picture is not None and project.published else own
    done = deidentify(original, project.key, chosen, rules=rules, faceless=faceless)
    result = reading.write(done.dataset)
    if verify(original, result, kept=chosen.kept):
        raise Problem("intake.residual")
    several = project.volumes and reading.frame_count(done.dataset) > 1
    broken = tuple((frames.check if several else check)(done.dataset, project.blocking - meant))
    source = f"sop\0{original.SOPInstanceUID}".encode() if picture is None else b"bytes\0" + picture
    modality = ("volume:" if several else "") + str(done.dataset.get("Modality") or "")
    return Clean(source, done.patient, modality, result, uid=done.sop_uid, item=_hash(done.sop_uid), quality=broken)


def _series(objects: Sequence[bytes], project: Project) -> Clean:
    """The objects of one DICOM series as one volume, without its face where that is asked for, each cleaned and verified as any other.
    Raises `Problem` (`intake.series`) too."""
    from medmesh.imaging import reading
    from medmesh.imaging.deidentify import Options, faces
    from medmesh.importing import defacing

    if Options.parse(project.options).faces and any(faces.may_show(reading.read(one, lazily=True)) for one in objects):
        originals = [reading.read(one, lazily=True) for one in objects]
        # a slice that lay in front of the face altogether is blank now, and that is no defect
        meant = [frozenset({"constant_image"} if changed else ()) for changed in defacing.of_series(originals)]
        made = [_object(one, project, faceless=True, meant=fine) for one, fine in zip(originals, meant, strict=True)]
    else:
        made = [_object(reading.read(one, lazily=True), project) for one in objects]
    whole = stacked([one.data for one in made], project.blocking)
    return replace(whole, quality=tuple(sorted({code for one in made for code in one.quality} | set(whole.quality))))


def stacked(objects: Sequence[bytes], blocking: frozenset[str] = BLOCKING) -> Clean:
    """The de-identified objects of one DICOM series, in any order, as one volume; equal objects make equal bytes. Raises `Problem`
    (`intake.series`) where they are not of one series, patient and modality."""
    from medmesh.imaging import reading
    from medmesh.quality.dicom import broken, slice_of, unstackable

    slices, belongs, names = [], set(), []
    for data in objects:
        header = reading.read(data, lazily=True)
        slices.append(slice_of(header))
        names.append(str(header.SOPInstanceUID))
        belongs.add((str(header.PatientID), str(header.get("Modality") or ""), str(header.SeriesInstanceUID)))
    if len(belongs) != 1:
        raise Problem("intake.series")
    patient, modality, uid = belongs.pop()
    wrong = {*broken(slices, blocking), *(one.code for one in unstackable(slices))}
    ordered = [data for _, data in sorted(zip(names, objects, strict=True))]
    raw = stored.pack(stored.Stored(series_item(uid), "dicom", {str(place): one for place, one in enumerate(ordered)}))
    source = b"series\0" + uid.encode()
    modality = f"volume:{modality}"
    return Clean(source, patient, modality, raw, stored.MEDIA_TYPE, uid=uid, item=series_item(uid), quality=tuple(sorted(wrong)))


def series_item(uid: str) -> str:
    """The name of the item that is the volume of a series, by its new UID."""
    return _hash(f"series {uid}")


def _hash(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def _wrapped(data: bytes, kind: str, key: bytes, patient: str, modality: str) -> bytes:
    """As DICOM, upright, without what else stood in the file; without a patient each image is a patient of its own."""
    from medmesh.imaging.reading import TINT, wrap

    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as opened:
            if max(opened.size) > _LONGEST:
                raise Problem("imaging.unsupported_image", mode="very large")
            image = ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Problem("imaging.unreadable", reason=type(error).__name__) from None
    if image.mode[:1] not in "1LIF" and np.ptp(np.asarray(image.convert("RGB")).astype(np.int16), axis=2).max() > TINT:
        raise Problem("imaging.not_greyscale")
    whose = b"image\0" + data if not patient else b"image\0" + patient.encode() + b"\0" + data
    number = int.from_bytes(hmac.digest(key, whose, "sha256")[:15], "big")  # PS3.5 §B.2
    study, series, sop = (f"2.25.{number << 8 | place}" for place in (1, 2, 3))
    return wrap(
        image,
        patient_id=patient,
        patient_name="",
        study_uid=study,
        series_uid=series,
        sop_uid=sop,
        modality=modality,
        study_date="",
        extra={},
        annotated=None,
    )


def _file(form: Format, parts: dict[str, bytes], project: Project, patient: str, modality: str) -> Clean:
    from medmesh.imaging.deidentify import Options, faces
    from medmesh.imaging.pseudonyms import pseudonym
    from medmesh.importing import defacing
    from medmesh.quality.inspecting import codes_of

    data = next(iter(parts.values()))
    if form.name == "csv":
        raise Problem("intake.columns_needed")
    if form.name == "npz":
        form, data = NPY, _only_array(data)
    if form.name not in GROUPS:
        raise unsupported(f"files of the format {form.name}")
    said = form.describe(io.BytesIO(data), len(data)).identity
    if form.name == "wfdb":
        made = nameless_record(data, {name: part for name, part in parts.items() if part is not data}, "record")
    else:
        _, content, one = cleaned(data)
        if form is NPY and content.kind != "volume":
            raise unsupported("arrays of fewer than three axes: a picture is a PNG, a signal says its rate")
        made = {"0": edf.standard(one) if form.name == "edf" else one}
    group, usual = GROUPS[form.name]
    who = pseudonym(patient, project.key)
    # Before a face goes: software that removes it need not do the same twice.
    source = b"\0".join((b"file", who.encode(), form.name.encode(), *(hashlib.sha256(one).digest() for one in made.values())))
    if group == "volume" and Options.parse(project.options).faces and not faces.modality_is_flat(modality or usual):
        if form.name != "nifti":
            raise Problem("imaging.face_failed", reason="an array does not say how a head lies in it; bring NIfTI or DICOM")
        made = {name: defacing.of_nifti(one, modality or usual) for name, one in made.items()}
    _prove(form, made, patient)
    item = hmac.new(project.key, source, hashlib.sha256).hexdigest()[:32]
    broken = tuple(code for code in codes_of(made) if code in project.blocking)
    raw = stored.pack(stored.Stored(item, form.name, made))
    names = tuple(dict.fromkeys(name for name, _ in said))
    return Clean(source, who, f"{group}:{modality or usual}", raw, stored.MEDIA_TYPE, item=item, quality=broken, said=names)


def _only_array(data: bytes) -> bytes:
    """The one array of numbers of an .npz, without its name."""
    found_ = arrays.decode(cleaned(data)[2])
    if len(found_) != 1:
        raise unsupported(f"an archive of {len(found_)} arrays: write the one that is meant as .npy")
    made = io.BytesIO()
    np.save(made, next(iter(found_.values())), allow_pickle=False)
    return made.getvalue()


def _prove(form: Format, made: Mapping[str, bytes], patient: str) -> None:
    """Beyond what the file said of somebody, which cleaning compared: the patient's number, and names in its words. Raises
    `intake.residual`."""
    from medmesh.text import find

    # A short number is in a header by chance: counts and ranges stand there too.
    whose = Content("", {}, (("patient", patient),) if patient and (not patient.isdigit() or len(patient) >= _SURE) else ())
    whole = next(iter(made.values()))
    if residue(whose, b"", form.text(whole)) or any(find(words, [patient] if patient else []) for words in _words(form, whole)):
        raise Problem("intake.residual")


def _words(form: Format, data: bytes) -> list[str]:
    """What of a cleaned file is words that somebody wrote."""
    if form.name == "wfdb":
        return [word for signal in wfdb.read_header(data).signals for word in (signal.label, signal.unit)]
    if form.name == "edf":
        return edf.labels(data)
    return []

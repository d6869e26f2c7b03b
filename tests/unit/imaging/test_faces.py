"""Faces: what counts as a head, what installed software may answer, and volumes that lose exactly what it says and nothing else."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset
from tests.plugged import install
from tests.unit.importing import making
from tests.unit.pipelines.test_series import AXIAL, SAGITTAL, series

from medmesh.errors import Problem
from medmesh.imaging.deidentify import Options, faces
from medmesh.imaging.reading import read, write
from medmesh.importing import stored
from medmesh.importing.cleaning import Clean, Project, clean
from medmesh.importing.formats import nifti
from medmesh.pipelines.loading import from_files
from medmesh_edge import doctor

KEY = b"the hospital's key, 32 bytes long"
WANTED = Project(KEY, "faces")
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def about(modality: str = "MR", body: str | None = None, region: str = "", pixels: bool = True) -> Dataset:
    dataset = Dataset()
    dataset.Modality = modality
    if body is not None:
        dataset.BodyPartExamined = body
    if region:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator = region, "SCT"
        dataset.AnatomicRegionSequence = [item]
    if pixels:
        dataset.PixelData = b"12"
    return dataset


@pytest.mark.parametrize(
    ("dataset", "shows"),
    [
        (about(body="HEAD"), True), (about("CT", "BRAIN"), True), (about("PT"), True), (about("NM"), True), (about("", None), True),
        (about(body=""), True), (about(body="SOMETHING NEW"), True), (about(body="CSPINE"), True), (about("PT", "WHOLEBODY"), True),
        (about(body="CHEST", region="69536005"), True), (about(body="HEAD", region="816094009"), True), (about(region="1"), True),
        (about(body="CHEST"), False), (about("CT", "chest abdomen"), False), (about(region="816094009"), False),
        (about("CT", "KNEE", "72696002"), False), (about("US", "HEAD"), False), (about("CR", "SKULL"), False), (about(pixels=False), False),
    ],
)  # fmt: skip
def test_what_is_not_known_to_show_no_face_counts_as_a_head(dataset: Dataset, shows: bool) -> None:
    assert faces.may_show(dataset) is shows


def test_the_option_is_a_word_and_declares_nothing_by_itself() -> None:
    assert str(Options.parse("faces patient")) == "patient faces" and Options.parse("faces") == Options(faces=True)
    assert Options.parse("faces").codes == ["113100"]


def head(**changed: Any) -> faces.Volume:
    values = np.random.default_rng(1).integers(-900, 900, (6, 9, 5)).astype(np.float32)
    return faces.Volume(values, np.diag([1.0, 2.0, 3.0, 1.0]), "MR")


def test_without_software_nothing_is_removed_and_that_is_said() -> None:
    with pytest.raises(Problem) as refused:
        faces.removed(head())
    assert refused.value.code == "imaging.face_no_software"
    assert "medmesh.deface" in refused.value.hint("en") and "medmesh.deface" in refused.value.hint("zh")


def test_a_mask_blanks_and_other_numbers_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "masks", "print('a tool talks')\nreturn volume.values > 500 if volume.modality == 'MR' else None")
    mine, mask = head(), head().values > 500
    made, changed = faces.removed(mine)
    assert (changed == mask).all() and (made[mask] == mine.values.min()).all() and (made[~mask] == mine.values[~mask]).all()
    # the next one is asked where the first is not made for it
    install(tmp_path, monkeypatch, "numbers", "return volume.values + (volume.values > 500) * (volume.spacing == (1, 2, 3))")
    made, changed = faces.removed(faces.Volume(mine.values, mine.affine, "CT"))
    assert (changed == mask).all() and (made == mine.values + mask).all()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return np.zeros((3, 3, 3), bool)", "another shape"),
        ("return np.zeros(volume.values.shape, bool)", "removed nothing"),
        ("return volume.values == volume.values.min()", "removed nothing"),  # the background alone
        ("return volume.values.copy()", "removed nothing"),
        ("return np.ones(volume.values.shape, bool)", "left nothing"),
        ("return np.full(volume.values.shape, 'a')", "neither"),
        ("return [[1], 'two', {}]", "ValueError|neither"),
        ("return volume.values * np.nan", "not finite"),
        ("return None", "none of what is installed"),
        ("raise RuntimeError('Zhang Qiming')", "RuntimeError"),
        ("sys.exit('usage: deface')", "SystemExit"),
        ("os.abort()", "without an answer"),
        ("import a_library_that_is_not_there", "ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_right_costs_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str) -> None:
    install(tmp_path, monkeypatch, body=body)
    with pytest.raises(Problem, match=reason) as refused:
        faces.removed(head())
    assert refused.value.code == "imaging.face_failed"
    assert "Zhang" not in str(refused.value), "its words may be anybody's"


def test_software_that_hangs_costs_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, body="import time\ntime.sleep(600)")
    monkeypatch.setattr(faces, "LONGEST", 1.0)
    with pytest.raises(Problem, match="longer than 1 seconds"):
        faces.removed(head())


def scan(shape: tuple[int, ...], axes: str = "RAS", slope: float = 1.0, packed: bool = False, kind: Any = np.int16) -> bytes:
    """Random voxels, never the least value but once; the axes point where `axes` says."""
    values = np.random.default_rng(5).integers(-500, 1500, shape).astype(kind)
    values.flat[0] = -600
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes))
    plain = nibabel.Nifti1Image(values, np.diag([1.5, 1.25, 2.0, 1.0]))
    made = plain.as_reoriented(turn)
    made.header.set_slope_inter(slope, 10.0 if slope != 1.0 else 0.0)
    raw = bytes(made.to_bytes())
    return gzip.compress(raw) if packed else raw


def volume_of(raw: bytes) -> Any:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)


@pytest.mark.parametrize(
    ("shape", "axes", "slope", "packed", "kind"),
    [
        ((6, 9, 5), "RAS", 1.0, False, np.int16),
        ((6, 9, 5), "LPS", 0.5, True, np.int16),
        ((6, 9, 5), "SAR", 1.0, False, np.float32),
        ((6, 9, 5), "PIR", 1.0, True, ">i2"),
        ((6, 9, 5, 3), "LAS", 0.5, False, np.int16),
    ],
)
def test_a_nifti_file_loses_what_lies_in_front_whatever_its_axes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], axes: str, slope: float, packed: bool, kind: Any
) -> None:
    install(tmp_path, monkeypatch)
    raw = scan(shape, axes, slope, packed, kind)
    made = clean(raw, WANTED, patient="P-7781", modality="MR")
    result = stored.unpack(made.data).files["0"]
    before, after = (nibabel.as_closest_canonical(volume_of(one)) for one in (raw, result))
    was, now = before.get_fdata(), after.get_fdata()
    assert (now[:, 6:] == was.min()).all() and np.ptp(was[:, 6:]) > 0
    assert (now[:, :6] == was[:, :6]).all()
    assert (volume_of(result).affine == volume_of(raw).affine).all() and volume_of(result).get_data_dtype() == volume_of(
        raw
    ).get_data_dtype()
    again = clean(raw, WANTED, patient="P-7781", modality="MR")
    assert (again.item, again.data) == (made.item, made.data)
    assert clean(raw, Project(KEY), patient="P-7781", modality="MR").item == made.item, "it is the same item, now without its face"


def test_new_values_are_stored_in_the_files_own_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, body="made = volume.values.copy()\nmade[0] = 123.4\nmade[1] = 1e9\nreturn made")
    values, header = nifti.decode(stored.unpack(clean(scan((6, 9, 5), slope=0.5), WANTED, patient="P").data).files["0"])
    assert np.abs(values[0] - 123.4).max() <= 0.25 and (values[1] == 32767 * 0.5 + 10).all() and header.stored == np.int16


def heads(turned: tuple[float, ...] = AXIAL, count: int = 9, **values: Any) -> list[bytes]:
    """A series of a head as a scanner sends it."""
    made = []
    for raw in series(turned, count, size=(33, 36)):
        dataset = read(raw)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        for name, value in values.items():
            setattr(dataset, name, value)
        made.append(write(dataset))
    return made


def cleaned(objects: list[bytes], project: Project = WANTED) -> Clean:
    return clean({f"name{number}": one for number, one in enumerate(objects)}, project)


def codes(raw: bytes) -> list[str]:
    return [item.CodeValue for item in read(raw).DeidentificationMethodCodeSequence]


@pytest.mark.parametrize(
    ("turned", "values"),
    [(AXIAL, {}), (SAGITTAL, {"BodyPartExamined": "HEAD"}), (CORONAL, {}), (AXIAL, {"PhotometricInterpretation": "MONOCHROME1"})],
)
def test_a_series_loses_what_lies_in_front_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turned: tuple[float, ...], values: dict[str, Any]
) -> None:
    install(tmp_path, monkeypatch)
    objects = heads(turned, **values)
    made = cleaned(list(reversed(objects)))
    files = stored.unpack(made.data).files
    assert made.quality == () and len(files) == 9, "slices that are blank now are no defect"
    for raw in files.values():
        assert codes(raw) == ["113100", "113102"] and read(raw).RecognizableVisualFeatures == "NO"
        assert b"KANARY" not in raw.upper() and b"P-1" not in raw
    whole = [from_files("dicom", {str(n): one for n, one in enumerate(some)}) for some in (objects, list(files.values()))]
    was, now = (nibabel.as_closest_canonical(nibabel.Nifti1Image(one.values, one.affine)).get_fdata() for one in whole)
    third = was.shape[1] // 3
    assert (now[:, -third:] == was.min()).all() and np.ptp(was[:, -third:]) > 0
    assert (now[:, :-third] == was[:, :-third]).all()


def test_what_shows_no_head_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, body="raise RuntimeError")
    made = stored.unpack(cleaned(heads(BodyPartExamined="CHEST")).data).files
    assert all(codes(raw) == ["113100"] and "RecognizableVisualFeatures" not in read(raw) for raw in made.values())
    assert codes(clean(heads(BodyPartExamined="CHEST")[0], WANTED).data) == ["113100"]
    assert clean(scan((6, 9, 5)), WANTED, patient="P", modality="US").patient
    assert cleaned(heads(), Project(KEY)).quality == (), "nobody asked for it"


def test_one_slice_that_says_something_else_makes_no_chest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    made = cleaned([*heads(BodyPartExamined="CHEST")[:8], heads()[8]])
    assert all(codes(raw) == ["113100", "113102"] for raw in stored.unpack(made.data).files.values())


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (heads()[0], "imaging.face_alone"),
        ({"a": heads()[0]}, "imaging.face_alone"),
        (making.png(), "imaging.face_alone"),
        (making.npy(np.arange(60.0).reshape(3, 4, 5)), "imaging.face_failed"),
        ({str(n): one for n, one in enumerate(heads()[:3] + heads()[5:])}, "imaging.face_failed"),  # slices are missing
        ({str(n): one for n, one in enumerate(heads(NumberOfFrames="1", Rows=0))}, "imaging.unreadable"),
    ],
)
def test_what_a_face_cannot_be_removed_from_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Any, code: str) -> None:
    install(tmp_path, monkeypatch)
    with pytest.raises(Problem) as refused:
        clean(files, WANTED, patient="P-7781", modality="MR")
    assert refused.value.code == code


def test_without_software_a_head_is_refused_in_every_format() -> None:
    for files in ({str(n): one for n, one in enumerate(heads())}, scan((6, 9, 5)), io.BytesIO(scan((6, 9, 5), packed=True)).getvalue()):
        with pytest.raises(Problem) as refused:
            clean(files, WANTED, patient="P-7781", modality="CT")
        assert refused.value.code == "imaging.face_no_software"


def test_the_node_says_when_what_it_needs_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._faces("patient") == []
    (missing,) = doctor._faces("faces")
    assert missing.level == 2 and "medmesh.deface" in missing.en and "medmesh.deface" in missing.zh
    install(tmp_path, monkeypatch, "ours")
    (there,) = doctor._faces("faces")
    assert there.level == 0 and "ours" in there.en

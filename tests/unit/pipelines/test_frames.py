"""Objects of several frames as volumes: every voxel where its frame's functional groups say, whatever the order and the transfer syntax."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)
from tests.frames import ENHANCED_CT, GREY_WORDS, cine, enhanced, file, items, packed
from tests.unit.pipelines.test_series import AXIAL, SAGITTAL, TILTED, field

from medmesh.contracts.data import VolumeSchema
from medmesh.errors import Problem
from medmesh.imaging.reading import read
from medmesh.importing.series import together
from medmesh.importing.sources import opened
from medmesh.pipelines.loading import from_files
from medmesh.pipelines.samples import sample
from medmesh.quality.frames import check
from medmesh.quality.inspecting import Inspection


def voxels(data: Any) -> np.ndarray:
    """Where each voxel lies, in DICOM's millimetres to the left, posterior and superior."""
    at = np.stack(np.meshgrid(*(np.arange(size) for size in data.values.shape), indexing="ij"), axis=-1)
    return (at @ data.affine[:3, :3].T + data.affine[:3, 3]) * [-1, -1, 1]


@pytest.mark.parametrize("turned", [AXIAL, SAGITTAL, TILTED])
@pytest.mark.parametrize("shared", [True, False])
def test_every_voxel_lies_where_its_frame_says(turned: tuple[float, ...], shared: bool) -> None:
    made = from_files("dicom", {"0": file(enhanced(turned, shared=shared))})
    assert made.values.shape == (40, 34, 9) and made.unit == "US"
    np.testing.assert_allclose(made.values, field(voxels(made)), atol=0.13)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless],
    ids=lambda one: one.name,
)
def test_in_every_transfer_syntax_there_is_a_decoder_for_it_is_the_same(syntax: pydicom.uid.UID) -> None:
    whole = from_files("dicom", {"0": file(enhanced())})
    dataset = enhanced()
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
    made = from_files("dicom", {"0": file(packed(dataset, syntax))})
    np.testing.assert_array_equal(made.values, whole.values)
    np.testing.assert_array_equal(made.affine, whole.affine)  # type: ignore[arg-type]


@pytest.mark.parametrize("turned", [AXIAL, SAGITTAL, TILTED])
def test_nibabel_orders_places_and_scales_it_alike(turned: tuple[float, ...]) -> None:

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel's, about itself
        from nibabel.nicom.dicomwrappers import MultiframeWrapper

    for seed in (4, None):
        dataset = enhanced(turned, sop=ENHANCED_CT, seed=seed)
        other = MultiframeWrapper(read(file(dataset)))
        made = from_files("dicom", {"0": file(dataset)})
        values = other.get_data().transpose(1, 0, 2)[:, :, ::-1]  # it begins at the other end
        np.testing.assert_allclose(made.values, values, atol=1e-3)
        affine = np.diag([-1, -1, 1, 1]) @ other.affine[:, [1, 0, 2, 3]]
        affine[:, 3] += 8 * affine[:, 2]
        affine[:, 2] *= -1
        if seed is None:  # the distance of slices it takes from two frames as they are stored
            np.testing.assert_allclose(made.affine, affine, atol=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"])
def test_a_dose_lies_by_its_offsets(name: str) -> None:
    path = get_testdata_file(name)
    dataset = pydicom.dcmread(path)
    made = from_files("dicom", {"0": Path(path).read_bytes()})
    stored = pydicom.dcmread(get_testdata_file("rtdose.dcm")).pixel_array
    np.testing.assert_allclose(made.values, (stored * float(dataset.DoseGridScaling)).transpose(2, 1, 0), rtol=1e-6)
    steps = np.diff([float(one) for one in dataset.GridFrameOffsetVector])
    assert made.affine is not None and made.unit == "RELATIVE" and made.values.shape == (10, 10, 15)
    np.testing.assert_allclose(made.affine[:3, 2], [0, 0, steps.mean()], atol=1e-6)
    np.testing.assert_allclose(made.affine[:3, 3], np.array(dataset.ImagePositionPatient, float) * [-1, -1, 1], atol=1e-6)


@pytest.mark.parametrize("colour", [False, True])
def test_a_film_follows_the_time(colour: bool) -> None:
    dataset = cine(colour=colour)
    made = from_files("dicom", {"0": file(dataset)})
    stored = cine().pixel_array
    assert made.affine is None
    np.testing.assert_array_equal(made.values, stored.transpose(2, 1, 0))
    groups = pydicom.sequence.Sequence(pydicom.Dataset() for _ in range(6))
    for one, place in zip(groups, (3, 1, 2, 6, 5, 4), strict=True):
        one.FrameContentSequence = items(TemporalPositionIndex=place)
    dataset.PerFrameFunctionalGroupsSequence = groups
    timed = from_files("dicom", {"0": file(dataset)})
    np.testing.assert_array_equal(timed.values, stored[[1, 2, 0, 5, 4, 3]].transpose(2, 1, 0))


def test_colours_that_differ_are_no_volume() -> None:
    raw = Path(get_testdata_file("examples_ybr_color.dcm")).read_bytes()
    with pytest.raises(Problem, match="grey"):
        from_files("dicom", {"0": raw})
    assert check(read(raw)) == ["not_greyscale"]


def without(dataset: pydicom.Dataset, sequence: str, frame: int) -> pydicom.Dataset:
    del dataset.PerFrameFunctionalGroupsSequence[frame][sequence]
    return dataset


def moved(dataset: pydicom.Dataset, sequence: str, **values: object) -> pydicom.Dataset:
    dataset.PerFrameFunctionalGroupsSequence[2][sequence] = pydicom.DataElement(
        dataset.PerFrameFunctionalGroupsSequence[2].data_element(sequence).tag  # type: ignore[union-attr]
        if sequence in dataset.PerFrameFunctionalGroupsSequence[2]
        else pydicom.datadict.tag_for_keyword(sequence),
        "SQ",
        items(**values),
    )
    return dataset


def place_of(dataset: pydicom.Dataset, frame: int) -> list[str]:
    return list(dataset.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0].ImagePositionPatient)


@pytest.mark.parametrize(
    ("dataset", "rule"),
    [
        (without(enhanced(), "PlanePositionSequence", 3), "no_position"),
        (moved(enhanced(), "PlaneOrientationSequence", ImageOrientationPatient=list(SAGITTAL)), "mixed_orientation"),
        (moved(enhanced(), "PixelMeasuresSequence", PixelSpacing=[1, 1]), "mixed_spacing"),
        (moved(enhanced(), "PlanePositionSequence", ImagePositionPatient=place_of(enhanced(), 5)), "duplicate_position"),
        (moved(enhanced(), "PlanePositionSequence", ImagePositionPatient=[-20, 10, 230]), "missing_slices"),
    ],
)
def test_frames_that_are_no_volume_are_refused_with_the_rule(dataset: pydicom.Dataset, rule: str) -> None:
    raw = file(dataset)
    found = check(read(raw), frozenset())
    assert rule in found
    with pytest.raises(Problem) as refused:
        from_files("dicom", {"0": raw})
    assert refused.value.code == "pipelines.unfit" and f"break the rule {found[0]}" in refused.value.detail()


def test_groups_that_do_not_match_the_frames_and_frames_that_are_missing_are_said() -> None:
    fewer = enhanced()
    del fewer.PerFrameFunctionalGroupsSequence[8]
    for broken in (fewer, enhanced()):
        if broken is not fewer:
            broken = packed(broken, RLELossless)
            broken.PixelData = pydicom.encaps.encapsulate(list(pydicom.encaps.generate_frames(broken.PixelData, number_of_frames=9))[:7])
        with pytest.raises(Problem) as refused:
            from_files("dicom", {"0": file(broken)})
        assert refused.value.code == "imaging.unreadable"
        assert "unreadable_pixels" in check(read(file(broken)))


def test_a_sample_is_made_of_the_object_as_it_is_stored() -> None:
    dataset = enhanced(SAGITTAL, uid="2.25.5", sop=GREY_WORDS)
    schema = VolumeSchema(kind="volumes", volume="MR", size=(20, 20, 20), spacing=("1.5", "1.5", "1.5"), classes=("a", "b"))
    one = sample(file(dataset), schema)
    assert one.shape == (1, 20, 20, 20) and one.dtype == np.float32 and float(one.std()) > 0.1
    np.testing.assert_array_equal(one, sample(file(enhanced(SAGITTAL, uid="2.25.6", seed=9)), schema), "whatever the order of its frames")


def test_beside_the_result_one_frame_is_in_memory() -> None:
    dataset = read(file(packed(enhanced(count=60, size=(256, 256)), RLELossless)))
    from medmesh.pipelines.series import of_frames

    tracemalloc.start()
    made = of_frames(dataset)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.values.nbytes == 60 * 256 * 256 * 4 and peak < made.values.nbytes + 6 * 2**20


def test_a_series_of_such_objects_is_as_many_items_and_the_report_shows_the_middle_frame(tmp_path: Path) -> None:
    for number in range(2):
        dataset = enhanced(uid=f"2.25.{number + 5}")
        dataset.SeriesInstanceUID = "2.25.99"
        (tmp_path / f"{number}.dcm").write_bytes(file(dataset))
    with opened(tmp_path) as source:
        assert sorted(name for name, _ in together(source)) == ["0.dcm", "1.dcm"]
    look = Inspection("set")
    look.look_at("a", file(enhanced()))
    look.look_at("b", file(enhanced(uid="2.25.4", seed=1)))
    made = look.finish()
    document = made.document()
    assert document["items"] == {"volume": 2} and not document["rules"] and len(made.pictures) == 2

"""A DICOM series as a volume: every voxel where the slices say it lies, whatever the order, the direction and the makers' habits."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmesh.errors import Problem
from medmesh.imaging.reading import read, wrap, write
from medmesh.importing.formats.nifti import orientation
from medmesh.importing.series import together
from medmesh.importing.sources import opened
from medmesh.pipelines.loading import from_files
from medmesh.pipelines.series import rescaled
from medmesh.pipelines.steps import Orient, Resample

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
TILTED = (1.0, 0.0, 0.0, 0.0, 0.8, -0.6)


def field(point: np.ndarray) -> np.ndarray:
    """What lies at points [..., 3] in millimetres to the left, posterior and superior: linear, so that resampling is exact."""
    return 600 + 3 * point[..., 0] - 2 * point[..., 1] + 5 * point[..., 2]


def series(
    turned: tuple[float, ...] = AXIAL, count: int = 9, series_uid: str = "2.25.77", patient: str = "P-1", size: tuple[int, int] = (7, 11)
) -> list[bytes]:
    """Slices of so many rows and columns at 1.5 and 0.75 mm, 2 mm apart."""
    along_row, along_column = np.array(turned).reshape(2, 3)
    made = []
    for number in range(count):
        corner = np.array([-20.0, 10.0, 30.0]) + number * 2.0 * np.cross(along_row, along_column)
        rows, columns = np.meshgrid(np.arange(size[0]) * 1.5, np.arange(size[1]) * 0.75, indexing="ij")
        values = field(corner + rows[..., None] * along_column + columns[..., None] * along_row)
        dataset = read(
            wrap(
                Image.new("L", size[::-1]),
                patient_id=patient,
                patient_name=f"Kanary^{patient}",
                study_uid="2.25.7",
                series_uid=series_uid,
                sop_uid=f"{series_uid}.{number + 1}",
                modality="CT",
                study_date="20240102",
                extra={"PixelSpacing": [1.5, 0.75], "ImageOrientationPatient": list(turned), "ImagePositionPatient": list(corner)},
            )
        )
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "0.25", "-250", "HU"
        dataset.InstanceNumber = number + 1
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelData = np.round(values * 4 + 1000).astype("<u2").tobytes()
        made.append(write(dataset))
    return made


@pytest.mark.parametrize("turned", [AXIAL, SAGITTAL, TILTED])
def test_every_voxel_lies_where_its_slice_says(turned: tuple[float, ...]) -> None:
    objects = series(turned)
    random.Random(4).shuffle(objects)
    made = from_files("dicom", {str(n): one for n, one in enumerate(objects)})
    assert made.values.shape == (11, 7, 9) and made.unit == "HU" and made.affine is not None
    for data in (made, Orient(to="RAS").apply(made), Resample(spacing=(0.5, 1.0, 1.5)).apply(Orient(to="RAS").apply(made))):
        assert data.affine is not None
        at = np.stack(np.meshgrid(*(np.arange(size) for size in data.values.shape), indexing="ij"), axis=-1)
        points = at @ data.affine[:3, :3].T + data.affine[:3, 3]
        np.testing.assert_allclose(data.values, field(points * [-1, -1, 1]), atol=0.3)
    oriented = Orient(to="RAS").apply(made)
    assert oriented.affine is not None and "".join(orientation(oriented.affine)) == "RAS"


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        (series()[:3] + series()[5:], "missing_slices"),
        (series() + series(TILTED)[:1], "mixed_orientation|duplicate"),
        (series() + series()[:1], "duplicate"),
        (series()[:1] * 2, "duplicate"),
    ],
)
def test_what_is_no_volume_is_refused_with_the_rule(objects: list[bytes], reason: str) -> None:
    with pytest.raises(Problem, match=reason) as refused:
        from_files("dicom", {str(n): one for n, one in enumerate(objects)})
    assert refused.value.code == "pipelines.unfit"


def test_high_is_bright_whatever_the_maker_says() -> None:
    plain = read(series()[0])
    other = read(series()[0])
    other.PhotometricInterpretation = "MONOCHROME1"
    ends = (np.array([0, 2.0 ** int(plain.BitsStored) - 1]) * 0.25 - 250).sum()
    np.testing.assert_allclose(rescaled(other).values, ends - rescaled(plain).values)


def test_files_of_one_series_are_one_item_whatever_they_are_called(tmp_path: Path) -> None:
    for number, one in enumerate(series() + series(series_uid="2.25.78", count=4)):
        place = tmp_path / f"{number % 3}" / f"IM{number:04d}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(one)
    (tmp_path / "alone.dcm").write_bytes(series(series_uid="2.25.79", count=1)[0])
    (tmp_path / "notes.txt").write_text("no DICOM")
    for kind in ("", "zip", "gztar"):
        with opened(Path(shutil.make_archive(str(tmp_path.parent / "packed"), kind, tmp_path)) if kind else tmp_path) as source:
            found = {name: parts if isinstance(parts, Problem) else len(parts) for name, parts in together(source)}
        assert sorted(found.values(), key=str) == [1, 1, 4, 9] and {"alone.dcm", "notes.txt"} < set(found), kind

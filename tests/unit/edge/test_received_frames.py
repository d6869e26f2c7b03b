"""Objects of several frames from a PACS: de-identified in every functional group, one volume each, their frames as DICOMweb has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from tests.dicoms import rows, stack
from tests.frames import cine, enhanced, file, items, packed
from tests.unit.edge.test_cleaning import STATES, opened, receive, through
from tests.unit.edge.test_received_volumes import Opened, there
from tests.unit.pipelines.test_frames import voxels
from tests.unit.pipelines.test_series import SAGITTAL, field

from medmesh.contracts.data import VolumeSchema
from medmesh.dicomweb import wado
from medmesh.imaging.reading import read
from medmesh.pipelines.fitting import decoded
from medmesh_edge import forgetting, intake, patients, samples, settling
from medmesh_edge.ports import Site
from medmesh_edge.quality import judge
from medmesh_edge.reception import Accept
from medmesh_edge.tables import items as table

MR = VolumeSchema(kind="volumes", volume="MR", size=(16, 16, 8), classes=("none", "tumour"))
KANARY = "KANARY"


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Opened]:
    async with opened(private) as made:
        yield made


async def settle(made: Opened, *, volumes: bool = True) -> None:
    said = {"called": "MRI", "calling": ["CT1"], "from": ["127.0.0.0/8"], "dataset": "brain", "volumes": volumes}
    site, _, cleaner = made
    cleaner._entry = lambda *_: Accept.model_validate(said)
    await through(cleaner)
    await settling.settle(site, cleaner._connection, 0, lambda _: volumes)


async def bytes_of(site: Site, row: Any) -> bytes:
    async with site.unit() as uow:
        keys = await patients.known(uow, site, [row.patient])
    return b"".join(patients.images(site, keys[row.patient]).open(row.object))


def named(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Somebody's name, and when it was, in the functional groups of a frame and in those that all share, private ones too."""
    for group in (dataset.PerFrameFunctionalGroupsSequence[3], dataset.SharedFunctionalGroupsSequence[0]):
        group.FrameAnatomySequence = items(FrameLaterality="U")
        group.FrameAnatomySequence[0].AnatomicRegionSequence = items(CodeValue="69536005", CodeMeaning=f"head of {KANARY}")
        group.private_block(0x0019, "ACME", create=True).add_new(0x01, "LO", f"{KANARY} scanned this")
        group.ReferencedImageSequence = items(ReferencedSOPInstanceUID="1.2.840.99.4.1.777", PatientName=f"{KANARY}^San")
    dataset.PerFrameFunctionalGroupsSequence[3].FrameContentSequence[0].FrameComments = f"told to {KANARY}"
    return dataset


async def test_an_enhanced_object_is_one_volume_with_nobody_named_in_any_group(at: Opened, private: Path) -> None:
    site, receiver, _ = at
    given = named(enhanced(SAGITTAL))
    receive(receiver, given)
    await settle(at)
    assert rows(private, STATES) == [("cleaned", "", "")]
    (row,) = await there(site)
    assert row.modality == "volume:MR"
    raw = await bytes_of(site, row)
    assert KANARY.encode() not in raw.upper() and b"20240102" not in raw and b"1.2.840.99.4.1.777" not in raw
    clean = read(raw)
    assert len(clean.PerFrameFunctionalGroupsSequence) == 9
    whens = {one.FrameContentSequence[0].FrameAcquisitionDateTime for one in clean.PerFrameFunctionalGroupsSequence}
    assert whens == {"19000101"}, "the dummy that the table asks for"
    data = decoded(raw, MR)
    np.testing.assert_allclose(data.values, field(voxels(data)), atol=0.13)
    report = await judge(site, "brain")
    assert not report.blocked and report.document()["items"] == {"volume": 1}
    await forgetting.ask(site, row.patient, "mistake", "somebody")
    for one in await forgetting.waiting(site):
        if one["state"] == "asked":
            await forgetting.approve(site, one["request"], "somebody else")
    assert not await there(site) and not list(site.objects.objects())


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless], ids=lambda one: one.name)
async def test_its_frames_are_as_dicomweb_gives_them(at: Opened, private: Path, syntax: pydicom.uid.UID) -> None:
    site, receiver, cleaner = at
    receive(receiver, packed(enhanced(), syntax))
    await settle(at)
    (row,) = await there(site)
    connection = cleaner._connection
    (scope,) = connection.execute("SELECT id FROM scopes WHERE realm = 'clean'").fetchone()
    joined = "SELECT t.uid, s.uid, i.uid FROM instances i JOIN series s ON s.id = i.series JOIN studies t ON t.id = i.study"
    study, series, sop = connection.execute(f"{joined} WHERE i.scope = ?", (scope,)).fetchone()
    (located,) = wado.locate(connection, scope, study=study, series=series, instance=sop)
    raw = await bytes_of(site, row)

    def opens(_one: Any, start: int = 0, end: int | None = None) -> Any:
        return iter([raw[start : len(raw) if end is None else end]])

    plain = 'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1'
    body = b"".join(wado.frames(connection, located, [1, 5], plain, opens).body)
    for number in (1, 5):
        assert enhanced().pixel_array[number - 1].tobytes() in body, "as they are stored, whatever order a volume has"
    assert located.frames == 9


async def test_a_film_is_a_volume_in_time_with_what_lies_outside_its_region_gone(at: Opened) -> None:
    site, receiver, _ = at
    receive(receiver, cine(colour=True))
    await settle(at)
    (row,) = await there(site)
    assert row.modality == "volume:US"
    data = decoded(await bytes_of(site, row), MR)
    expected = cine().pixel_array.transpose(2, 1, 0).astype(np.float32)
    expected[:, :4] = 0
    np.testing.assert_array_equal(data.values, expected)
    assert data.affine is None


async def test_what_is_no_volume_is_held_back_and_says_why(at: Opened, private: Path) -> None:
    site, receiver, _ = at
    twice = enhanced(uid="2.25.80")
    one = twice.PerFrameFunctionalGroupsSequence
    one[0].PlanePositionSequence = one[1].PlanePositionSequence
    site.layout.policy.write_text('[quality]\nbrain = ["constant_image"]\n')
    blank = enhanced(uid="2.25.81")
    blank.PixelData = bytes(len(blank.PixelData))
    receive(receiver, twice, blank)
    await settle(at)
    held = {(state, stage): str(reason).split(",") for state, stage, reason in rows(private, STATES)}
    assert set(held) == {("quarantined", "quality")} and not await there(site)
    reasons = [str(reason) for _, _, reason in rows(private, STATES)]
    assert "duplicate_position" in reasons[0] and reasons[1] == "constant_image"


async def test_among_images_it_is_none_and_says_so(at: Opened, private: Path) -> None:
    receive(at[1], enhanced())
    await settle(at, volumes=False)
    assert rows(private, STATES) == [("quarantined", "quality", "several_frames")]


async def test_beside_slices_of_its_series_it_is_a_volume_of_its_own(at: Opened, private: Path) -> None:
    site, receiver, _ = at
    given = stack()
    other = enhanced(patient="P0000")
    other.StudyInstanceUID, other.SeriesInstanceUID = given[0].StudyInstanceUID, given[0].SeriesInstanceUID
    other.Modality = "CT"
    receive(receiver, *given, other)
    await settle(at)
    assert rows(private, STATES) == [("cleaned", "", "")] * 6
    assert sorted(one.modality for one in await there(site)) == ["volume:CT"] * 2


async def test_a_folder_and_a_pacs_make_the_same_of_it_and_a_worker_reads_it(at: Opened, tmp_path: Path) -> None:
    site, receiver, _ = at
    receive(receiver, enhanced())
    await settle(at)
    (before,) = await there(site)
    (tmp_path / "a.dcm").write_bytes(file(enhanced()))
    (tmp_path / "labels.csv").write_text("file,label,split\na.dcm,tumour,train\n")
    done = await intake.ingest(site, tmp_path, "brain", series=True)
    (after,) = await there(site)
    assert (done.known, dict(done.kinds)) == (1, {"volume:MR": 1})
    assert (before.item, before.object, before.modality) == (after.item, after.object, after.modality)
    path, count = await samples.prepare(site, MR, held_out=False)
    assert count == 1 and path.exists() and table is not None

"""A node whose options ask for it takes no head in with its face: files, series, single slices, and what a PACS sends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from tests.integration.test_forget import ALONE, prepare
from tests.plugged import install
from tests.unit.imaging.test_faces import heads, scan, volume_of

from medmesh.imaging.reading import read
from medmesh.importing import stored
from medmesh_edge import intake, patients
from medmesh_edge.cleaning import make
from medmesh_edge.intake import How
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Settings
from medmesh_edge.tables import items


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    folder = prepare(private / "node", ALONE)
    Settings.load(folder).model_copy(update={"deidentification": "faces"}).save(folder)
    async with site(folder) as opened:
        yield opened


def scans(folder: Path) -> Path:
    """A NIfTI file, a series of a head, one of a chest."""
    folder.mkdir()
    (folder / "brain.nii.gz").write_bytes(scan((6, 9, 5), "LPS", packed=True))
    for number, one in enumerate(heads()):
        (folder / f"head{number}").write_bytes(one)
    for number, one in enumerate(heads(BodyPartExamined="CHEST", SeriesInstanceUID="2.25.78", PatientID="P-2")):
        dataset = read(one)
        dataset.SOPInstanceUID = f"2.25.78.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / f"chest{number}", enforce_file_format=True)
    (folder / "labels.csv").write_text("file,label,split,patient,modality\nbrain.nii.gz,none,train,P-3,MR\n")
    return folder


async def kept(at: Site) -> list[stored.Stored]:
    async with at.unit() as uow:
        rows = await uow.all(select(items))
        keys = await patients.known(uow, at, {row.patient for row in rows})
    raw = [b"".join([one async for one in patients.images(at, keys[row.patient]).read(row.object)]) for row in rows]
    return [stored.unpack(one) for one in raw]


async def test_heads_come_in_without_faces_and_everything_else_as_it_is(at: Site, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(private / "plug", monkeypatch)
    folder = scans(private / "pacs")
    seen = await intake.ingest(at, folder, "heads", series=True, dry_run=True)
    done = await intake.ingest(at, folder, "heads", series=True)
    assert (seen.stored, done.stored, done.rejected) == (3, 3, {}), done
    assert (await intake.ingest(at, folder, "heads", series=True)).known == 3
    found = await kept(at)
    (brain,) = (one for one in found if one.format == "nifti")
    before, after = (np.flip(volume_of(raw).get_fdata(), 1) for raw in ((folder / "brain.nii.gz").read_bytes(), brain.files["0"]))
    assert (after[:, 6:] == before.min()).all() and (after[:, :6] == before[:, :6]).all()
    objects = [read(raw) for one in found if one is not brain for raw in one.files.values()]
    said = {
        (tuple(item.CodeValue for item in one.DeidentificationMethodCodeSequence), one.get("RecognizableVisualFeatures")) for one in objects
    }
    assert said == {(("113100", "113102"), "NO"), (("113100",), None)}


@pytest.mark.parametrize(
    ("body", "code"),
    [("", "imaging.face_no_software"), ("os.abort()", "imaging.face_failed"), ("return volume.values[:2] > 0", "imaging.face_failed")],
)
async def test_what_goes_wrong_costs_the_heads_alone(
    at: Site, private: Path, monkeypatch: pytest.MonkeyPatch, body: str, code: str
) -> None:
    if body:
        install(private / "plug", monkeypatch, body=body)
    done = await intake.ingest(at, scans(private / "pacs"), "heads", series=True)
    assert (done.stored, done.rejected) == (1, {code: 2}), "the chest is there"
    assert [one.format for one in await kept(at)] == ["dicom"]


async def test_single_slices_of_a_head_are_refused_one_by_one(at: Site, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(private / "plug", monkeypatch)
    done = await intake.ingest(at, scans(private / "pacs"), "heads")
    assert (done.stored, done.rejected) == (10, {"imaging.face_alone": 9})


@pytest.mark.parametrize(("values", "stopped"), [({}, ("deidentify", "imaging.face_alone")), ({"BodyPartExamined": "KNEE"}, None)])
def test_so_are_those_that_a_pacs_sends(values: dict[str, Any], stopped: tuple[str, str] | None) -> None:
    row: Any = None
    made = make(heads(**values)[0], row, b"the hospital's key, 32 bytes long", How("faces"))
    assert (made.stopped and (made.stopped.stage, made.stopped.reason)) == stopped
    assert (made.prepared is None) == (stopped is not None)

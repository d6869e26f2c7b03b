"""What becomes of a received series where the hospital says that series are volumes: one item, once its study is settled."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from sqlalchemy import select, update
from tests.dicoms import RECEPTION, file, image, records, rows, stack
from tests.unit.edge.test_cleaning import STATES, opened, receive, through

from medmesh.archive import states
from medmesh.contracts.data import VolumeSchema
from medmesh.errors import Problem
from medmesh.importing import stored
from medmesh.pipelines import pipeline
from medmesh_edge import described, forgetting, intake, labelling, patients, pipelines, review, samples, settling, storing
from medmesh_edge.cleaning import Cleaner
from medmesh_edge.ethics import Approval, record
from medmesh_edge.ports import Site
from medmesh_edge.quality import held, judge
from medmesh_edge.reception import Reception
from medmesh_edge.tables import items, leaving, outputs, parts, unsettled

SCHEMA = VolumeSchema(kind="volumes", volume="CT", size=(16, 16, 4), classes=("none", "tumour"))
PIPED = SCHEMA.model_copy(
    update={"pipeline": pipeline.read('name = "p"\n[[steps]]\nstep = "crop"\nshape = [16, 16, 4]\nfill = 0\n').stated()}
)


class Killed(BaseException):
    pass


ALWAYS = (date(2020, 1, 1), date(2999, 1, 1))
Opened = tuple[Site, Any, Cleaner]


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Opened]:
    async with opened(private) as made:
        yield made


async def settle(made: Opened) -> bool:
    """Until nothing is left to do: what is released goes through once more."""
    site, _, cleaner = made
    did = False
    for _ in range(3):
        await through(cleaner)
        did = await settling.settle(site, cleaner._connection, 0, lambda dataset: dataset == "brain") or did
    return did


async def there(site: Site, table: Any = items) -> Sequence[Any]:
    async with site.unit() as uow:
        return await uow.all(select(table))


async def labelled(site: Site) -> None:
    """As a hospital that knows what they show."""
    async with site.unit() as uow:
        await uow.execute(update(items).values(label="tumour", held_out=False))


def spaced(found: list[pydicom.Dataset], **values: object) -> list[pydicom.Dataset]:
    """The third of them says something else."""
    for keyword, value in values.items():
        setattr(found[2], keyword, value)
    return found


async def test_a_series_is_one_item_of_its_patient_and_its_slices_are_none(at: Opened, private: Path) -> None:
    site, receiver, cleaner = at
    given = stack()
    receive(receiver, *reversed(given))
    await through(cleaner)
    assert (await there(site), len(await there(site, unsettled))) == ([], 5)
    assert await settle(at)
    (volume,) = await there(site)
    assert (volume.modality, volume.label, volume.dataset) == ("volume:CT", None, "brain")
    assert len(await there(site, parts)) == 5 and not await there(site, unsettled)
    await labelled(site)
    found = await samples.cohort(site, SCHEMA)
    assert (found.samples, found.patients) == (1, 1)
    told = await described.descriptor(site, "brain")
    assert (told.modality, told.version) == ("volume:CT", 1)
    assert [one["detail"] for one in records(private) if one["sub"] == "edge.ingest"] == [
        {"stored": 5, "known": 0, "rejected": 0, "revision": 5, "volumes": 1}
    ]
    (row,) = await samples.rows(site, SCHEMA, held_out=False)
    kept = stored.unpack(samples.stored(site, row))
    assert (kept.item, kept.format, len(kept.files)) == (volume.item, "dicom", 5)
    from medmesh.pipelines.fitting import decoded

    data = decoded(samples.stored(site, row), SCHEMA)
    assert data.affine is not None
    np.testing.assert_allclose(np.abs(np.diag(data.affine)[:3]), [0.661468, 0.661468, 1], atol=1e-6)
    expected = np.stack([one.pixel_array.T * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in given], axis=2)
    np.testing.assert_array_equal(data.values, expected.astype(np.float32))
    assert not (await judge(site, "brain")).blocked
    # DICOMweb shows the de-identified slices as before: each lies under the patient's key by the hash that the index knows.
    clean = rows(private, "SELECT sha256 FROM objects o JOIN scopes s ON s.id = o.scope WHERE realm = 'clean'")
    async with site.unit() as uow:
        keys = await patients.known(uow, site, [volume.patient])
    for (sha256,) in clean:
        assert b"".join(patients.images(site, keys[volume.patient]).open(str(sha256)))[128:132] == b"DICM"
    assert not await settle(at), "nothing is left to do"


async def test_a_folder_and_a_pacs_make_the_same_item_of_a_series(at: Opened, private: Path, tmp_path: Path) -> None:
    site, receiver, _ = at
    receive(receiver, *stack())
    await settle(at)
    (before,) = await there(site)
    for number, one in enumerate(reversed(stack())):
        (tmp_path / f"{number}.dcm").write_bytes(file(one))
    (tmp_path / "labels.csv").write_text("file,label\n3.dcm,tumour\n")
    done = await intake.ingest(site, tmp_path, "brain", series=True)
    (after,) = await there(site)
    assert (done.stored, done.known, after.item, after.object, after.label) == (0, 1, before.item, before.object, "tumour")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (stack(missing=3), "missing_slices"),
        (spaced(stack(), ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "mixed_orientation"),
        (spaced(stack(), PixelSpacing=[1, 1]), "mixed_spacing"),
        (spaced(stack(), ImagePositionPatient=[0, 0, 1.0]), "duplicate_position"),
        (spaced(stack(), ImagePositionPatient=[0, 0, 3.4]), "uneven_spacing"),
        (spaced(stack(), ImagePositionPatient=None), "no_position"),
        (stack(count=1), "single_slice"),
    ],
)
async def test_what_is_no_volume_is_held_back_with_the_reason_whatever_the_projects_rules(
    at: Opened, private: Path, given: list[pydicom.Dataset], reason: str
) -> None:
    site, receiver, _ = at
    site.layout.policy.write_text('[quality]\nbrain = ["constant_image"]\n')
    receive(receiver, *given)
    await settle(at)
    found = rows(private, STATES)
    assert {(state, stage) for state, stage, _ in found} == {("quarantined", "series")} and len(found) == len(given)
    assert all(reason in str(why).split(",") for _, _, why in found)
    assert not await there(site) and not await there(site, parts) and not await there(site, unsettled)
    assert not list(site.objects.objects())
    assert sum(held(site, "brain").values()) == len(given)


async def test_numbers_of_instances_are_the_makers_business(at: Opened) -> None:
    site, receiver, _ = at
    given = stack()
    for one in given:
        one.InstanceNumber = 7
    receive(receiver, *given)
    await settle(at)
    assert len(await there(site)) == 1


async def test_a_series_with_an_object_in_quarantine_waits_for_it(at: Opened, private: Path) -> None:
    site, receiver, cleaner = at
    given = stack()
    given[4].PixelData = bytes(len(given[4].PixelData))  # the last one: without it there would be no hole
    receive(receiver, *given)
    await settle(at)
    assert sorted(rows(private, STATES)) == [
        ("quarantined", "quality", "constant_image"),
        *[("quarantined", "series", "part_held")] * 4,
    ]
    (blank,) = states.held(cleaner._connection, stage="quality")
    await review.drop(site, blank.id)  # by a person who says that it is none of it
    await settle(at)
    assert rows(private, STATES) == [("cleaned", "", "")] * 4
    assert len(await there(site)) == 1


async def test_slices_that_come_late_make_the_volume_anew_and_its_label_stays(at: Opened, private: Path) -> None:
    site, receiver, cleaner = at
    whole = stack(count=6)
    receive(receiver, *whole[:4])
    await settle(at)
    await labelled(site)
    (before,) = await there(site)
    made = await pipelines.ensure(site, PIPED, await samples.rows(site, PIPED, held_out=False))
    assert set(made) == {before.object}
    receive(receiver, *whole[4:])
    await through(cleaner)
    assert (await there(site)) == [before], "what was settled is used on, and what came late is not"
    await settle(at)
    (after,) = await there(site)
    assert (after.item, after.label, after.held_out) == (before.item, "tumour", False) and after.object != before.object
    assert len(stored.unpack(samples.stored(site, (await samples.rows(site, SCHEMA, held_out=False))[0])).files) == 6
    left = {before.object, *made.values()} & set(site.objects.objects())
    assert not left and not await there(site, leaving) and not await there(site, outputs), "nor what a pipeline made of it"
    assert (await described.descriptor(site, "brain")).version == 2

    receive(receiver, image(9, InstanceNumber=9, ImagePositionPatient=[0, 0, 9.0], ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    await settle(at)
    assert not await there(site) and not await there(site, parts), "there is a hole now"
    assert {stage for _, stage, _ in rows(private, STATES)} == {"series"} and not list(site.objects.objects())


async def test_a_volume_goes_with_its_patient(at: Opened) -> None:
    site, receiver, _cleaner = at
    receive(receiver, *stack())
    await settle(at)
    await labelled(site)
    await pipelines.ensure(site, PIPED, await samples.rows(site, PIPED, held_out=False))
    path, count = await samples.prepare(site, SCHEMA, held_out=False)
    assert count == 1 and path.exists()
    request, done = await forgetting.ask(site, forgetting.who(site, "P0000"), "withdrawn", "somebody")
    if not done:
        await forgetting.approve(site, request, "somebody else")
    for table in (items, parts, unsettled, outputs):
        assert not await there(site, table)
    assert not list(site.objects.objects()) and not path.exists()
    receive(receiver, *stack())
    await settle(at)
    assert not await there(site), "sent again by the PACS"


async def test_without_a_patients_consent_there_is_no_volume_and_the_slices_wait(at: Opened, private: Path) -> None:
    site, receiver, cleaner = at
    await record(site, Approval("IRB-1", "heads", ("image",), *ALWAYS, False), "li")
    receive(receiver, *stack())
    await through(cleaner)
    async with site.unit() as uow:
        await uow.execute(update(unsettled).values(ethics="IRB-9"))  # as one that ended meanwhile
    await settle(at)
    assert {(stage, reason) for _, stage, reason in rows(private, STATES)} == {("consent", "ethics.unknown")}
    assert not await there(site) and not list(site.objects.objects())


@pytest.mark.parametrize("late", [False, True])
async def test_killed_at_any_step_it_comes_to_the_same(at: Opened, private: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    site, receiver, cleaner = at
    if late:
        receive(receiver, *stack(count=6)[:4])
        await settle(at)
    before = await there(site)
    receive(receiver, *(stack(count=6)[4:] if late else stack(count=6)))
    await through(cleaner)

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    steps = [(site.objects, "put"), (settling.storing, "store"), (storing, "admit"), (storing, "compose"), (settling.intake, "complete")]
    steps += [(states, "told"), (storing, "erase")]
    for module, name in steps:
        if name == "put":
            module = storing.patients
            name = "images"
        with monkeypatch.context() as patched:
            patched.setattr(module, name, killed)
            with pytest.raises(Killed):
                await settling.settle(site, cleaner._connection, 0, lambda _: True)
        found = await there(site)
        assert found == before or len(stored.unpack(await _bytes(site, found[0])).files) == 6, "the volume as it was, or whole"
    await storing.erase(site)
    await settle(at)
    (volume,) = await there(site)
    assert len(await there(site, parts)) == 6 and not await there(site, unsettled) and not await there(site, leaving)
    assert len(list(site.objects.objects())) == 7, "six slices for DICOMweb, and the volume"
    assert len(stored.unpack(await _bytes(site, volume)).files) == 6


async def _bytes(site: Site, row: Any) -> bytes:
    async with site.unit() as uow:
        keys = await patients.known(uow, site, [row.patient])
    return b"".join(patients.images(site, keys[row.patient]).open(row.object))


def test_all_titles_of_a_data_set_say_the_same(tmp_path: Path) -> None:
    text = RECEPTION.format(receivers=1, cleaners=1)
    path = tmp_path / "dicom.toml"
    other = '[[accept]]\ncalled = "B"\ncalling = ["CT1"]\nfrom = ["127.0.0.0/8"]\ndataset = "brain"\nvolumes = true\n'
    path.write_text(text + other)
    with pytest.raises(Problem, match="brain"):
        Reception.read(path)
    path.write_text(text.replace('dataset = "brain"\n', 'dataset = "brain"\nvolumes = true\n') + other)
    assert Reception.read(path).volumes("brain") and not Reception.read(path).volumes("heart")


async def test_labels_are_given_by_the_hospitals_own_numbers(at: Opened, private: Path) -> None:
    site, receiver, _cleaner = at
    other = [image(n, study=1, AccessionNumber="KANARY-ACC-1", InstanceNumber=n) for n in range(3)]
    for n, one in enumerate(other):
        one.ImagePositionPatient, one.PixelData = [0, 0, float(n)], stack()[n].PixelData
    receive(receiver, *stack(), *other)
    await settle(at)

    async def said() -> dict[str, Any]:
        return {one.patient: (one.label, one.held_out) for one in await there(site)}

    first, second = forgetting.who(site, "P0000"), forgetting.who(site, "P0001")
    for text, labelled_, unknown, wanted in (
        ("accession,label,split\nKANARY-ACC-1,tumour,test\nA9,none,\n", 1, 1, {second: ("tumour", True)}),
        ("patient,label\nP0000,none\nP0001,none\n", 2, 0, {first: ("none", False), second: ("none", True)}),
        (f"series,label,split\n{stack()[0].SeriesInstanceUID},tumour,train\n", 1, 0, {first: ("tumour", False)}),
        (f"object,label\n{other[1].SOPInstanceUID},tumour\n", 1, 0, {second: ("tumour", True)}),
    ):
        async with site.unit() as uow:
            await uow.execute(update(items).where(items.c.patient == first).values(held_out=False))
        found = await labelling.label(site, "brain", text.encode())
        assert (found.items, found.unknown) == (labelled_, unknown)
        now = await said()
        assert {patient: now[patient] for patient in wanted} == wanted
    assert (await labelling.label(site, "heart", b"patient,label\nP0000,none\n")).unknown == 1, "of another data set"
    for text in ("label\nx\n", "patient,label\nP0000,\n", "patient,series,label\n", "patient,label,split\nP0000,a,maybe\n"):
        with pytest.raises(Problem, match="labels"):
            await labelling.label(site, "brain", text.encode())
    assert next(one["detail"] for one in records(private) if one["sub"] == "edge.label") == {"items": 1, "unknown": 1}
    assert b"KANARY" not in json.dumps(records(private)).encode()

"""What becomes of a received object: an item of its data set, or quarantined with stage and reason; twice the same way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian
from sqlalchemy import func, select, update
from tests.dicoms import file, image, node, records, rows, stack

from medmesh.archive import states
from medmesh.archive.receive import Origin, Receiver
from medmesh.archive.tables import open_archive, transaction
from medmesh.contracts.data import ImageSchema
from medmesh.errors import Problem
from medmesh.security.keys import read_secret
from medmesh.store.objects.envelope import Wrapping
from medmesh_edge import cleaning, described, forgetting, intake, patients, review, samples, settling, storing
from medmesh_edge.cleaning import Cleaner
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.ports import Site, site
from medmesh_edge.quality import held, judge
from medmesh_edge.reception import Accept
from medmesh_edge.settling import settle
from medmesh_edge.tables import datasets, items, unsettled


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Site, Receiver, Cleaner]]:
    node(folder)
    async with site(folder) as at:
        with Receiver(at.layout.archive, Wrapping(at.keys, HOSPITAL), reserve=0) as receiver:
            connection = open_archive(at.layout.archive)
            yield at, receiver, Cleaner(at, connection, receiver.objects, read_secret(at.layout.site_key).strip(), (0, 1), lambda *_: None)
            connection.close()


def receive(receiver: Receiver, *found: pydicom.Dataset | bytes, called: str = "") -> None:
    for one in found:
        arrival = receiver.begin_file(Origin("brain", called))
        arrival.write(one if isinstance(one, bytes) else file(one))
        arrival.finish()


async def through(cleaner: Cleaner) -> None:
    while await cleaner.step():
        pass


CT = ImageSchema(modality="CT", image_size=16, channels=1, classes=("none", "tumour"))


async def used(at: Site) -> int:
    """How many items there are for whoever looks."""
    async with at.unit() as uow:
        return len(await uow.all(select(items.c.item)))


STATES = "SELECT state, stage, reason FROM objects o JOIN scopes s ON s.id = o.scope WHERE realm = 'original' ORDER BY o.id"


async def test_objects_become_items_and_a_project_sees_them_without_names(private: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):
        receive(receiver, image(1), image(2), image(1, study=1))
        await through(cleaner)
        assert rows(private, STATES) == [("cleaned", "", "")] * 3
        assert [one["sub"] for one in records(private)] == ["patient.ingest"], "of both patients"
        assert await settle(at, cleaner._connection, 0)
        async with at.unit() as uow:
            found = await uow.all(select(items).order_by(items.c.item))
            keys = await patients.known(uow, at, {one.patient for one in found})
        assert (len(found), len(keys)) == (3, 2)
        for one in found:
            data = b"".join(patients.images(at, keys[one.patient]).open(one.object))
            assert b"Zhang" not in data
            assert b"P000" not in data
        shas = {one.object for one in found}
        clean = rows(private, "SELECT sha256, sop FROM objects o JOIN scopes s ON s.id = o.scope WHERE realm = 'clean'")
        assert {sha256 for sha256, _ in clean} == shas
        assert all(str(sop).startswith("2.25.") for _, sop in clean)
        studies = "SELECT realm, patient_id, instances FROM studies t JOIN scopes s ON s.id = t.scope ORDER BY 1, 3"
        told = rows(private, studies)
        assert [(realm, number) for realm, _, number in told] == [("clean", 1), ("clean", 2), ("original", 1), ("original", 2)]
        assert {one[1] for one in told[:2]} == {one.patient for one in found}


async def test_a_study_is_told_once_and_again_when_more_comes(private: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):

        def told() -> list[Any]:
            return [one["detail"] for one in records(private) if one["sub"] == "edge.ingest"]

        receive(receiver, image(1), image(2))
        assert not await settle(at, cleaner._connection, 0), "something of it is on its way"
        await through(cleaner)
        assert not await settle(at, cleaner._connection, 60), "more may come"
        assert await settle(at, cleaner._connection, 0)
        assert not await settle(at, cleaner._connection, 0)
        receive(receiver, image(3), b"x" * 200)
        await through(cleaner)
        assert await settle(at, cleaner._connection, 0)
        assert told() == [
            {"stored": 2, "known": 0, "rejected": 0, "revision": 2},
            {"stored": 3, "known": 0, "rejected": 0, "revision": 3},
        ]
        async with at.unit() as uow:
            assert (await uow.execute(select(datasets.c.version))).scalar_one() == 2
        with transaction(cleaner._connection) as connection:
            connection.execute("UPDATE studies SET settled = 2")  # as if it had been killed between the two stores
        assert await settle(at, cleaner._connection, 0)
        assert len(told()) == 2


def burned() -> pydicom.Dataset:
    return image(1, BurnedInAnnotation="YES")


def flat() -> pydicom.Dataset:
    found = image(1)
    found.PixelData = np.zeros((found.Rows, found.Columns), np.int16).tobytes()
    return found


def placeless() -> pydicom.Dataset:
    found = image(1)
    del found.StudyInstanceUID
    return found


def cut() -> bytes:
    return file(image(1))[:-20_000]


@pytest.mark.parametrize(
    ("made", "stage", "reason"),
    [
        (burned, "deidentify", "imaging.burned_in"),
        (flat, "quality", "constant_image"),
        (placeless, "index", "archive.uid"),
        (cut, "receive", "truncated"),
    ],
)
async def test_what_is_held_back_says_where_and_why_and_may_be_released(private: Path, made: Any, stage: str, reason: str) -> None:
    async with opened(private) as (at, receiver, cleaner):
        receive(receiver, made(), image(2))
        await through(cleaner)
        assert rows(private, STATES) == [("quarantined", stage, reason), ("cleaned", "", "")]
        (held,) = states.held(cleaner._connection)
        await review.release(at, held.id)
        assert rows(private, STATES)[0] == ("received", "", "")
        await through(cleaner)
        state, _, again = rows(private, STATES)[0]
        assert (state, again) == ("quarantined", reason if stage != "receive" else "imaging.unreadable")
        sha256 = rows(private, f"SELECT sha256 FROM objects WHERE id = {held.id}")[0][0]
        await review.drop(at, held.id)
        assert rows(private, STATES) == [("cleaned", "", "")]
        with pytest.raises(Problem, match="There is no object"):
            receiver.objects.read(str(sha256))
        with pytest.raises(Problem):
            await review.drop(at, held.id)
        assert [one["sub"] for one in records(private) if one["sub"].startswith("quarantine")] == ["quarantine.release", "quarantine.drop"]


async def test_one_object_in_two_files_is_one_and_two_objects_with_one_uid_are_a_conflict(private: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):
        other = image(1)
        other.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        other.SpecificCharacterSet = "ISO_IR 192"
        elsewhere = image(1, SeriesInstanceUID="1.2.3.4")
        changed = image(1, StudyDescription="something else")
        somebody = image(2, PatientID="ANOTHER")
        receive(receiver, image(1), other, changed, elsewhere, somebody)
        await through(cleaner)
        assert rows(private, STATES) == [
            ("cleaned", "", ""),
            ("cleaned", "", "duplicate"),
            ("quarantined", "index", "uid_conflict"),
            ("quarantined", "index", "uid_conflict"),
            ("quarantined", "index", "patient_conflict"),
        ]
        await settle(at, cleaner._connection, 0)
        assert await used(at) == 1


async def test_killed_anywhere_it_comes_to_the_same(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    async with opened(private) as (at, receiver, cleaner):
        receive(receiver, *(image(number) for number in range(3)))
        steps = [(cleaning.index, "put"), (cleaning.storing, "store"), (cleaning.states, "clean_object"), (cleaning.states, "cleaned")]
        for module, name in steps:
            with monkeypatch.context() as patched:
                whole = getattr(module, name)

                def broken(*arguments: Any, whole: Any = whole) -> Any:
                    whole(*arguments)
                    raise Killed

                async def broken_later(*arguments: Any, whole: Any = whole, **more: Any) -> Any:
                    await whole(*arguments, **more)
                    raise Killed

                patched.setattr(module, name, broken_later if name == "store" else broken)
                with pytest.raises(Killed):
                    await cleaner.step()
            with transaction(cleaner._connection) as connection:
                states.restore(connection)
                connection.execute("UPDATE objects SET attempts = 0")
        await through(cleaner)
        assert rows(private, STATES) == [("cleaned", "", "")] * 3
        assert rows(private, "SELECT count(*) FROM instances") == [(6,)]
        assert await used(at) == 0
        assert [one["sub"] for one in records(private)] == ["patient.ingest"] * 1, "each patient once"
        assert await settle(at, cleaner._connection, 0)
        assert await used(at) == 3


async def test_an_object_that_ends_its_worker_again_and_again_is_held_back(private: Path) -> None:
    async with opened(private) as (_, receiver, cleaner):
        receive(receiver, image(1), image(2))
        for _ in range(states.ATTEMPTS):
            with transaction(cleaner._connection) as connection:
                claimed = [one.id for one in states.claim(connection, 0, 1, 10)]
                states.restore(connection)
        assert len(claimed) == 1, "alone, after the first time"
        await through(cleaner)
        assert rows(private, STATES) == [("quarantined", "read", "crashed"), ("cleaned", "", "")]


async def test_an_object_that_takes_too_long_is_held_back(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object) -> Any:
        while True:
            pass

    async with opened(private) as (_, receiver, cleaner):
        receive(receiver, image(1))
        monkeypatch.setattr(cleaning, "SECONDS", 0.05)
        monkeypatch.setattr(cleaning.intake, "prepare", endless)
        await through(cleaner)
        assert rows(private, STATES) == [("quarantined", "read", "too_slow")]


async def test_a_forgotten_patients_originals_are_gone_and_stay_away(private: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):
        receive(receiver, image(1), image(2), image(1, study=1))
        await through(cleaner)
        request, done = await forgetting.ask(at, forgetting.who(at, "P0000"), "withdrawn", "somebody")
        if not done:
            await forgetting.approve(at, request, "somebody else")
        assert rows(private, STATES) == [("cleaned", "", "")]
        assert rows(private, "SELECT count(*) FROM objects") == [(2,)]
        (sha256,) = rows(private, "SELECT sha256 FROM objects WHERE source IS NULL")[0]
        assert receiver.objects.read(str(sha256)), "what stays opens with the newest key"
        assert len(at.keys.versions(HOSPITAL)) == 1
        receive(receiver, image(3))
        await through(cleaner)
        assert rows(private, STATES) == [("cleaned", "", "")], "sent again by the PACS"
        names = [path for path in receiver.objects.folder.rglob("*") if path.is_file()]
        assert {path.name[:64] for path in names} == {sha256}


def entry(**said: object) -> Accept:
    return Accept.model_validate({"called": "MRI", "calling": ["CT1"], "from": ["127.0.0.0/8"], "dataset": "brain-mri", **said})


async def test_objects_are_deidentified_as_the_hospitals_file_says_of_their_title(private: Path) -> None:
    async with opened(private) as (_, receiver, cleaner):
        said = {"": None, "MRI": entry(deidentification="dates=shift"), "CT": entry(deidentification="datas")}
        cleaner._entry = lambda _project, called: said[called]
        for number, called in enumerate(("", "MRI")):
            receive(receiver, image(1, study=number), called=called)
        await through(cleaner)
        dates = rows(private, "SELECT date FROM studies t JOIN scopes s ON s.id = t.scope WHERE realm = 'clean'")
        assert len(dates) == 2 and sum(bool(date) for (date,) in dates) == 1, "dates go by the node's own options, and are shifted there"
        receive(receiver, image(1, study=2), called="CT")
        with pytest.raises(Problem, match="datas"):
            await cleaner.step()
        assert rows(private, "SELECT count(*) FROM objects WHERE state = 'received'") == [(1,)], "nothing is lost by a word that is wrong"


async def test_what_no_approval_covers_is_held_back(private: Path) -> None:
    async with opened(private) as (_, receiver, cleaner):
        cleaner._entry = lambda *_: entry(ethics="IRB-9")
        receive(receiver, image(1))
        await through(cleaner)
        assert rows(private, STATES) == [("quarantined", "consent", "ethics.unknown")]


async def test_a_policy_that_is_broken_costs_no_object(private: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):
        receive(receiver, image(1))
        at.layout.policy.write_text("[")
        for _ in range(states.ATTEMPTS + 1):
            with pytest.raises(Problem):
                await cleaner.step()
        at.layout.policy.write_text("")
        await through(cleaner)
        assert rows(private, STATES) == [("cleaned", "", "")]


async def test_what_blocks_is_the_projects_to_say(private: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):
        at.layout.policy.write_text('[quality]\nbrain = ["clipped"]\n')
        receive(receiver, flat())  # constant, which blocks by itself
        await through(cleaner)
        assert rows(private, STATES) == [("cleaned", "", "")]
        at.layout.policy.write_text('[quality]\nbrain = ["clipped", "default"]\n"*" = []\n')
        white = image(2)
        white.PixelData = np.where(np.arange(white.Rows * white.Columns) % 2, 32767, 5).astype(np.int16).tobytes()
        receive(receiver, white, flat())
        await through(cleaner)
        assert rows(private, STATES)[1:] == [("quarantined", "quality", "clipped")], "the same object again is known"
        await settle(at, cleaner._connection, 0)
        report = await judge(at, "brain")
        assert report.held == {"clipped": 1}
        assert {one["code"]: one["blocking"] for one in report.document()["rules"]}["constant_image"]
        at.layout.policy.write_text('[quality]\nheart = ["missing_slice"]\n')
        with pytest.raises(Problem, match="missing_slices"):
            at.policy()


async def test_a_series_with_a_hole_is_held_back_until_it_is_whole(private: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):
        receive(receiver, *stack(missing=3))
        await through(cleaner)
        assert await settle(at, cleaner._connection, 0)
        assert rows(private, STATES) == [("quarantined", "series", "missing_slices")] * 4
        assert (await used(at), rows(private, "SELECT count(*) FROM objects")) == (0, [(4,)]), "nothing of it is in the data set"
        assert not list(at.objects.objects()), "nor are its bytes kept"
        assert [one["detail"]["rejected"] for one in records(private) if one["sub"] == "edge.ingest"] == [4]
        assert held(at, "brain") == {"missing_slices": 4}

        await review.release(at, states.held(cleaner._connection)[0].id)
        await through(cleaner)
        await settle(at, cleaner._connection, 0)
        assert rows(private, STATES) == [("quarantined", "series", "missing_slices")] * 4, "as nothing changed"

        receive(receiver, *(one for one in stack() if one.InstanceNumber == 3))
        for _ in range(2):
            await through(cleaner)
            await settle(at, cleaner._connection, 0)
        assert rows(private, STATES) == [("cleaned", "", "")] * 5
        assert await used(at) == 5
        assert not await settle(at, cleaner._connection, 0)


async def test_nobody_uses_what_a_pacs_sends_before_its_study_is_settled(private: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):

        async def seen() -> tuple[int, int, int, int | None]:
            """By a round, by a plan's count, by whoever looks, and what is told: of one patient, nothing."""
            found = await samples.cohort(at, CT)
            told = await described.descriptor(at, "brain")
            return len(await samples.rows(at, CT, held_out=False)), found.samples, await used(at), told.samples

        async def version() -> int:
            async with at.unit() as uow:
                return int((await uow.execute(select(func.coalesce(func.max(datasets.c.version), 0)))).scalar_one())

        whole, late = stack(count=6)[:5], stack(count=6)[5]
        receive(receiver, *whole)
        await through(cleaner)
        await settle(at, cleaner._connection, 60)
        async with at.unit() as uow:  # as a hospital that knows what they show
            await uow.execute(update(unsettled).values(label="none", held_out=False))
        assert rows(private, STATES) == [("cleaned", "", "")] * 5
        assert (await seen(), await version()) == ((0, 0, 0, None), 0)
        assert states.unsettled(cleaner._connection) == {"brain": 1}
        assert await settle(at, cleaner._connection, 0)
        assert (await seen(), await version()) == ((5, 5, 5, None), 1)
        assert states.unsettled(cleaner._connection) == {}

        receive(receiver, late)
        await through(cleaner)
        assert (await seen(), await version()) == ((5, 5, 5, None), 1), "what was settled is used on, and what came late is not"
        async with at.unit() as uow:
            await uow.execute(update(unsettled).values(label="none", held_out=False))
        assert await settle(at, cleaner._connection, 0)
        assert (await seen(), await version()) == ((6, 6, 6, None), 2)


async def test_what_comes_while_a_study_is_settled_waits_for_the_next_time(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(private) as (at, receiver, cleaner):
        whole = stack(count=6)
        receive(receiver, *whole[:4])
        await through(cleaner)
        tell = settling._tell

        async def later(*given: Any) -> None:
            receive(receiver, whole[5])  # there is a hole now
            await through(cleaner)
            await tell(*given)

        with monkeypatch.context() as patched:
            patched.setattr(settling, "_tell", later)
            await settle(at, cleaner._connection, 0)
        assert await used(at) == 4, "those that were judged"
        assert [one["detail"]["stored"] for one in records(private) if one["sub"] == "edge.ingest"] == [4]
        assert await settle(at, cleaner._connection, 0)
        assert (await used(at), held(at, "brain")) == (0, {"missing_slices": 5})


async def test_what_waits_goes_with_its_patient_and_gives_way_to_what_is_taken_in_by_hand(private: Path, tmp_path: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):
        receive(receiver, image(1), image(1, study=1))
        await through(cleaner)
        await forgetting.ask(at, forgetting.who(at, "P0000"), "mistake", "somebody")
        for one in await forgetting.waiting(at):
            if one["state"] == "asked":
                await forgetting.approve(at, one["request"], "somebody else")
        async with at.unit() as uow:
            (left,) = await uow.all(select(unsettled))
        assert list(at.objects.objects()) == [left.object]
        (tmp_path / "a.dcm").write_bytes(file(image(1, study=1)))
        (tmp_path / "labels.csv").write_text("file,label\na.dcm,tumour\n")
        assert (await intake.ingest(at, tmp_path, "brain")).stored == 1
        await settle(at, cleaner._connection, 0)
        async with at.unit() as uow:
            assert [one.label for one in await uow.all(select(items.c.label))] == ["tumour"], "it knows more, and came after"


async def test_a_series_with_a_hole_is_no_matter_where_the_project_says_so(private: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):
        at.layout.policy.write_text('[quality]\nbrain = ["constant_image"]\n')
        receive(receiver, *stack(missing=3))
        await through(cleaner)
        await settle(at, cleaner._connection, 0)
        assert rows(private, STATES) == [("cleaned", "", "")] * 4


async def test_killed_while_a_series_is_held_back_it_comes_to_the_same(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    async with opened(private) as (at, receiver, cleaner):
        receive(receiver, *stack(missing=3))
        await through(cleaner)

        def killed(*_: Any, **__: Any) -> Any:
            raise Killed

        for module, name in ((at.objects, "delete"), (states, "forget"), (states, "quarantine"), (settling, "_tell"), (states, "told")):
            with monkeypatch.context() as patched:
                patched.setattr(module, name, killed)
                with pytest.raises(Killed):
                    await settle(at, cleaner._connection, 0)
            assert await used(at) == 0
        await settle(at, cleaner._connection, 0)
        assert rows(private, STATES) == [("quarantined", "series", "missing_slices")] * 4
        assert rows(private, "SELECT count(*) FROM objects") == [(4,)]
        assert not list(at.objects.objects())
        assert [one["detail"] for one in records(private) if one["sub"] == "edge.ingest"] == [
            {"stored": 0, "known": 0, "rejected": 4, "revision": 4}
        ]


async def test_killed_while_a_study_is_settled_its_items_are_used_once_it_is_told(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    async with opened(private) as (at, receiver, cleaner):
        receive(receiver, *stack())
        await through(cleaner)
        for module, name, there in ((storing, "admit", 0), (settling.intake, "complete", 0), (states, "told", 5)):
            with monkeypatch.context() as patched:
                patched.setattr(module, name, killed)
                with pytest.raises(Killed):
                    await settle(at, cleaner._connection, 0)
            told = [one for one in records(private) if one["sub"] == "edge.ingest"]
            assert (await used(at), len(told)) == (there, there // 5)
        await settle(at, cleaner._connection, 0)
        assert await used(at) == 5
        assert [one["detail"]["stored"] for one in records(private) if one["sub"] == "edge.ingest"] == [5]
        assert not await settle(at, cleaner._connection, 0)


def folder(path: Path, *found: pydicom.Dataset) -> Path:
    """Their files, of one series beside those of another by name."""
    path.mkdir()
    for place, one in enumerate(found):
        (path / f"{one.InstanceNumber}-{place}.dcm").write_bytes(file(one))
    return path


async def test_a_folder_is_judged_by_series_as_what_a_pacs_sends(private: Path, tmp_path: Path) -> None:
    async with opened(private) as (at, receiver, cleaner):
        other = stack()
        for one in other:  # by itself no rule about series says anything of it
            one.SeriesInstanceUID, one.SOPInstanceUID = f"{one.SeriesInstanceUID}.9", f"{one.SOPInstanceUID}.9"
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        other[2].PixelData = bytes(len(other[2].PixelData))  # is no slice, as it is constant
        given = folder(tmp_path / "pacs", *stack(missing=3), *other)
        for dry in (True, False):
            done = await intake.ingest(at, given, "brain", dry_run=dry)
            assert (done.stored, dict(done.rejected)) == (0, {"intake.quality": 9})
            assert done.quality == {"missing_slices": 8, "constant_image": 1}
            assert {one.codes for one in done.left_out} == {"quality.missing_slices", "quality.constant_image"}
        assert (await used(at), list(at.objects.objects())) == (0, [])

        receive(receiver, *stack(missing=3), *other)
        await through(cleaner)
        await settle(at, cleaner._connection, 0)
        assert held(at, "brain") == done.quality, "the same words"

        at.layout.policy.write_text('[quality]\nbrain = ["constant_image"]\n')
        assert (await intake.ingest(at, given, "brain")).stored == 8


async def test_a_series_of_a_folder_is_stored_whole_or_not_at_all(private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    async with opened(private) as (at, _, _):
        given = folder(tmp_path / "pacs", *stack(), image(1, study=1), image(2, study=1))
        monkeypatch.setattr(intake, "BATCH", 2)
        whole, calls = intake.storing.store, 0

        async def store(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise Killed
            return await whole(*arguments, **more)

        with monkeypatch.context() as patched:
            patched.setattr(intake.storing, "store", store)
            with pytest.raises(Killed):
                await intake.ingest(at, given, "brain")
        assert await used(at) == 5
        done = await intake.ingest(at, given, "brain")
        assert (done.known, done.stored, await used(at)) == (5, 2, 7)

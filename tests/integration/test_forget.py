"""A hospital forgets one patient: images, results and links are gone, everybody else's are there, and no kill leaves it half done.

No platform is needed: the node's folder is all there is to look at. What the platform's log holds is `tests/e2e/test_forget.py`.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import insert

from medmesh.contracts.data import ImageSchema
from medmesh.errors import Problem
from medmesh.imaging.reading import wrap
from medmesh.security.keys import write_secret
from medmesh_edge import forgetting, intake, patients, samples
from medmesh_edge.policy import DEFAULT
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Layout, Settings
from medmesh_edge.tables import cohorts

PATIENTS, EACH = 5, 3
AFFECTED = {"datasets": ["xiehe/brain"], "federations": []}
ALONE = DEFAULT.replace("forget_second_person = true", "forget_second_person = false").replace("ethics = true", "ethics = false")
SCHEMA = ImageSchema(modality="MR", image_size=16, channels=1, classes=("none", "tumour"))


def pacs(folder: Path) -> Path:
    target = folder / "pacs"
    target.mkdir()
    dice = np.random.default_rng(3)
    rows = ["file,label,split"]
    for n in range(PATIENTS * EACH):
        who = n // EACH
        data = wrap(
            Image.fromarray(dice.integers(0, 200, (32, 32)).astype(np.uint8)),
            patient_id=f"PID-KANARY-{who}",
            patient_name=f"Kanary^Name{who}",
            study_uid=f"2.25.{100 + n}",
            series_uid=f"2.25.{200 + n}",
            sop_uid=f"2.25.{300 + n}",
            modality="MR",
            study_date="20240102",
            extra={},
        )
        (target / f"{n}.dcm").write_bytes(data)
        rows.append(f"{n}.dcm,{('none', 'tumour')[n % 2]},train")
    (target / "labels.csv").write_text("\n".join(rows))
    return target


def prepare(folder: Path, policy: str) -> Path:
    """A node's folder without a platform."""
    layout = Layout(folder)
    folder.mkdir(mode=0o700)
    Settings(hospital="xiehe", node="node-1", gateway="https://127.0.0.1:1").save(folder)
    write_secret(layout.site_key, secrets.token_hex(32).encode())
    layout.policy.write_text(policy)
    return folder


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    async with site(prepare(private / "node", ALONE)) as opened:
        outcome = await intake.ingest(opened, pacs(private), "brain")
        assert outcome.stored == PATIENTS * EACH, outcome
        yield opened


def everything(folder: Path) -> bytes:
    """Every byte of every file of the node, names included; the key of pseudonyms is the hospital's secret and no trace of anybody."""
    return b"\0".join(
        str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "secrets" not in path.parts
    )


def tables(folder: Path) -> str:
    with sqlite3.connect(folder / "store.db") as sql:
        names = [name for (name,) in sql.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return "\n".join(repr(row) for name in names for row in sql.execute(f"SELECT * FROM {name}"))


def records(folder: Path, start: int = 0) -> list[dict[str, Any]]:
    with sqlite3.connect(folder / "store.db") as sql:
        return [json.loads(body) for (body,) in sql.execute("SELECT body FROM audit_outbox WHERE n > ? ORDER BY n", (start,))]


def named(at: Site, patient: str, key: Any) -> list[str]:
    return [verb for _, _, verb in patients.traces(at, patient, key, enumerate(records(at.layout.folder)))]


async def key_of(at: Site, patient: str) -> Any:
    async with at.unit() as uow:
        return (await patients.known(uow, at, [patient])).get(patient)


async def test_nothing_of_a_forgotten_patient_is_left_and_everything_of_the_others_is(at: Site) -> None:
    folder = at.layout.folder
    one, others = forgetting.who(at, "PID-KANARY-1"), [forgetting.who(at, f"PID-KANARY-{n}") for n in (0, 2, 3, 4)]
    path, count = await samples.prepare(at, SCHEMA, held_out=False)
    assert count == PATIENTS * EACH
    assert path.exists()
    key = await key_of(at, one)
    before = everything(folder)
    # The scan finds what it looks for: otherwise its silence afterwards would say nothing.
    assert one.encode() in before and one in tables(folder)
    assert b"KANARY" not in before.upper(), "who it is was never written down"
    async with at.unit() as uow:
        rows = await uow.all(samples.select(samples.items).where(samples.items.c.patient == one))
        named_there = [row.item for row in rows]
        await uow.execute(insert(cohorts).values(modality="MR", label="none", members=named_there))
    assert len(rows) == EACH
    stolen = {row.object: (at.layout.objects / row.object[:2] / f"{row.object}.key").read_bytes() for row in rows}
    store_before = (folder / "store.db").read_bytes() + (folder / "store.db-wal").read_bytes()
    wrapped_before = {path.name: path.read_bytes() for path in at.layout.keys.iterdir()}
    assert named(at, one, key) == ["patient.ingest"]

    request, done = await forgetting.ask(at, one, "requested", "li")

    assert done
    after = everything(folder)
    assert one.encode() not in after and one not in tables(folder)
    assert b"KANARY" not in after.upper()
    assert all(row.object.encode() not in after and row.item.encode() not in after for row in rows)
    assert not path.exists(), "arrays for training showed the images"
    assert all(other.encode() in after for other in others)
    # The key is nowhere, not even for somebody who copied the store and the objects before: what wrapped it is destroyed.
    assert await key_of(at, one) is None
    assert await forgetting.count(at) == PATIENTS - 1
    assert {path.name for path in at.layout.keys.iterdir()}.isdisjoint(wrapped_before)
    copied = set(re.findall(rb"intl-1\.hospital\.1\.[A-Za-z0-9+/]+=*", store_before))
    assert len(copied) >= PATIENTS
    for token in copied:
        assert token not in after
        with pytest.raises(Problem) as caught:
            at.keys.unwrap(patients.HOSPITAL, token.decode(), patients.bound(at, one))
        assert caught.value.code == "keyring.gone"
    # What was recorded of the patient stays as it was, and cannot be linked any more but by whoever kept the key itself.
    for sha256, content in stolen.items():
        place = at.layout.objects / sha256[:2] / f"{sha256}.key"
        place.write_bytes(content)
        with pytest.raises(Problem):
            b"".join(at.objects.open(sha256))
        place.unlink()
    (told,) = [record for record in records(folder) if record["sub"] == "patient.forget"]
    assert told["detail"] == {"events": 0, "items": EACH, "reason": "requested", "second_person": False}
    assert [(one["type"], one["id"]) for one in told["entities"]] == [("request", request), ("dataset", "xiehe/brain")]

    _, left = await samples.prepare(at, SCHEMA, held_out=False)
    assert left == (PATIENTS - 1) * EACH, "the others' images open as before"
    assert named(at, others[0], await key_of(at, others[0])) == ["patient.ingest"]
    with pytest.raises(Problem) as caught:
        await forgetting.ask(at, one, "requested", "li")
    assert caught.value.code == "edge.patient_unknown"


async def test_records_do_not_tell_which_are_about_one_patient(at: Site, private: Path) -> None:
    await intake.ingest(at, pacs_again(private), "brain")
    found = [record for record in records(at.layout.folder) if record["sub"] == "patient.ingest"]
    names = [one["id"] for record in found for one in record["entities"] if one["type"] == "patient"]
    assert len(found) == 2 and len(names) == PATIENTS + 1
    assert len(set(names)) == len(names), "never the same name twice"
    assert len({len(name) for name in names}) == 1
    one = forgetting.who(at, "PID-KANARY-0")
    assert named(at, one, await key_of(at, one)) == ["patient.ingest", "patient.ingest"]
    stranger = forgetting.who(at, "PID-KANARY-4")
    assert named(at, one, await key_of(at, stranger)) == []


def pacs_again(folder: Path) -> Path:
    """One more image of the first patient."""
    target = folder / "more"
    target.mkdir()
    data = wrap(
        Image.fromarray(np.random.default_rng(9).integers(0, 200, (32, 32)).astype(np.uint8)),
        patient_id="PID-KANARY-0",
        patient_name="Kanary^Name0",
        study_uid="2.25.9",
        series_uid="2.25.8",
        sop_uid="2.25.7",
        modality="MR",
        study_date="20240102",
        extra={},
    )
    (target / "a.dcm").write_bytes(data)
    return target


async def test_a_second_person_must_agree_where_the_policy_says_so(at: Site) -> None:
    at.layout.policy.write_text(DEFAULT)
    one = forgetting.who(at, "PID-KANARY-1")
    request, done = await forgetting.ask(at, one, "withdrawn", "li")
    assert not done
    assert await key_of(at, one) is not None
    for call, code in (
        (lambda: forgetting.approve(at, request, "li"), "edge.forget_same_person"),
        (lambda: forgetting.ask(at, one, "withdrawn", "wu"), "edge.forget_open"),
        (lambda: forgetting.ask(at, one, "because of PID-KANARY-1", "wu"), "edge.forget_reason"),
        (lambda: forgetting.approve(at, "another", "wu"), "request.not_found"),
    ):
        with pytest.raises(Problem) as caught:
            await call()
        assert caught.value.code == code
    assert await key_of(at, one) is not None
    await forgetting.approve(at, request, "wu")
    assert await key_of(at, one) is None
    assert one.encode() not in everything(at.layout.folder)
    (told,) = await forgetting.waiting(at)
    assert told == {"request": request, "reason": "withdrawn", "asked_by": "li", "approved_by": "wu", "state": "done", "affected": AFFECTED}
    assert [r["sub"] for r in records(at.layout.folder)][-2:] == ["patient.forget_ask", "patient.forget"]


@pytest.mark.parametrize("step", ["delete", "rewrap", "versions_in_use", "compact", "destroy"])
async def test_killed_anywhere_it_is_finished_at_the_next_start(private: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    folder = prepare(private / "node", ALONE)

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    async with site(folder) as at:
        await intake.ingest(at, pacs(private), "brain")
        one = forgetting.who(at, "PID-KANARY-1")
        with monkeypatch.context() as patch:
            if step == "compact":
                patch.setattr(forgetting, "compact", kill)
            else:
                patch.setattr(at.keys if step == "destroy" else at.objects, step, kill) if step != "destroy" else patch.setattr(
                    type(at.keys), "destroy", kill
                )
            with pytest.raises(Killed):
                await forgetting.ask(at, one, "requested", "li")
    async with site(folder) as at:
        assert await forgetting.finish(at)
        assert not await forgetting.finish(at)
        assert one.encode() not in everything(folder)
        assert [row["state"] for row in await forgetting.waiting(at)] == ["done"]
        assert len(at.keys.versions(patients.HOSPITAL)) == 1
        _, left = await samples.prepare(at, SCHEMA, held_out=False)
        assert left == (PATIENTS - 1) * EACH
        assert len([r for r in records(folder) if r["sub"] == "patient.forget"]) == 1


async def test_a_patient_taken_in_again_is_a_new_one(at: Site, private: Path) -> None:
    one = forgetting.who(at, "PID-KANARY-0")
    old = await key_of(at, one)
    await forgetting.ask(at, one, "mistake", "li")
    outcome = await intake.ingest(at, private / "pacs", "brain")
    assert (outcome.stored, outcome.known) == (EACH, (PATIENTS - 1) * EACH)
    new = await key_of(at, one)
    assert len(named(at, one, new)) == 1
    assert len(named(at, one, old)) == 1


async def test_taking_in_and_forgetting_at_once_loses_nobody(at: Site, private: Path) -> None:
    """Keys made while the hospital's key is turned over are never under a version that is destroyed."""
    again = pacs_again(private)
    gone = [forgetting.who(at, f"PID-KANARY-{n}") for n in (1, 2, 3)]

    async def forget() -> None:
        for one in gone:
            await forgetting.ask(at, one, "requested", "li")

    async def take() -> None:
        for _ in range(4):
            await intake.ingest(at, again, "brain")

    await asyncio.gather(forget(), take())
    _, left = await samples.prepare(at, SCHEMA, held_out=False)
    assert left == 2 * EACH
    assert await key_of(at, forgetting.who(at, "PID-KANARY-0")) is not None

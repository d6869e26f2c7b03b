"""Free text of a hospital in a node's data set: what rules are sure of is replaced, what they doubt waits for a person."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select
from tests.integration.test_content import AGE
from tests.integration.test_forget import ALONE, everything, prepare, records
from tests.unit.importing import making

from medmesh.canonical import parse
from medmesh.cli.edge import edge
from medmesh.contracts.data import TableSchema
from medmesh.errors import Problem
from medmesh_edge import described, ethics, forgetting, intake, quality, samples, storing, tabular, texts
from medmesh_edge.ethics import Approval
from medmesh_edge.policy import DEFAULT
from medmesh_edge.ports import Site, site
from medmesh_edge.tables import held_texts, items

SURE = "姓名：王丽 女 45岁 住院号：ZY123456，2024年3月5日就诊，电话13800138000。右肺上叶见磨玻璃结节。"
DOUBT = "No acute infarct. Discussed with Kanary and the family."
KNOWN = "Kanary was seen. No acute infarct."
FILES = {
    "sure.txt": SURE.encode("gb18030"),
    "doubt.txt": DOUBT.encode(),
    "known.txt": KNOWN.encode(),
    "damaged.txt": "右肺锟斤拷结节".encode(),
    "nobody.txt": b"A note of nobody.",
    "labels.csv": (
        b"file,label,split,patient,name\nsure.txt,none,,PIDKANARY1,\ndoubt.txt,tumour,test,PIDKANARY2,\n"
        b"known.txt,none,,PIDKANARY3,Kanary^San\ndamaged.txt,none,,PIDKANARY4,\n"
    ),
}


def folder(private: Path, files: dict[str, bytes] | None = None) -> Path:
    return making.write(private / "notes", files or FILES)


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    async with site(prepare(private / "node", ALONE)) as opened:
        yield opened


async def notes(at: Site) -> dict[str, str]:
    """The words in the data set, by label and modality."""
    async with at.unit() as uow:
        rows = await uow.all(select(items, samples.patients.c.key).join(samples.patients, items.c.patient == samples.patients.c.patient))
    found = {}
    for row in rows:
        raw = b"".join(samples.images(at, samples.opened(at, row.patient, row.key)).open(row.object))
        if row.modality.startswith("text:"):
            found[parse(raw)["text"]] = f"{row.modality} {row.label} {row.held_out}"
    return found


async def held(at: Site) -> list[tuple[Any, ...]]:
    async with at.unit() as uow:
        rows = await uow.all(select(held_texts).order_by(held_texts.c.number))
    return [(row.state, row.doubts, bool(row.object)) for row in rows]


async def test_what_is_sure_is_replaced_and_what_is_doubted_waits(at: Site, private: Path) -> None:
    planned = await intake.ingest(at, folder(private), "notes", dry_run=True)
    assert (planned.stored, planned.held, await held(at)) == (2, 1, [])
    done = await intake.ingest(at, folder(private), "notes")
    assert (done.stored, done.held) == (2, 1)
    assert {one.name: one.codes for one in done.left_out} == {"nobody.txt": "intake.no_patient", "damaged.txt": "quality.damaged_encoding"}
    sure = "姓名：[NAME] 女 45岁 住院号：[RECORD]，[DATE]就诊，电话[PHONE]。右肺上叶见磨玻璃结节。"
    assert set(await notes(at)) == {sure, "[NAME] was seen. No acute infarct."}, "a name that is known is found where nothing marks it"
    again = await intake.ingest(at, folder(private), "notes")
    assert (again.stored, again.known, again.held) == (0, 2, 1)
    assert await held(at) == [("held", 1, True)], "asked once"
    assert [r["detail"] for r in records(at.layout.folder) if r["sub"] == "text.hold"] == [{"notes": 1}]
    assert (await described.descriptor(at, "notes")).modality == "text:note"
    report = await quality.judge(at, "notes")
    assert (dict(report.items), report.blocked) == ({"text": 2}, 0)
    whole = everything(at.layout.folder).upper()
    for one in ("KANARY", "13800138000", "ZY123456"):
        assert one.encode() not in whole, "what waits lies under its patient's key, and no name of a file is kept"


async def test_a_person_releases_and_says_what_stays_and_what_goes_too(at: Site, private: Path) -> None:
    text = "Seen by Dr. Adams. Stable after Valsalva manoeuvre, says Kanary, at bed seven."
    files = {"sub-PIDKANARY1/a.txt": text.encode()}
    await intake.ingest(at, folder(private, files), "notes")
    note = await texts.read(at, None)
    found = {words: (number, doubt) for number, _, words, doubt in note.found}
    assert {words: doubt for words, (_, doubt) in found.items()} == {"Adams": False, "Valsalva": True, "Kanary": True}
    start = text.index("bed seven")
    for wrong in ({"keep": [9]}, {"also": [(5, 5)]}, {"also": [(0, 900)]}):
        with pytest.raises(Problem, match="place"):
            await texts.release(at, note.number, "li", **wrong)
    assert await notes(at) == {} and await held(at) == [("held", 2, True)], "nothing is half done"
    await texts.release(at, note.number, "li", keep=[found["Valsalva"][0]], also=[(start, start + 9)])
    assert list(await notes(at)) == ["Seen by Dr. [NAME]. Stable after Valsalva manoeuvre, says [NAME], at [NAME]."]
    assert await held(at) == [("released", 2, False)], "the note as it came is gone"
    (told,) = [r for r in records(at.layout.folder) if r["sub"] == "text.release"]
    assert told["detail"] == {"found": 4, "kept": 1, "added": 1}
    assert [r["sub"] for r in records(at.layout.folder) if r["sub"].startswith("text.")] == ["text.hold", "text.read", "text.release"]
    assert [r["sub"] for r in records(at.layout.folder)].count("patient.ingest") == 1, "the patient comes in with the release"
    with pytest.raises(Problem) as caught:
        await texts.release(at, note.number, "li")
    assert caught.value.code == "text.not_held"
    again = await intake.ingest(at, folder(private), "notes")
    assert again.known == 1, "what was decided is not asked again"


async def test_a_rejected_note_stays_out(at: Site, private: Path) -> None:
    await intake.ingest(at, folder(private), "notes")
    await texts.reject(at, 1, "li")
    assert len(await notes(at)) == 2 and await held(at) == [("rejected", 1, False)]
    again = await intake.ingest(at, folder(private), "notes")
    assert (again.held, again.rejected["text.rejected"], len(await notes(at))) == (0, 1, 2)
    assert ("doubt.txt", "text.rejected") in [(one.name, one.codes) for one in again.left_out]
    assert [r["sub"] for r in records(at.layout.folder) if r["sub"].startswith("text.")] == ["text.hold", "text.reject"]


async def test_killed_at_any_line_a_decision_is_whole_or_made_again(at: Site, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await intake.ingest(at, folder(private), "notes")
    real = storing.store

    async def killed(*arguments: Any, **options: Any) -> Any:
        await real(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(storing, "store", killed)
    with pytest.raises(KeyboardInterrupt):
        await texts.release(at, 1, "li")
    monkeypatch.undo()
    assert await held(at) == [("held", 1, True)] and len(await notes(at)) == 3
    await texts.reject(at, 1, "li")
    assert len(await notes(at)) == 2, "a rejection takes away what a killed release had stored"

    await intake.ingest(at, folder(private, {"sub-B/a.txt": DOUBT.encode()}), "notes")
    monkeypatch.setattr(texts, "sweep", lambda _: asyncio.sleep(0))
    await texts.reject(at, 2, "li")
    assert (await held(at))[1] == ("rejected", 1, True)
    monkeypatch.undo()
    await texts.waiting(at)
    assert (await held(at))[1] == ("rejected", 1, False), "erased at the next use"


async def test_a_forgotten_patient_takes_what_waits_along(at: Site, private: Path) -> None:
    await intake.ingest(at, folder(private), "notes")
    async with at.unit() as uow:
        (row,) = await uow.all(select(held_texts))
    assert any(path.name.startswith(row.object) for path in at.layout.objects.rglob("*"))
    _, done = await forgetting.ask(at, forgetting.who(at, "PIDKANARY2"), "withdrawn", "zhao")
    assert done and await held(at) == []
    assert not any(path.name.startswith(row.object) for path in at.layout.objects.rglob("*"))
    again = await intake.ingest(at, folder(private), "notes")
    assert (again.held, again.rejected["intake.withdrawn"]) == (0, 1)


async def test_a_release_stands_on_the_approval_and_the_consent(private: Path) -> None:
    async with site(prepare(private / "node", DEFAULT)) as at:
        await ethics.record(at, Approval("LL-1", "notes", ("text",), date(2020, 1, 1), date(2999, 1, 1), True), "li")
        who = forgetting.who(at, "PIDKANARY2")
        done = await intake.ingest(at, folder(private), "notes", ethics="LL-1")
        assert done.held == 0 and done.rejected["intake.no_consent"] == 3
        await ethics.consent(at, "LL-1", [who], agreed=True)
        assert (await intake.ingest(at, folder(private), "notes", ethics="LL-1")).held == 1
        await ethics.consent(at, "LL-1", [who], agreed=False)
        with pytest.raises(Problem) as caught:
            await texts.release(at, 1, "li")
        assert caught.value.code == "intake.no_consent"
        await ethics.consent(at, "LL-1", [who], agreed=True)
        await texts.release(at, 1, "li")
        assert list((await notes(at)).values()) == ["text:note tumour True"], "with its label, and on its side of the split"


ROWS = TableSchema.model_validate({"kind": "table", "table": "heart", "features": (AGE,), "classes": ("none", "tumour")})


async def test_columns_of_a_table_go_through_the_same_rules(at: Site, private: Path) -> None:
    source, columns = private / "heart.csv", private / "columns.toml"
    columns.write_text('patient = "id"\nlabel = "state"\nvisit = "day"\nknown = ["name"]\n[texts]\nfindings = "所见"\n')
    head = "id,day,name,age,state,所见\n"

    async def taken(*rows: str) -> Any:
        source.write_text(head + "\n".join(rows) + "\n")
        return await tabular.ingest(at, source, columns, ROWS, "heart")

    first = ("P1,1,Li Kanary,40,none,Li Kanary is well.", "P2,1,Wang Kanary,50,tumour,Worse says Zhou.", "P3,1,X,60,none,")
    done = await taken(*first)
    assert (done.stored, done.held) == (4, 1), "three rows of numbers, one note"
    assert await notes(at) == {"[NAME] is well.": next(iter((await notes(at)).values()))}
    assert next(iter((await notes(at)).values())).startswith("text:findings none")
    again = await taken(*first)
    assert (again.stored, again.known, again.held) == (0, 4, 1)
    await taken(first[0], "P2,1,Wang Kanary,50,tumour,Worse.", first[2])
    assert await held(at) == [("replaced", 1, False)], "corrected at the hospital, nobody needs to look at the old words"
    assert set(await notes(at)) == {"[NAME] is well.", "Worse."}
    assert [r["detail"] for r in records(at.layout.folder) if r["sub"] == "text.hold"] == [{"notes": 1}], "a column's, too"


async def test_the_commands_lead_through_it(private: Path) -> None:
    prepare(private / "node", ALONE)
    where = ["--folder", str(private / "node")]

    def run(*arguments: str, code: int = 0) -> str:
        said = CliRunner().invoke(edge, [*arguments, *where], standalone_mode=False)
        if said.exception is not None:
            raise said.exception
        assert (said.return_value or 0) == code
        return said.output

    def walk() -> None:
        assert "1 notes wait for a person" in run("ingest", str(folder(private)), "--dataset", "notes", "--json")
        listed = run("text", "list")
        assert "1 doubts" in listed and "text:note" in listed and "Kanary" not in listed
        assert "Discussed with ⟦0? NAME Kanary⟧ and the family." in run("text", "show")
        with pytest.raises(Problem):
            run("text", "show", "7")
        assert "released" in run("text", "release", "1")
        assert run("text", "list") == ""

    await asyncio.to_thread(walk)
    async with site(private / "node") as at:
        assert "No acute infarct. Discussed with [NAME] and the family." in await notes(at)

"""The node's cold tier: as its settings say, on record, read by DICOMweb, and reached by a forgetting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.dicoms import SETTINGS, image, records, rows
from tests.unit.edge.test_cleaning import opened, receive, through

from medmesh.cli.edge.dicom import dicom
from medmesh.errors import Problem
from medmesh_edge import forgetting
from medmesh_edge.archiving import Archive
from medmesh_edge.settings import ColdTier
from medmesh_edge.tiering import Tiering


async def moved(archive: Archive) -> None:
    tiering = Tiering(archive)
    while await tiering.step():
        pass
    tiering.close()


async def test_what_is_old_goes_on_record_and_a_forgetting_reaches_it(private: Path) -> None:
    cold = private / "cold"
    cold.mkdir()
    async with opened(private) as (at, receiver, cleaner):
        at.settings = SETTINGS.model_copy(update={"cold": ColdTier(folder=cold, after_days=0)})
        at.settings.save(private)
        receive(receiver, image(1), image(2), image(1, study=1))
        await through(cleaner)
        archive = Archive(at)
        await moved(archive)
        assert rows(private, "SELECT state, count(*) FROM tiers GROUP BY 1") == [("cold", 3)]
        (record,) = [one for one in records(private) if one["sub"] == "archive.move"]
        size = sum(int(str(row[0])) for row in rows(private, "SELECT bytes FROM objects WHERE source IS NULL"))
        assert record["detail"] == {"cooled": 3, "recalled": 0, "bytes": size}

        found = CliRunner().invoke(dicom, ["tiers", "--folder", str(private)])
        assert json.loads(found.output)["tiers"] == {"cold": {"objects": 3, "bytes": size}}
        study = image(1, study=1).StudyInstanceUID
        found = CliRunner().invoke(dicom, ["recall", "--folder", str(private), "--study", study])
        assert found.exit_code == 0
        assert "1 " in found.output
        assert rows(private, "SELECT state, count(*) FROM tiers GROUP BY 1 ORDER BY 1") == [("cold", 2), ("recalling", 1)]

        request, done = await forgetting.ask(at, forgetting.who(at, "P0000"), "withdrawn", "somebody")
        if not done:
            await forgetting.approve(at, request, "somebody else")
        (left,) = [path for path in cold.rglob("*") if path.is_file() and path.name != "tier"]
        assert rows(private, "SELECT state, name FROM tiers") == [("recalling", f"{left.parent.name}/{left.name}")]
        (sha256,) = rows(private, "SELECT sha256 FROM objects WHERE source IS NULL")[0]
        assert archive.objects.read(str(sha256)), "what stays opens with the newest key"
        archive.close()


async def test_a_killed_mover_leaves_what_it_moved_on_record(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = private / "cold"
    cold.mkdir()
    async with opened(private) as (at, receiver, cleaner):
        at.settings = SETTINGS.model_copy(update={"cold": ColdTier(folder=cold, after_days=0)})
        receive(receiver, image(1), image(2))
        await through(cleaner)
        archive = Archive(at)
        tiering = Tiering(archive)
        while rows(private, "SELECT count(*) FROM tiers WHERE state = 'cold'") != [(1,)]:
            await tiering.step()
        tiering.close()  # and nothing else of its end: as killed
        await archive.recover()
        (record,) = [one for one in records(private) if one["sub"] == "archive.move"]
        assert (record["detail"]["cooled"], record["why"]) == (1, "archive.interrupted")
        archive.close()


@pytest.mark.parametrize("said", [{}, {"folder": "/a", "s3_url": "https://b"}, {"s3_url": "https://b"}])
def test_a_cold_tier_is_one_place(private: Path, said: dict[str, str]) -> None:
    (private / "edge.json").write_text(json.dumps(SETTINGS.model_dump(mode="json") | {"cold": said}))
    with pytest.raises(Problem) as found:
        type(SETTINGS).load(private)
    assert found.value.code == "settings.invalid"

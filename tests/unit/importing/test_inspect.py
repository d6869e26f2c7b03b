"""`medmesh dataset inspect`: what a person sees before anything is imported."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.unit.importing import layouts

from medmesh.cli import _root
from medmesh.importing.packing import pack
from medmesh.importing.sources import opened


def inspected(*arguments: str, language: str = "en") -> tuple[int, str]:
    done = CliRunner().invoke(_root, ["dataset", "inspect", *arguments], env={"MEDMESH_LANG": language}, standalone_mode=False)
    if done.exception:
        raise done.exception
    return int(done.return_value), done.output


def test_a_plan_is_a_table_in_both_languages(tmp_path: Path) -> None:
    layouts.mura(tmp_path)
    code, said = inspected(str(tmp_path))
    assert code == 0
    lines = [line.split() for line in said.splitlines()]
    assert ["kind", "train", "valid", "all"] in lines
    assert ["image", "3", "1", "4"] in lines
    assert ["1", "abnormal", "2", "0", "2"] in lines
    _, chinese = inspected(str(tmp_path), language="zh")
    assert "共 4 项" in chinese
    assert "已发布 studies 14656 个，此处有 3 个" in chinese


def test_errors_end_with_one_and_stand_last(tmp_path: Path) -> None:
    layouts.pmcvqa(tmp_path)
    path = tmp_path / "test.csv"
    path.write_text(path.read_text().replace(",B\n", ",X\n", 1))
    code, said = inspected(str(tmp_path))
    assert code == 1
    assert said.splitlines()[-2] == "error  test.csv:2: Answer_label must be A, B, C, D."


def test_the_plan_as_json(tmp_path: Path) -> None:
    layouts.medmnist(tmp_path)
    code, said = inspected(str(tmp_path / "pneumoniamnist.npz"), "--json")
    plan = json.loads(said)
    assert (code, plan["importer"], plan["items"], plan["licence"]) == (0, "medmnist", 11, "CC BY 4.0")
    assert {"kind": "image", "split": "train", "items": 6} in plan["counts"]
    assert plan["findings"][0]["code"] == "importing.checksum"
    assert plan["findings"][0]["file"] == "pneumoniamnist.npz"


def test_a_named_importer_is_taken_and_an_unknown_one_refused(tmp_path: Path) -> None:
    layouts.mura(tmp_path)
    from medmesh.errors import Problem

    with pytest.raises(Problem, match=r"there are: .*mura"):
        inspected(str(tmp_path), "--as", "murra")
    assert inspected(str(tmp_path), "--as", "mura")[0] == 0


def test_the_same_data_is_the_same_archive_however_it_is_wrapped(tmp_path: Path) -> None:
    layouts.ctspine1k(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "a").rglob("*.*"), reverse=True):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path / "a").as_posix())
    made = []
    for path in (tmp_path / "a", tmp_path / "b.zip"):
        target, ticks = io.BytesIO(), list[int]()
        with opened(path) as source:
            pack(source, target, ticks.append)
            assert ticks[-1] == sum(map(source.size, source.names))
        made.append(target.getvalue())
    assert made[0] == made[1]
    with zipfile.ZipFile(io.BytesIO(made[0])) as packed:
        assert packed.read("CTSpine1K/Path.csv") == (tmp_path / "a/CTSpine1K/Path.csv").read_bytes()

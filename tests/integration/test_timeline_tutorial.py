"""The tutorial of timelines works as it is written, on a node's folder without a platform. Its commands run in this process: a dozen
starts of an interpreter would cost more than all they do."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.integration.test_forget import prepare, records
from tests.tutorials import REPO, blocks

from medmesh.cli import _root
from medmesh_edge.policy import DEFAULT
from medmesh_edge.settings import Settings

DOCUMENT = REPO / "docs" / "tutorial" / "timeline.md"
_LINE = re.compile(r"(?:echo (?P<given>\S+) \| )?medmesh (?P<words>.*?)(?: \|\| test \$\? = (?P<code>\d))?")


def typed(line: str) -> str:
    """What a line prints; it ends as it says."""
    found = _LINE.fullmatch(line)
    if found is None:
        words = shlex.split(line.replace("python ", f"{sys.executable} ", 1))
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    ran = CliRunner().invoke(_root, shlex.split(found["words"]), input=found["given"], standalone_mode=False)
    assert ran.exception is None, f"{line}: {ran.exception!r}"
    assert (ran.return_value or 0) == int(found["code"] or 0), f"{line}\n{ran.output}"
    return ran.output


def test_three_systems_become_a_cohort(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(private / "node", DEFAULT)
    Settings.load(folder).model_copy(update={"authorities": ("urn:xiehe:mrn", "HIS")}).save(folder)
    monkeypatch.setenv("MEDMESH_EDGE", str(folder))
    monkeypatch.setenv("MEDMESH_LANG", "en")
    monkeypatch.chdir(private)
    printed = ""
    for language, name, text in blocks(DOCUMENT):
        if name:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text, encoding="utf-8")
        elif language == "bash":
            printed += "".join(map(typed, text.splitlines()))
        else:
            assert text in printed, f"{text}\nis not in\n{printed}"
    assert '"stored": 42' in printed and '"stored": 18' in printed
    assert "timeline.not_json" in printed and '"line": 25' in printed
    shown = [line for line in printed.splitlines() if "10839-9" in line and "3.5" in line]
    assert len(shown) == 2 and not any("2024" in line for line in shown), "both results of P3, on the shifted axis"
    assert "held_out" in printed and "croissant.json" in printed and "codes.parquet" in printed
    assert "timeline.card" in {record["sub"] for record in records(folder)}
    assert "Data card" in Path("card.html").read_text(encoding="utf-8")

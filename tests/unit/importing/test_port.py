"""A plan counts what the import would bring, and says where each fault lies; an import stops at the first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medmesh.errors import Problem
from medmesh.importing import registry
from medmesh.importing.port import SHOWN, File, Importer, Item, Report, Source
from medmesh.importing.sources import opened


class Lines(Importer):
    """`split,patient,label` in a file `lines`."""

    name, title, licence, looked_for = "lines", "Lines", "none", "a file lines"

    def sniff(self, source: Source) -> float:
        return float("lines" in source.names)

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        with source.open("lines") as file:
            for line, text in enumerate(file.read().decode().splitlines(), start=1):
                split, patient, label = text.split(",")
                if not patient:
                    report.error("importing.empty", "lines", line=line)
                    continue
                yield Item(f"lines#{line}", "image", (File("lines", "image"),), patient=patient, split=split, labels={"class": label})


def of(tmp_path: Path, text: str) -> Path:
    (tmp_path / "lines").write_text(text)
    return tmp_path


def test_a_plan_counts_and_finds_torn_patients(tmp_path: Path) -> None:
    with opened(of(tmp_path, "train,p1,a\ntrain,p2,b\ntest,p1,a\n")) as source:
        plan = Lines().plan(source)
        assert plan.counts == {("image", "train"): 2, ("image", "test"): 1}
        assert plan.labels == {"class": {"a": {"train": 1, "test": 1}, "b": {"train": 1}}}
        assert (plan.items, plan.units, plan.bytes, plan.errors) == (3, 2, 32, 0)
        (leak,) = plan.findings
        assert (leak.code, leak.severity, dict(leak.params)) == ("importing.leak", "warning", {"units": 1, "of": 2})
        assert "1 个" in plan.document("zh")["findings"][0]["detail"]
        assert plan.manifest == Lines().plan(source).manifest
    with opened(of(tmp_path, "train,p1,a\ntrain,p2,b\ntest,p1,b\n")) as source:
        assert plan.manifest != Lines().plan(source).manifest


def test_a_plan_goes_on_after_a_fault_and_an_import_does_not(tmp_path: Path) -> None:
    with opened(of(tmp_path, "train,p1,a\n" + "train,,a\n" * (SHOWN + 5) + "train,p3,a\n")) as source:
        plan = Lines().plan(source)
        assert (plan.items, plan.errors, len(plan.findings), plan.more) == (2, SHOWN + 5, SHOWN, {"importing.empty": 5})
        assert plan.findings[0].place == "lines:2"
        with pytest.raises(Problem, match="lines:2"):
            list(Lines().items(source))


def test_what_nobody_knows_says_what_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "importers", lambda: (Lines(),))
    with opened(of(tmp_path, "train,p1,a\n")) as source:
        assert registry.recognised(source).name == "lines"
        monkeypatch.setattr(registry, "importers", lambda: (Lines(), Lines()))
        with pytest.raises(Problem) as tie:
            registry.recognised(source)
        assert tie.value.code == "importing.ambiguous"
    (tmp_path / "lines").rename(tmp_path / "other")
    with opened(tmp_path) as source, pytest.raises(Problem, match="lines: a file lines"):
        registry.recognised(source)

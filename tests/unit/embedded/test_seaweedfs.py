"""The object store says before it starts what it would only say in its log."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medmesh.embedded.seaweedfs import PORTS, SeaweedFS
from medmesh.errors import Problem


def test_a_full_disk_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = dict.fromkeys(PORTS, 1)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 993, 7))  # type: ignore[attr-defined]
        with pytest.raises(Problem) as refused:
            SeaweedFS.prepare(tmp_path / "seaweedfs", ports, tmp_path / "s3.json")
    assert refused.value.code == "embedded.no_space"
    assert "0.70 % free" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_buckets_are_not_counted_against_the_free_disk(tmp_path: Path) -> None:
    """Each bucket has volumes of its own; the default allows as many as fit on the disk when they are full, which few do."""
    server = SeaweedFS.prepare(tmp_path / "seaweedfs", dict.fromkeys(PORTS, 1), tmp_path / "s3.json")
    options = [option for option in server.command().argv if option.startswith("-volume.max=")]
    assert options and int(options[0].partition("=")[2]) >= 1000

"""Commands of auditors find the audit service of the platform they are signed in at, where it runs on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from medmesh.cli import audit
from medmesh.embedded import run
from medmesh.errors import Problem


def test_it_is_found_on_the_machine_of_the_platform_one_is_signed_in_at_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMESH_SESSION", str(tmp_path / "session.json"))
    monkeypatch.setenv("MEDMESH_DATA", str(tmp_path / "data"))
    with pytest.raises(Problem) as caught:
        audit.here()
    assert caught.value.code == "cli.signed_out"
    session = {"url": "https://here:1", "ca": "", "session": "s", "name": "qian", "certificate": ""}
    (tmp_path / "session.json").write_text(json.dumps(session))
    (tmp_path / "session.json").chmod(0o600)
    with pytest.raises(Problem) as caught:
        audit.here()
    assert caught.value.code == "cli.no_audit"
    running = {str(tmp_path / "data"): SimpleNamespace(urls={"gateway": "https://here:1", "audit": "https://here:2"})}
    monkeypatch.setattr(run, "running", lambda folder: running.get(str(folder)))
    assert audit.here() == "https://here:2"
    running[str(tmp_path / "data")].urls["gateway"] = "https://elsewhere:1"
    with pytest.raises(Problem) as caught:
        audit.here()
    assert caught.value.code == "cli.no_audit"

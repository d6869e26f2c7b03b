"""Installed models: whole or absent, the previous one kept, the same after a restart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.serving.models import SIZE, manifest, saved

from medmesh.errors import Problem
from medmesh.serving.repository import Repository, Served

MODEL = "lung-nodule"
IMAGE = np.ones((1, 1, SIZE, SIZE), np.float32)


def install(repository: Repository, folder: Path, version: int, **options: Any) -> Served:
    path = saved(folder, f"{version}.onnx", seed=version, **options)
    return repository.install(manifest(path, version), path, f"release-{version}")


def listed(repository: Repository) -> list[tuple[int, str]]:
    return [(found.version, found.state) for found in repository.list()]


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(Problem) as caught:
        call(*arguments)
    return caught.value.code


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_is_installed_answers_and_survives_a_restart(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    assert refused(repository.active, MODEL) == "serving.not_served"
    first = install(repository, tmp_path, 1)
    (tmp_path / "1.onnx").unlink()
    again = Repository(tmp_path / "models").active(MODEL)
    assert (again.manifest, again.release) == (first.manifest, "release-1")
    np.testing.assert_array_equal(again.session.run(IMAGE), first.session.run(IMAGE))
    assert refused(repository.active, MODEL, 2) == "serving.not_served"
    assert refused(repository.active, "../models") == "serving.not_served"


def test_the_previous_version_is_kept_and_older_ones_are_not(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    for version in (1, 2, 3):
        install(repository, tmp_path, version)
    assert listed(repository) == [(3, "active"), (2, "previous")]
    assert not [name for name in files(tmp_path / "models") if "/1-" in name]
    assert repository.rollback(MODEL).manifest.version == 2
    assert repository.active(MODEL).manifest.version == 2
    assert listed(Repository(tmp_path / "models")) == [(2, "active"), (3, "previous")]


def test_installing_the_same_again_changes_nothing(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    install(repository, tmp_path, 1)
    install(repository, tmp_path, 2)
    before = files(tmp_path / "models")
    install(repository, tmp_path, 2)
    assert files(tmp_path / "models") == before
    assert listed(repository) == [(2, "active"), (1, "previous")]
    install(repository, tmp_path, 1)
    assert listed(repository) == [(1, "active"), (2, "previous")]


def test_there_is_nothing_to_go_back_to_at_first(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    install(repository, tmp_path, 1)
    assert refused(repository.rollback, MODEL) == "serving.no_previous"
    assert refused(repository.rollback, "unknown") == "serving.no_previous"
    assert repository.active(MODEL).manifest.version == 1


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("other bytes", "objects.digest"),
        ("no model", "serving.graph"),
        ("answers NaN", "serving.unhealthy"),
        ("fewer classes", "serving.unhealthy"),
        ("reserved output", "serving.unhealthy"),
        ("batch of one inside", "serving.unhealthy"),
    ],
)
def test_a_bad_model_changes_nothing(tmp_path: Path, what: str, code: str) -> None:
    repository = Repository(tmp_path / "models")
    install(repository, tmp_path, 1)
    before = files(tmp_path / "models")
    path = saved(tmp_path, "2.onnx", bias=float("nan") if what == "answers NaN" else None)
    if what == "no model":
        path.write_bytes(b"no model")
    if what == "reserved output":
        path = saved(tmp_path, "2.onnx", output="label")
    if what == "batch of one inside":
        path.write_bytes(_reshaping())
    made = manifest(path, 2, **({"classes": ("a", "b")} if what == "fewer classes" else {}))
    if what == "other bytes":
        saved(tmp_path, "2.onnx", seed=9)
    assert refused(repository.install, made, path, "release-2") == code
    assert files(tmp_path / "models") == before
    assert repository.active(MODEL).manifest.version == 1


def _reshaping() -> bytes:
    """A graph that promises any batch and reshapes to one sample."""
    from onnx import helper, numpy_helper
    from tests.unit.serving.models import graph

    model = graph()
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 64], np.int64), "shape"))
    model.graph.node[2].CopyFrom(helper.make_node("Reshape", ["b", "shape"], ["c"]))
    return bytes(model.SerializeToString())


def test_a_withdrawn_version_is_gone_and_nothing_takes_its_place_by_itself(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    install(repository, tmp_path, 1)
    install(repository, tmp_path, 2)
    assert repository.remove(MODEL, 2)
    assert not repository.remove(MODEL, 2)
    assert not repository.remove("unknown", 1)
    for opened in (repository, Repository(tmp_path / "models")):
        assert refused(opened.active, MODEL) == "serving.not_served"
        assert listed(opened) == [(1, "previous")]
    assert repository.rollback(MODEL).manifest.version == 1
    assert not [name for name in files(tmp_path / "models") if "/2-" in name]


def test_a_withdrawn_previous_version_cannot_be_gone_back_to(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    install(repository, tmp_path, 1)
    install(repository, tmp_path, 2)
    assert repository.remove(MODEL, 1)
    assert refused(repository.rollback, MODEL) == "serving.no_previous"
    assert repository.active(MODEL).manifest.version == 2


def test_a_file_that_was_altered_on_disk_is_not_served_after_a_restart(tmp_path: Path) -> None:
    install(Repository(tmp_path / "models"), tmp_path, 1)
    (stored,) = (tmp_path / "models").rglob("model.onnx")
    stored.write_bytes(saved(tmp_path, "evil.onnx", seed=5).read_bytes())
    again = Repository(tmp_path / "models")
    assert refused(again.active, MODEL) == "serving.not_served"
    assert listed(again) == [(1, "broken")]
    install(again, tmp_path, 1)
    assert listed(again) == [(1, "active")]


def test_a_crash_before_the_commit_leaves_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(tmp_path / "models")
    install(repository, tmp_path, 1)

    def crash(self: Path, target: Path) -> None:
        raise OSError("the power fails")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(OSError):
            install(repository, tmp_path, 2)
    again = Repository(tmp_path / "models")
    assert again.active(MODEL).manifest.version == 1
    install(again, tmp_path, 2)
    assert again.active(MODEL).manifest.version == 2


def test_what_an_interrupted_copy_left_is_cleared_away(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "models")
    install(repository, tmp_path, 1)
    left = tmp_path / "models" / MODEL / ".new-00000000"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    Repository(tmp_path / "models")
    assert not left.exists()


def test_only_the_graph_and_json_are_stored_and_only_for_the_owner(tmp_path: Path) -> None:
    install(Repository(tmp_path / "models"), tmp_path, 1)
    stored = [path for path in (tmp_path / "models").rglob("*") if path.is_file()]
    assert {path.name for path in stored} == {"model.onnx", "release.json", "active.json"}
    assert json.loads(next(path for path in stored if path.name == "release.json").read_text())["release"] == "release-1"
    assert os.stat(tmp_path / "models").st_mode & 0o077 == 0

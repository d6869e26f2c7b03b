"""Training packages: the same content has the same bytes, and nothing dangerous gets in."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.packages import tiny

from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.learning import package, weights


def test_the_same_folder_packs_to_the_same_bytes(private: Path) -> None:
    first = tiny(private)
    source = private / "package-source" / "model.py"
    os.utime(source, (0, 0))
    source.chmod(0o600)
    assert package.pack(private / "package-source").archive == first.archive
    source.write_text(source.read_text() + "\n")
    assert package.pack(private / "package-source").digest != first.digest
    assert package.read(first.archive).manifest.data.classes == ("none", "tumour")


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "a/../../b", "a\\..\\b"])
def test_paths_that_leave_the_package_are_refused(name: str, private: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(Problem) as caught:
        package.read(buffer.getvalue())
    assert caught.value.code == "package.malformed"


def test_links_bombs_and_nonsense_are_refused(private: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    for data in (buffer.getvalue(), b"", b"PK\x03\x04nonsense"):
        with pytest.raises(Problem) as caught:
            package.read(data)
        assert caught.value.code == "package.malformed"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big", bytes(package.MAX_BYTES + 1))
    with pytest.raises(Problem) as caught:
        package.read(buffer.getvalue())
    assert caught.value.code == "package.too_large"


def test_weights_are_held_against_the_signature(private: Path) -> None:
    path = private / "w.safetensors"
    arrays = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
    weights.save(arrays, path)
    agreed = weights.signature_of(arrays)
    weights.check(path, agreed)
    weights.check_finite(path)
    assert weights.read_finite(path) == path.read_bytes()
    cases = {
        "weights.foreign": agreed[:1],
        "weights.missing": (*agreed, TensorSignature(name="c", shape=(1,), dtype="F32")),
        "weights.signature": (agreed[0].model_copy(update={"shape": (3, 2)}), agreed[1]),
    }
    for code, signature in cases.items():
        with pytest.raises(Problem) as caught:
            weights.check(path, signature)
        assert caught.value.code == code
    weights.save({"a": np.array([np.nan], np.float32)}, path)
    with pytest.raises(Problem) as caught:
        weights.check_finite(path)
    assert caught.value.code == "weights.not_finite"
    arrays["b"][3] = np.inf
    weights.save(arrays, path)
    with pytest.raises(Problem) as caught:
        weights.read_finite(path)
    assert (caught.value.code, caught.value.params["tensor"]) == ("weights.not_finite", "b")
    for nonsense in (b"", b"\xff" * 100, (10).to_bytes(8, "little") + b"[]        ", path.read_bytes() + b"x"):
        path.write_bytes(nonsense)
        with pytest.raises(Problem) as caught:
            weights.check(path, agreed)
        assert caught.value.code == "weights.malformed"
    link = private / "link"
    link.symlink_to(path)
    with pytest.raises(Problem):
        weights.header(link)


def test_a_worker_is_told_what_it_runs(private: Path) -> None:
    manifest = tiny(private).manifest
    told = manifest.told("numpy")
    assert (told["entry"], told["custom"], told["classes"], told["sample"]) == ("model", True, 2, (1, 8, 8))
    with pytest.raises(Problem) as caught:
        manifest.told("torch")
    assert caught.value.code == "package.variant"

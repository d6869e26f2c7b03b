"""What code can do is read in it, and what it does not declare is named with its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.packages import TINY, TWINS, tiny

from medmesh.demo.practice import HEART
from medmesh.demo.stage import PACKAGE as MRI
from medmesh.errors import Problem
from medmesh.learning.capabilities import check, difference, explain, read
from medmesh.learning.package import MANIFEST, Package, pack

UNDECLARED = {
    "import scipy.stats": "imports scipy",
    "import os": "imports os",
    "open('/etc/passwd')": "files",
    "np.load('x')": "files",
    "from numpy import fromfile": "files",
    "eval('1')": "dynamic",
    "getattr(np, 'lo' + 'ad')": "dynamic",
    "getattr(np, '__dict__')": "dynamic",
    "().__class__": "dynamic",
    "__builtins__.__dict__": "dynamic",
    "from medmesh.learning import weights": "imports medmesh",
}


def code_of(folder: Path, code: str, declared: str = "") -> Package:
    made = tiny(folder, f"\n{code}\n")
    if not declared:
        return made
    source = folder / "package-source"
    with (source / MANIFEST).open("a") as file:
        file.write(f"\n[code]\n{declared}\n")
    return pack(source)


@pytest.mark.parametrize("code", UNDECLARED)
def test_what_is_not_declared_is_named_with_its_line(tmp_path: Path, code: str) -> None:
    with pytest.raises(Problem) as caught:
        check(code_of(tmp_path, code))
    assert caught.value.code == "package.undeclared"
    last = len((TINY / "model.py").read_text().splitlines()) + 2
    assert caught.value.params == {"what": UNDECLARED[code], "place": f"model.py:{last}"}


def test_what_is_declared_may_be_done(tmp_path: Path) -> None:
    everything = 'imports = ["os", "scipy"]\nfiles = true\nprocesses = true\ndynamic = true'
    assert check(code_of(tmp_path, "import os, scipy\nos.system(open('x').read())\neval('1')", everything)).processes
    with pytest.raises(Problem, match="imports subprocess"):
        check(code_of(tmp_path, "import subprocess", everything))


@pytest.mark.parametrize("code", ["import socket", "from urllib.request import urlopen", "def f():\n    import requests"])
def test_no_declaration_gives_a_network(tmp_path: Path, code: str) -> None:
    with pytest.raises(Problem, match="network") as caught:
        check(code_of(tmp_path, code, 'imports = ["socket", "urllib", "requests"]\nfiles = true\nprocesses = true\ndynamic = true'))
    assert caught.value.code == "package.network"


@pytest.mark.parametrize("code", ["def", "\x00", "(" * 3000])
def test_what_is_no_python_is_no_code(tmp_path: Path, code: str) -> None:
    with pytest.raises(Problem) as caught:
        check(code_of(tmp_path, code))
    assert caught.value.code == "package.code"


def test_a_compiled_file_cannot_be_read(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "p", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "p" / "fast.so").write_bytes(b"\x7fELF")
    assert read(pack(tmp_path / "p")).dynamic == ["fast.so"]


@pytest.mark.parametrize("folder", [TINY, TWINS, MRI, HEART], ids=lambda folder: folder.name)
def test_the_packages_we_ship_do_arithmetic_only(folder: Path) -> None:
    found = check(pack(folder))
    assert not (found.files or found.processes or found.dynamic)


def test_people_are_told_in_both_languages(tmp_path: Path) -> None:
    made = code_of(tmp_path, "import scipy", 'imports = ["scipy"]\nfiles = true').manifest
    assert explain(made) == [
        "This package has code of its own. It declares: imports scipy; reads or writes files of its sandbox. It has no network."
    ]
    assert "导入模块 scipy" in explain(made, "zh")[0]
    assert "不含代码" in explain(pack(HEART).manifest, "zh")[0]


def test_two_packages_are_compared_file_by_file(tmp_path: Path) -> None:
    before, after = tiny(tmp_path), tiny(tmp_path, "\nRATE = 2\n")
    said = list(difference(before.files, after.files))
    assert said[:2] == ["--- a/model.py", "+++ b/model.py"]
    assert "+RATE = 2" in said
    assert list(difference(before.files, before.files)) == []
    assert list(difference({"a.bin": b"\xff"}, {"a.bin": b"\xfe"})) == ["--- a.bin: differs, and is no text"]

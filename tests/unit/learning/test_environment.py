"""What an interpreter has is asked of itself, and one digest stands for all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.learning.environment import SHOWN, Environment, differences, explain, measure, shortly

pytestmark = pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")


@pytest.fixture
def python(private: Path) -> Path:
    """An interpreter with nothing but numpy, of a kind."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(private / "venv")], check=True)
    install(private / "venv" / "bin" / "python", "numpy", "1.26.0")
    return private / "venv" / "bin" / "python"


def packages(python: Path) -> Path:
    return next((python.parents[1] / "lib").glob("python3*")) / "site-packages"


def install(python: Path, name: str, version: str, files: str = "numpy/__init__.py,sha256=aaa,1\n") -> None:
    """As pip does: the folder of the version before goes, and another comes."""
    for before in packages(python).glob(f"{name}-*.dist-info"):
        for file in before.iterdir():
            file.unlink()
        before.rmdir()
    folder = packages(python) / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "RECORD").write_text(files)


async def asked(python: Path, private: Path) -> Environment:
    return await measure(python, private / "asked")


async def test_an_interpreter_says_what_it_is_and_what_is_installed_for_it(python: Path, private: Path) -> None:
    found = await asked(python, private)
    there = found.inventory["distributions"]
    assert (there["numpy"][0], sorted(there)) == ("1.26.0", ["medmesh", "numpy"]), "what ours has is none of its own"
    assert there["medmesh"][0] and len(there["medmesh"][1]) == 64
    assert sys.version == found.inventory["build"] and len(found.inventory["programs"]["python"]) == 64
    assert len(found.digest) == 64 and (await asked(python, private)).digest == found.digest
    for language in ("en", "zh"):
        told = explain(found, language)
        assert "numpy 1.26.0" in told and found.digest in told and found.inventory["python"] in told
    assert not (private / "asked").exists()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another version": (lambda python: install(python, "numpy", "1.26.4"), "numpy 1.26.0 → 1.26.4"),
    "other files": (lambda python: install(python, "numpy", "1.26.0", "numpy/__init__.py,sha256=bbb,1\n"), "numpy 1.26.0 → 1.26.0*"),
    "one more": (lambda python: install(python, "evil", "1"), "evil – → 1"),
    "a line that runs at every start": (lambda python: (packages(python) / "a.pth").write_text("import os\n"), "a.pth*"),
    "a module that runs at every start": (lambda python: (packages(python) / "sitecustomize.py").write_text(""), "sitecustomize.py*"),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_what_is_other_has_another_digest_a_name_and_a_time_of_change(what: str, python: Path, private: Path) -> None:
    change, said = CHANGES[what]
    before = await asked(python, private)
    stamps = [os.stat(place).st_ctime_ns for place in before.places if os.path.exists(place)]
    change(python)
    assert [os.stat(place).st_ctime_ns for place in before.places if os.path.exists(place)] != stamps
    now = await asked(python, private)
    assert now.digest != before.digest
    assert differences(before.inventory, now.inventory) == [said]


async def test_another_interpreter_is_named_even_where_its_version_is_the_same(python: Path, private: Path) -> None:
    before = await asked(python, private)
    real = python.resolve()
    python.unlink()
    python.write_bytes(real.read_bytes() + b"\0")
    python.chmod(0o755)
    now = await asked(python, private)
    version = before.inventory["python"]
    assert now.digest != before.digest and differences(before.inventory, now.inventory) == [f"{version} → {version}*"]


async def test_our_own_files_count_as_they_lie_there(python: Path, private: Path) -> None:
    """medmesh may be a link to its sources, whose list of files says nothing of them."""
    program = "import sys; from pathlib import Path; from medmesh.learning import inventory; print(inventory._tree(Path(sys.argv[1])))"
    (private / "ours").mkdir()

    def tree() -> str:
        ran = subprocess.run([sys.executable, "-c", program, str(private / "ours")], capture_output=True, text=True, check=True)
        return ran.stdout

    seen = {tree()}
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.py", "2")):
        (private / "ours" / name).write_text(text)
        seen.add(tree())
    assert len(seen) == 4


async def test_what_is_no_interpreter_is_a_problem_with_its_name(private: Path) -> None:
    for program in ("/bin/true", "/bin/echo"):
        with pytest.raises(Problem) as caught:
            await measure(Path(program), private / "asked")
        assert (caught.value.code, program in caught.value.detail("zh")) == ("environment.silent", True)
    assert not (private / "asked").exists()


def test_a_sentence_names_a_few_and_counts_the_others() -> None:
    assert shortly(["a", "b"]) == "a, b"
    assert shortly([str(n) for n in range(SHOWN + 3)]) == "0, 1, 2, 3, 4, 5, +3"

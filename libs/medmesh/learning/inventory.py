"""What code can meet in this interpreter, as one line of JSON: `python -P -m medmesh.learning.inventory`, started as a worker is.

Nothing of it is imported: a framework is named by what its installation says of itself. An installation's RECORD lists its files with
their SHA-256, so that its own hash stands for all of them as they were installed; whether they still are what was installed is another
question (`medmesh program verify`). medmesh itself may be installed as a link to its sources, so its files are hashed as they lie there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import site
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from medmesh.measured import digest, mapped

OURS = Path(__file__).resolve().parents[1]


def main() -> None:
    """Print it."""
    named = {_name(found): [found.version, _record(found)] for found in reversed([*distributions()]) if found.metadata["Name"]}
    named["medmesh"] = [named.get("medmesh", ["", ""])[0], _tree(OURS)]
    print(
        json.dumps(
            {
                "python": f"{platform.python_implementation()} {platform.python_version()}",
                "build": sys.version,
                "programs": {path.name if ".so" in path.name else "python": digest(path) for path in _programs()},
                "start": {path.name: digest(path) for path in _start()},
                "distributions": named,
                "places": sorted({str(path) for path in _places()}),
            }
        )
    )


def _name(found: Distribution) -> str:
    """As PEP 503 spells it. What comes first on the path is what is imported: it is written last."""
    return re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()


def _record(found: Distribution) -> str:
    """Empty where an installation has no list of its files, as of some Linux distributions: its version is all there is."""
    text = found.read_text("RECORD")
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def _tree(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        whole.update(f"{path.relative_to(folder).as_posix()}\0{digest(path)}\0".encode())
    return whole.hexdigest()


def _programs() -> Iterator[Path]:
    """The interpreter, and the library that is most of it where it is built as one."""
    yield Path(sys.executable).resolve()
    yield from (Path(path) for path in sorted(mapped("/libpython")))


def _start() -> Iterator[Path]:
    """What runs in every process before any of its code: lines of `.pth` files, and modules of two names."""
    for folder in site.getsitepackages():
        yield from sorted(Path(folder).glob("*.pth"))
    for name in ("sitecustomize", "usercustomize"):
        if (spec := find_spec(name)) is not None and spec.origin:
            yield Path(spec.origin)


def _places() -> Iterator[Path]:
    """Files and folders of which one has another time of change once anything above is other."""
    yield from (Path(sys.executable), Path(sys.prefix) / "pyvenv.cfg", *_programs(), *_start())
    yield from (Path(entry) for entry in sys.path if os.path.exists(entry))
    yield from (OURS, *(path for path in OURS.rglob("*") if path.is_dir() and path.name != "__pycache__"))


if __name__ == "__main__":
    main()

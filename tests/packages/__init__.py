"""Training packages for tests: `tiny` on numpy, and variations of it that misbehave."""

from __future__ import annotations

import shutil
from pathlib import Path

from medmesh.learning.package import Package, pack

TINY = Path(__file__).parent / "tiny"
TWINS = Path(__file__).parent / "twins"
"""One model for three frameworks, one of which is written by hand."""


def tiny(folder: Path, code: str = "") -> Package:
    """The tiny package, with `code` added to its module."""
    target = folder / "package-source"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(TINY, target, ignore=shutil.ignore_patterns("__pycache__"))
    if code:
        with (target / "model.py").open("a") as file:
            file.write(code)
    return pack(target)

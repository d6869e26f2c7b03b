"""Software that removes faces, installed as a hospital installs its own: a package with an entry point, seen by this process and others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ANTERIOR = """
mask = np.zeros(volume.values.shape, bool)
mask[:, -(volume.values.shape[1] // 3):, :] = True
return mask
"""
"""The reference: blanks the anterior third, wherever that is in the file."""


def install(folder: Path, patch: pytest.MonkeyPatch, name: str = "face", body: str = ANTERIOR) -> None:
    """A plug-in `name` whose function does `body` with `volume`."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[medmesh.deface]\n{name} = plug_{name}:deface\n")
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    (folder / f"plug_{name}.py").write_text(f"import os, sys\nimport numpy as np\n\n\ndef deface(volume):\n{lines}\n")
    patch.syspath_prepend(str(folder))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))

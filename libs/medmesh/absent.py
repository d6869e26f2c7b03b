"""What a library would import because it happens to be installed, and what we use of the library never needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(*names: str) -> Iterator[None]:
    """To who is imported inside the block, these modules are not installed; what was imported before is left alone."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: the import system then says ModuleNotFoundError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]

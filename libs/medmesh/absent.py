"""What a library would load because it happens to be there, and what we use of the library never needs."""

from __future__ import annotations

import ssl
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


@contextmanager
def no_authorities() -> Iterator[None]:
    """Who makes a default context for TLS inside the block, as libraries do while they are imported, gets one that trusts nobody: the
    machine's hundred and more authorities are not read, 2.5 MiB that nobody needs who always says whom to trust."""
    made, methods = ssl.SSLContext, {"load_default_certs", "set_default_verify_paths"}
    before = {name: vars(made)[name] for name in methods & vars(made).keys()}
    for name in methods:
        setattr(made, name, lambda *_: None)
    try:
        yield
    finally:
        for name in methods:
            delattr(made, name)  # what it inherits is seen again
        for name, own in before.items():
            setattr(made, name, own)

"""How far a command has come.  进度。"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def progress(label: str, **shown: Any) -> Iterator[Callable[..., None]]:
    """A bar, `shown` as `click.progressbar` says, and what moves it: called with how much is done, of how much, and whatever else is told
    with both."""
    with click.progressbar(length=1, label=label, **shown) as bar:

        def moved(done: int, total: int, *_: Any) -> None:
            bar.length = max(1, total)
            bar.update(done - bar.pos)

        yield moved

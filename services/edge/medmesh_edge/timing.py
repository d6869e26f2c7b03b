"""What a round's time goes into at the hospital."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from medmesh.contracts.federation import Work


@dataclass
class Clock:
    """Milliseconds by kind of work; what is measured again counts on top."""

    milliseconds: dict[Work, int] = field(default_factory=dict)

    @contextmanager
    def of(self, work: Work) -> Iterator[None]:
        """Measure a block."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.milliseconds[work] = self.milliseconds.get(work, 0) + round(1000 * (time.monotonic() - began))

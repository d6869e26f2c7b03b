"""What a round's time goes into at the hospital."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from medmesh.contracts.federation import Work
from medmesh_edge import telling


@dataclass
class Clock:
    """Milliseconds by kind of work, as they are told; what is measured again counts on top."""

    milliseconds: dict[Work, int] = field(default_factory=dict)
    _seconds: dict[Work, float] = field(default_factory=dict)

    @contextmanager
    def of(self, work: Work) -> Iterator[None]:
        """Measure a block."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[work] = self._seconds.get(work, 0.0) + time.monotonic() - began
            self.milliseconds[work] = telling.milliseconds(self._seconds[work])

"""How a node listens: to a stream of events, or by long polling where something between it and the platform swallows streams."""

from __future__ import annotations

import math
from dataclasses import dataclass

POLL_SECONDS = 600.0
"""After that long a stream is tried again: networks are mended, too."""
SOUND = 30.0
"""A stream that lasted so many seconds came through, whatever ended it."""
TRIES = 3
"""Failures after which a poll is tried."""


@dataclass
class Listening:
    """Polls come through where streams do not, also while the platform is merely started anew: only a stream that fails after a poll came
    through says that it is streams that are swallowed."""

    failures: int = 0
    """In a row."""
    _polls_come: bool = False
    _until: float = -math.inf

    def polls(self, now: float) -> bool:
        """Whether to poll now."""
        return now < self._until or self.failures % (TRIES + 1) == TRIES

    def heard(self, now: float) -> None:
        """A fact came by a stream."""
        self.failures, self._polls_come, self._until = 0, False, now

    def polled(self) -> None:
        """A poll was answered."""
        self.failures, self._polls_come = 0, True

    def failed(self, now: float, began: float, *, polling: bool, unreachable: bool) -> None:
        """What began then broke off, or never came about."""
        self.failures += 1
        if polling or not unreachable:
            return
        if now - began >= SOUND:
            self.failures, self._polls_come = 1, False
        elif self._polls_come:
            self.failures, self._until = 0, now + POLL_SECONDS

"""What receives over an association asks of whoever keeps the objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

SUCCESS = 0x0000
UNRECOGNISED_OPERATION = 0x0211
SOP_CLASS_NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
"""Statuses of C-STORE: PS3.7 §9.1.1.1.9, PS3.4 table B.2-1."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An association is not wanted; numbers of PS3.8 table 9-21."""

    result: int
    source: int
    reason: int


CALLED_UNKNOWN = Refused(1, 1, 7)
CALLING_UNKNOWN = Refused(1, 1, 3)
NOT_NOW = Refused(2, 3, 2)
"""Local limit exceeded: the peer may come again."""


class Sink(Protocol):
    """One object while it arrives."""

    def write(self, fragment: memoryview) -> None:
        """The next bytes of its data set; whatever goes wrong is told by `finish`."""

    def finish(self) -> tuple[int, str]:
        """Status and comment. `SUCCESS` only once the object is on the disk and its row committed."""

    def abandon(self) -> None:
        """The association ended before the object did: nothing of it stays. Also after `finish`, where it does nothing."""


class Service(Protocol):
    """Whoever keeps the objects. Called from the threads of associations."""

    def admit(self, called: str, calling: str, address: str, secured: frozenset[str] | None) -> Any | Refused:
        """What this association is bound to, given to `store` again; deny by default. `secured` are the names in the peer's certificate,
        none where it showed none, and None without TLS."""

    def store(self, bound: Any, sop_class: str, sop: str, syntax: str) -> Sink:
        """An object begins. UIDs are as the peer wrote them."""

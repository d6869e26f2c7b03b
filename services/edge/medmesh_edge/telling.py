"""What a node says beside its update, made coarse: each number that training code can choose carries something out, and a coarse one
carries less (`docs/security/covert-channels.md`)."""

from __future__ import annotations

DIGITS = 3
STEPS_TOLD = 10


def loss(value: float) -> float:
    """A loss with three significant digits: about ten bits and its size, of sixty-four."""
    return float(f"{value:.{DIGITS}g}")


def progress(done: int, total: int) -> tuple[int, int]:
    """How far a training is, in tenths of the plan's steps, whatever the code says."""
    tenths = STEPS_TOLD * min(max(done, 0), total) // total if total > 0 else STEPS_TOLD
    return tenths * total // STEPS_TOLD, total


def prepared(done: int, total: int) -> tuple[int, int]:
    """How far a pipeline is, in tenths: how many samples there are is nobody's to read off a progress."""
    return (STEPS_TOLD * done // total if total > 0 else STEPS_TOLD), STEPS_TOLD


def milliseconds(taken: float) -> int:
    """Seconds as milliseconds with two significant digits: nobody plans by more."""
    return int(float(f"{1000 * taken:.2g}"))

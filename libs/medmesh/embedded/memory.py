"""How much memory processes really take: PSS, which shares out what several of them share (proc(5), smaps_rollup)."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import psutil


def pss(pid: int, *, tree: bool = False) -> int:
    """Bytes of a process, with `tree` of all below it too; 0 for what has ended.

    A process that holds keys shows its PSS to root only (`security.residue`): to others it counts with all its resident pages.
    """
    pids = [pid]
    if tree:
        try:
            pids += [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
    total = 0
    for one in pids:
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except PermissionError:
            with suppress(psutil.Error):
                total += psutil.Process(one).memory_info().rss
            continue
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


_TRIM, _MMAP = -1, -3
_LARGE = 128 * 2**10


def frugal() -> None:
    """Have the C library give large pieces back when they are freed (mallopt(3)). By itself glibc learns from each large piece to keep
    ones of its size, and a node that moves models every few minutes would hold the largest for ever. Elsewhere it does nothing."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP, _LARGE)
        mallopt(_TRIM, _LARGE)

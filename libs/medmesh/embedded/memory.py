"""How much memory processes really take: PSS, which shares out what several of them share (proc(5), smaps_rollup)."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path


def pss(pid: int, *, tree: bool = False) -> int:
    """Bytes of a process, with `tree` of all below it too; 0 for what has ended.

    A process that holds keys shows its PSS to root only (`security.residue`): to others it counts with all its resident pages.
    """
    import psutil  # a node comes here for `frugal` alone

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


_TRIM, _MMAP, _ARENAS = -1, -3, -8
_PIECES = 2 * 2**20
"""Of what is larger, memory is given back as soon as it is freed. Files and models move in pieces of a mebibyte."""
_KEPT = 8 * 2**20
"""Freed memory of smaller pieces that is kept for the next: asking for each anew is a page fault per 4 KiB, a fourth of what a node
computed in a round of models of 1 MB."""


def frugal() -> None:
    """Have the C library give large pieces back when they are freed, and keep small ones in one place (mallopt(3)). By itself glibc learns
    from each large piece to keep ones of its size, for each thread, and a node that moves models every few minutes would hold the largest
    for ever. Called before there are threads. Elsewhere it does nothing."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP, _PIECES)
        mallopt(_TRIM, _KEPT)
        mallopt(_ARENAS, 1)

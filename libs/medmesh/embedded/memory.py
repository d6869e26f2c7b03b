"""How much memory processes really take: PSS, which shares out what several of them share (proc(5), smaps_rollup)."""

from __future__ import annotations

from pathlib import Path

import psutil


def pss(pid: int, *, tree: bool = False) -> int:
    """Bytes of a process, with `tree` of all below it too; 0 for what has ended."""
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
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total

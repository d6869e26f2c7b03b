"""Figures as people read them. Programs are told plain numbers."""

from __future__ import annotations


def size(count: float) -> str:
    """So many bytes, in the unit that leaves the fewest digits: `0 B`, `1.5 KiB`, `100.0 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        # By what is shown: 1023.99 KiB is 1.0 MiB.
        if round(value, 0 if unit == "B" else 1) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

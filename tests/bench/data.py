"""Data: what goes in and how fast. Each part of it is a module with a `measure` of its own."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench import deidentification, dicom, dicomweb, duplicates, importing, timeline
from tests.bench.common import Measure

PARTS = (deidentification, dicom, dicomweb, duplicates, importing, timeline)


def measure(names: Sequence[str]) -> list[Measure]:
    """Every figure of the area whose name begins with one of these."""
    return [one for part in PARTS for one in part.measure(names)]

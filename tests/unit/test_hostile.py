"""Hostile input, seeded and bounded: every parser in `tests/fuzz/targets.py` takes it or refuses it as it says, and nothing else."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.architecture.sources import ROOT
from tests.fuzz.targets import TARGETS, check, seeds

MOST_MEMORY = 64 * 2**20
EXAMPLES = 120


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """A text that fits, after a few things happened to it; or no text at all."""
    data = bytearray(draw(st.sampled_from(seeds(name))))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("flip", "cut", "insert", "drop", "double", "word"))):
            case "flip" if place < len(data):
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place:]
            case "insert":
                data[place:place] = draw(st.binary(max_size=12))
            case "drop":
                del data[place : place + draw(st.integers(1, 40))]
            case "double":
                data[place:place] = data[max(0, place - draw(st.integers(1, 80))) : place]
            case "word":
                data[place:place] = draw(st.sampled_from(WORDS))
    return bytes(data)


WORDS = [
    b"\n", b"\n\n", b" ", b"0", b"-1", b"9" * 30, b"\\u0000", b"\xff\xfe", b"1e999", b"NaN", b"[" * 2000, b'{"a":' * 2000, b"\xef\xbb\xbf",
    b"null", b'"x"', "١".encode(), b"../", b"%00",
]  # fmt: skip
"""What parsers stumble over."""


@pytest.mark.parametrize("name", TARGETS)
def test_what_fits_is_read(name: str) -> None:
    """Or the seeds are none, and the search begins nowhere."""
    target = TARGETS[name]
    unread = {"evidence": 1, "package": 1, "json": 1, "certificate": 1}.get(name, 0)
    refused = 0
    for seed in seeds(name):
        try:
            printed = target.parse(seed)
        except target.raises:
            refused += 1
        else:
            assert printed in (None, seed)
    assert refused <= unread


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_refused_as_documented(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(damaged(name), damaged(name), st.binary(max_size=200)))
    def hostile(data: bytes) -> None:
        tracemalloc.reset_peak()
        check(target, data)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY, f"{len(data)} bytes took {tracemalloc.get_traced_memory()[1]}"

    tracemalloc.start()
    try:
        hostile()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "file",
    sorted(path for path in (ROOT / "tests/fuzz/found").rglob("*-*") if path.is_file()),
    ids=lambda file: f"{file.parent.name}-{file.name[:14]}",
)
def test_what_was_found_once_stays_mended(file: Path) -> None:
    check(TARGETS[file.parent.name], file.read_bytes())

"""What a file says, without reading it at every look."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from medmesh.embedded.files import Watched, write_over


def test_a_file_is_read_again_when_it_changes_and_only_then(private: Path) -> None:
    path, reads = private / "rules", []

    def read(path: Path) -> str:
        reads.append(path)
        return path.read_text()

    watched = Watched(path, read)
    with pytest.raises(FileNotFoundError):
        watched()
    path.write_text("first")
    os.utime(path, (0, 0))
    reads.clear()
    assert [watched(), watched(), watched()] == ["first"] * 3 and len(reads) == 1
    path.write_text("other")
    assert watched() == "other", "the same length"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        watched()


def test_what_changed_a_moment_ago_is_not_kept(private: Path) -> None:
    path = private / "rules"
    watched = Watched(path, Path.read_text)
    path.write_text("first")
    stamp = time.time_ns()
    os.utime(path, ns=(stamp, stamp))
    assert watched() == "first"
    with path.open("r+") as file:  # in place, and so fast that the clock of the file system does not see it
        file.write("other")
    os.utime(path, ns=(stamp, stamp))
    assert watched() == "other"


def test_what_is_written_over_has_nothing_left_of_what_was_there_before(private: Path) -> None:
    path = private / "model"
    for data in (b"first", b"a longer one", b"short"):
        write_over(path, data)
        assert path.read_bytes() == data
    assert path.stat().st_mode & 0o777 == 0o600

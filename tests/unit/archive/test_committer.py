"""Many threads write through one connection: each has its own answer, and nobody pays for another's failure."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from medmesh.archive.committer import Committer, Work
from medmesh.archive.tables import open_archive


def insert(number: int, fails: bool = False) -> Work:
    def work(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO records (id, body) VALUES (?, '')", (str(number),))
        if fails:
            raise ValueError(number)
        return number

    return work


def together(committer: Committer, works: Sequence[Work]) -> list[Future[int]]:
    """Asked for while it is busy, each by a thread of its own."""
    begun, gate = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        begun.set()
        gate.wait(60)

    with ThreadPoolExecutor(len(works) + 1) as pool:
        pool.submit(committer.run, hold)
        assert begun.wait(60)
        found = [pool.submit(committer.run, work) for work in works]
        while committer._queue.qsize() < len(works):
            time.sleep(0.005)
        gate.set()
    return found


def test_one_that_fails_takes_back_its_own_and_nobody_elses(tmp_path: Path) -> None:
    begun: list[str] = []
    connection = open_archive(tmp_path)
    connection.set_trace_callback(lambda statement: begun.append(statement) if statement.startswith("BEGIN") else None)
    committer = Committer(connection)
    for number, one in enumerate(together(committer, [insert(number, number in (3, 13)) for number in range(20)])):
        if number in (3, 13):
            with pytest.raises(ValueError, match=str(number)):
                one.result()
        else:
            assert one.result() == number
    reading = open_archive(tmp_path, read_only=True)
    assert {int(row[0]) for row in reading.execute("SELECT id FROM records")} == set(range(20)) - {3, 13}
    begun.clear()
    assert [one.result() for one in together(committer, [insert(number) for number in range(100, 118)])] == list(range(100, 118))
    assert len(begun) == 2, "what was asked for at the same time is one transaction, behind the one that held it up"
    reading.close()
    committer.close()


def test_a_full_disk_is_told_and_what_comes_then_is_committed(tmp_path: Path) -> None:
    committer = Committer(open_archive(tmp_path))

    def full(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError):
        committer.run(full)
    found = together(committer, [insert(number) for number in range(3)])
    committer.close()
    assert [one.result() for one in found] == [0, 1, 2]
    reading = open_archive(tmp_path, read_only=True)
    assert reading.execute("SELECT count(*) FROM records").fetchone() == (3,)
    reading.close()

"""One thread that writes to an index for all threads of a process: what is asked for at the same time goes in one transaction, with one
wait for the disk, and threads do not wait for each other's locks."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from medmesh.archive.tables import transaction

T = TypeVar("T")
AT_ONCE = 64
"""Pieces of work of one transaction."""
Work = Callable[[sqlite3.Connection], Any]


class Committer:
    """Of one connection, which it closes. What it runs may run twice: with others, whose failure takes it back, and then alone."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="committer")
        self._thread.start()

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` answers, once all that it wrote is on the disk. Raises what it raises, and then nothing of it was written."""
        done: Future[T] = Future()
        self._queue.put((work, done))
        return done.result()

    def close(self) -> None:
        """Commit what waits, and end."""
        self._queue.put(None)
        self._thread.join(30)
        self._connection.close()

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            together = [first]
            while len(together) < AT_ONCE and not self._queue.empty():
                another = self._queue.get()
                if another is None:
                    self._queue.put(None)
                    break
                together.append(another)
            self._commit(together)

    def _commit(self, together: list[tuple[Work, Future[Any]]]) -> None:
        try:
            with transaction(self._connection):
                answers = [work(self._connection) for work, _ in together]
        except BaseException as error:
            if len(together) == 1 or isinstance(error, sqlite3.OperationalError):  # busy or full: so it is for everyone
                for _, done in together:
                    done.set_exception(error)
                return
            for one in together:
                self._commit([one])
            return
        for (_, done), answer in zip(together, answers, strict=True):
            done.set_result(answer)

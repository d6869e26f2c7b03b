"""Micro-batching without a timer: a request that finds nobody running runs at once; those that come meanwhile run together.

No request ever waits for company, so one client alone sees the latency of the model and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medmesh.errors import Problem

Floats = NDArray[np.float32]
MAX_BATCH = 64


class Batcher:
    """One running batch of a model at a time, in a thread.

    `run` takes float32 [batch, ...] and answers float32 [batch, ...], row by row. `limit` is the most samples that are put
    together; a larger request runs alone. More than `waiting` requests in the queue are refused.
    """

    def __init__(self, run: Callable[[Floats], Floats], *, name: str, limit: int = MAX_BATCH, waiting: int = 256) -> None:
        self._run, self._name, self._limit, self._most = run, name, limit, waiting
        self._queue: deque[tuple[Floats, asyncio.Future[Floats]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, array: Floats) -> Floats:
        """The rows of `array` through the model. Raises `Problem` (`serving.busy`) and whatever `run` raises."""
        if len(self._queue) >= self._most:
            raise Problem("serving.busy", model=self._name)
        future: asyncio.Future[Floats] = asyncio.get_running_loop().create_future()
        self._queue.append((array, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while batch := self._take():
            try:
                whole = batch[0][0] if len(batch) == 1 else np.concatenate([array for array, _ in batch])
                rows = await asyncio.to_thread(self._run, whole)
            except Exception as error:
                await self._alone(batch, error)
                continue
            start = 0
            for array, future in batch:
                if not future.done():
                    future.set_result(rows[start : start + len(array)])
                start += len(array)

    def _take(self) -> list[tuple[Floats, asyncio.Future[Floats]]]:
        """The oldest request and, in order, those behind it that fit to it; nobody is waiting when it is empty."""
        batch: list[tuple[Floats, asyncio.Future[Floats]]] = []
        others: deque[tuple[Floats, asyncio.Future[Floats]]] = deque()
        total = 0
        for array, future in self._queue:
            if future.done():  # its client went away
                continue
            alike = not batch or (array.shape[1:] == batch[0][0].shape[1:] and total + len(array) <= self._limit)
            if alike:
                batch.append((array, future))
                total += len(array)
            else:
                others.append((array, future))
        self._queue = others
        return batch

    async def _alone(self, batch: list[tuple[Floats, asyncio.Future[Floats]]], error: Exception) -> None:
        """Nobody fails for another's request."""
        for array, future in batch:
            if future.done():
                continue
            try:
                if len(batch) == 1:
                    raise error
                rows = await asyncio.to_thread(self._run, array)
            except Exception as own:
                if not future.done():
                    future.set_exception(own)
            else:
                if not future.done():
                    future.set_result(rows)

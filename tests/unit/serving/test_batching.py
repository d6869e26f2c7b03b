"""Requests that arrive while the model runs are put together, and nobody can tell from the answer."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
from tests.unit.serving.models import SIZE, saved

from medmesh.errors import Problem
from medmesh.serving.batching import Batcher
from medmesh.serving.onnxruntime_session import Session


class Gate:
    """A model that holds its first run until it is let go, and tells the sizes of its batches."""

    def __init__(self, run: Any = lambda array: array * 2) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.running = self.most = 0
        self._run = run

    def __call__(self, array: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.sizes.append(len(array))
        try:
            assert self.open.wait(5)
            return self._run(array)
        finally:
            self.running -= 1


def rows(*values: float, width: int = 2) -> Any:
    return np.array([[value] * width for value in values], np.float32)


def start(batcher: Batcher, array: Any) -> asyncio.Task[Any]:
    async def run() -> Any:
        return await batcher(array)

    return asyncio.create_task(run())


async def together(batcher: Batcher, gate: Gate, first: Any, *others: Any) -> list[Any]:
    """The answers, or what was raised; `others` are asked while `first` runs."""
    tasks = [start(batcher, first)]
    while not gate.sizes:
        await asyncio.sleep(0.001)
    tasks += [start(batcher, array) for array in others]
    await asyncio.sleep(0.01)
    gate.open.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_batch_runs_at_a_time_and_those_that_wait_share_the_next() -> None:
    gate = Gate()
    answers = await together(Batcher(gate, name="m"), gate, rows(1), rows(2, 3), rows(4), rows(5, 6))
    assert gate.sizes == [1, 5]
    assert gate.most == 1
    for answer, expected in zip(answers, (rows(2), rows(4, 6), rows(8), rows(10, 12)), strict=True):
        np.testing.assert_array_equal(answer, expected)


async def test_a_batch_is_no_larger_than_the_limit_and_of_one_shape() -> None:
    gate = Gate()
    await together(Batcher(gate, name="m", limit=4), gate, rows(1), rows(2, 3), rows(4, 5, 6), rows(7), rows(8, width=3))
    assert gate.sizes == [1, 3, 3, 1]
    gate = Gate()
    await together(Batcher(gate, name="m", limit=4), gate, rows(1), rows(*range(9)), rows(7))
    assert gate.sizes == [1, 9, 1], "larger than the limit runs alone"


async def test_real_results_are_those_of_unbatched_runs(tmp_path: Path) -> None:
    session = Session(saved(tmp_path))
    gate = Gate(session.run)
    random = np.random.default_rng(3)
    asked = [random.normal(size=(n, 1, SIZE, SIZE)).astype(np.float32) for n in (1, 3, 1, 7, 2)]
    answers = await together(Batcher(gate, name="m"), gate, *asked)
    assert gate.sizes == [1, 13], "they did share a run"
    for array, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer, session.run(array), rtol=1e-5, atol=1e-6)


async def test_nobody_fails_for_anothers_request() -> None:
    def run(array: Any) -> Any:
        if (array == 13).any():
            raise RuntimeError("unlucky")
        return array * 2

    gate = Gate(run)
    first, good, bad, after = await together(Batcher(gate, name="m"), gate, rows(1), rows(2), rows(13), rows(3))
    np.testing.assert_array_equal(first, rows(2))
    np.testing.assert_array_equal(good, rows(4))
    np.testing.assert_array_equal(after, rows(6))
    assert isinstance(bad, RuntimeError)


async def test_a_client_that_leaves_takes_nobody_along() -> None:
    gate = Gate()
    batcher = Batcher(gate, name="m")
    running = start(batcher, rows(1))
    waiting = start(batcher, rows(2))
    staying = start(batcher, rows(3))
    await asyncio.sleep(0.01)
    running.cancel()
    waiting.cancel()
    gate.open.set()
    np.testing.assert_array_equal(await staying, rows(6))
    np.testing.assert_array_equal(await batcher(rows(4)), rows(8))


async def test_a_full_queue_is_refused_at_once() -> None:
    gate = Gate()
    answers = await together(Batcher(gate, name="m", waiting=2), gate, rows(1), rows(2), rows(3), rows(4))
    assert isinstance(answers[3], Problem)
    assert answers[3].code == "serving.busy"
    np.testing.assert_array_equal(answers[2], rows(6))


def test_the_queue_works_in_one_loop_after_another() -> None:
    batcher = Batcher(lambda array: array * 2, name="m")
    for _ in range(2):
        np.testing.assert_array_equal(asyncio.run(_once(batcher)), rows(2))


async def test_many_clients_each_get_their_own_answer() -> None:
    clients = 40
    batcher = Batcher(lambda array: array * 2, name="m")
    answers = await asyncio.gather(*(batcher(rows(*range(i, i + 1 + i % 5))) for i in range(clients)))
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, rows(*range(i, i + 1 + i % 5)) * 2)


async def _once(batcher: Batcher) -> Any:
    return await batcher(rows(1))

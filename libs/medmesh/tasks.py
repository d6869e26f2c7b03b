"""Ending asyncio tasks so that they really end, and work so that it is never left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

AGAIN_SECONDS = 5.0
BRIEF = 1 << 20
"""Work on so many bytes that are in memory, or in the kernel's, is done where it is called: it takes a millisecond or less. Handing it to a
thread costs a tenth of one, and as much again where both want the interpreter."""


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel these and wait until they are over, however they end.

    They are asked again every few seconds: in Python 3.11 a cancellation that comes in the moment when an `asyncio.wait_for` is done is
    lost (python/cpython#86296), and libraries we stand on call it. Whoever waited for such a task once would wait for ever.
    """
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        over, waiting = await asyncio.wait(waiting, timeout=AGAIN_SECONDS)
        for task in over:
            if not task.cancelled():
                task.exception()  # looked at, so that nobody is told it was not


async def aside(size: int, work: Callable[[], T]) -> T:
    """Do `work` on so many bytes, in a thread where it would hold up others. Nothing that waits for a disk is brief."""
    return work() if size <= BRIEF else await asyncio.to_thread(work)


async def uninterrupted(work: Awaitable[T]) -> T:
    """Do `work` to its end; a cancellation that comes meanwhile goes on afterwards, and what the work raised then is not told."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue  # one cancellation is on its way already
        if not task.cancelled():
            task.exception()
        raise

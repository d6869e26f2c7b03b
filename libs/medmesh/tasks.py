"""Ending asyncio tasks so that they really end."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_SECONDS = 5.0


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

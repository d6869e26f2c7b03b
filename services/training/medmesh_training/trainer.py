"""Speaks to the worker of one attempt. Everything that comes out of its folder and its pipe is checked before it is believed."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmesh.errors import Problem
from medmesh.learning import weights
from medmesh.learning.host import Worker
from medmesh.learning.package import Manifest
from medmesh_training.domain import Schedule, Segment, check_counts

_NO_FILE = {errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV}
"""What opening answers when the worker left nothing, a link, or something that is no file; a full disk is no fault of it."""


class Trainer:
    """`folder` is private to the service: checked weights lie there, out of the worker's reach."""

    def __init__(self, worker: Worker, manifest: Manifest, schedule: Schedule, folder: Path) -> None:
        self._worker = worker
        self._manifest = manifest
        self._schedule = schedule
        self._folder = folder

    async def give(self, path: Path) -> str:
        """Hand a copy of a file to the worker; answers the path the worker knows it by."""
        return str(await asyncio.to_thread(_give, path, self._worker.folder))

    async def give_samples(self, path: Path) -> str:
        """Hand samples to the worker, which reads a batch at a time; the file goes."""
        given = await self.give(path)
        path.unlink()
        return given

    async def initial(self, seed: int) -> Path:
        """Fresh weights."""
        out = self._out()
        await self._call("initial", seed=seed, out=str(out))
        return await self._take(out)

    async def segment(self, start: Path, data: str, segment: Segment) -> tuple[Path, float]:
        """(weights, loss) after the steps of one segment from the weights `start`. Raises `Problem`."""
        out = self._out()
        given = await self.give(start)
        try:
            answer = await self._call(
                "train",
                weights=given,
                data=data,
                steps=segment.steps,
                batch_size=self._schedule.batch_size,
                learning_rate=self._schedule.learning_rate,
                seed=segment.seed,
                out=str(out),
            )
        finally:
            Path(given).unlink(missing_ok=True)
        after = await self._take(out)
        loss = answer.get("loss")
        if not isinstance(loss, int | float) or not math.isfinite(loss):
            raise Problem("training.answer", operation="train")
        return after, float(loss)

    async def evaluate(self, model: Path, samples: Path, expected: Sequence[int]) -> list[list[int]]:
        """Confusion counts [true][predicted] on a file of samples, of which so many are of each class. Raises `Problem`."""
        answer = await self._call("evaluate", data=await self.give_samples(samples), models=[await self.give(model)])
        results = answer.get("counts")
        if not isinstance(results, list) or len(results) != 1:
            raise Problem("training.answer", operation="evaluate")
        return check_counts(results[0], expected)

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = await self._worker.call(operation, **arguments)
        except Problem as problem:
            # A problem we have no text for carries a text of the worker's: it may not go on.
            raise problem if problem.code != "problem.unknown" else Problem("training.answer", operation=operation) from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Problem("training.answer", operation=operation) from None
        if not isinstance(answer, dict):
            raise Problem("training.answer", operation=operation)
        return answer

    def _out(self) -> Path:
        return self._worker.folder / f"out-{secrets.token_hex(8)}"

    async def _take(self, out: Path) -> Path:
        """A checked copy of weights the worker wrote: of its own file it could change the bytes after the check."""
        # A new file each time: a store on the same disk keeps the file itself, which must not change under it.
        path = self._folder / out.name
        await asyncio.to_thread(_take, out, path, _largest(self._manifest.tensors))
        await asyncio.to_thread(weights.check, path, self._manifest.tensors)
        await asyncio.to_thread(weights.check_finite, path)
        return path


def _largest(tensors: Sequence[Any]) -> int:
    return 8 + weights.MAX_HEADER + sum(8 * math.prod(tensor.shape) for tensor in tensors)


def _give(path: Path, folder: Path) -> Path:
    target = folder / f"in-{secrets.token_hex(8)}"
    # "x" neither follows nor replaces what the worker may have put there.
    with path.open("rb") as source, target.open("xb") as file:
        os.fchmod(file.fileno(), 0o644)
        shutil.copyfileobj(source, file, 1 << 20)
    return target


def _take(out: Path, target: Path, limit: int) -> None:
    try:
        descriptor = os.open(out, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as source, target.open("xb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
                raise Problem("weights.malformed")
            left = found.st_size
            while left and (piece := source.read(min(1 << 20, left))):
                file.write(piece)
                left -= len(piece)
        out.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise Problem("weights.malformed") from None
        raise

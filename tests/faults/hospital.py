"""A hospital's node as a process that can be killed, images for it, and its store looked at from outside."""

from __future__ import annotations

import csv
import os
import signal
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.faults.harness import MEDMESH, until

from medmesh.imaging.reading import wrap


@dataclass
class Process:
    """`medmesh edge ...` on a folder."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Run the node, or another of its commands."""
        first, *rest = arguments or ("run",)
        with (self.folder / "process.log").open("ab") as log:
            argv = (*MEDMESH, "edge", first, "--folder", str(self.folder), *rest)
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    @property
    def running(self) -> bool:
        """Whether it has not ended by itself."""
        return self.process is not None and self.process.poll() is None

    @property
    def worked(self) -> float:
        """Seconds of the processor that it had so far, by the clock ticks of /proc; 0.0 when it is gone."""
        assert self.process is not None
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def until(self, ready: Callable[[], Awaitable[Any]], idle_seconds: float, every: float = 0.2) -> Any:
        """Wait for a truth as long as it works towards it, however slowly on a busy machine. Raises `TimeoutError` when it did nothing for
        so long, or has ended."""
        while True:
            before = self.worked
            with suppress(TimeoutError):
                return await until(ready, idle_seconds, every)
            if not self.running or self.worked - before < 1:
                raise TimeoutError

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """In order; nothing when it has ended."""
        if self.process is not None and self.running:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """What its store holds; nothing while there is none."""
        try:
            store = sqlite3.connect(f"file:{self.folder / 'store.db'}?mode=ro", uri=True, timeout=10)
        except sqlite3.OperationalError:
            return []
        try:
            return store.execute(query, arguments).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise
        finally:
            store.close()

    def number(self, query: str, *arguments: Any) -> int:
        """One number from its store."""
        found = self.rows(query, *arguments)
        return int(found[0][0]) if found else 0


def images(folder: Path, count: int, seed: int) -> Path:
    """DICOM files with labels: bright ones are tumours."""
    folder.mkdir()
    dice = np.random.default_rng(seed)
    rows: list[Sequence[str]] = [("file", "label")]
    for number in range(count):
        tumour = number % 2
        data = wrap(
            Image.fromarray((dice.integers(0, 90, (32, 32)) + 130 * tumour).astype(np.uint8)),
            patient_id=f"PID-{number // 2:05d}",
            patient_name=f"Canary^{number // 2:05d}",
            study_uid=f"2.25.{seed}1{number}",
            series_uid=f"2.25.{seed}2{number}",
            sop_uid=f"2.25.{seed}3{number}",
            modality="MR",
            study_date="20240102",
            extra={},
        )
        (folder / f"{number}.dcm").write_bytes(data)
        rows.append((f"{number}.dcm", ("none", "tumour")[tumour]))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder

"""What a step made of an input is kept under both their hashes, and where every output came from is written beside it.

Kept in the clear in a private folder: for de-identified data, and at a hospital's node for as long as somebody trains on them (`wipe`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from medmesh.errors import Problem
from medmesh.pipelines.data import Data, packed, unpacked
from medmesh.pipelines.pipeline import Pipeline, hash_of


@dataclass(frozen=True, slots=True)
class Made:
    """One edge of the provenance: `output` (SHA-256 of the packed data) was made of `input` by the step of hash `step`, called `name`."""

    input: str
    step: str
    name: str
    version: int
    output: str


class Cache:
    """A folder of `<output>.safetensors` and `<input>-<step>.json`. Written whole or not at all: a killed process leaves nothing wrong."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def run(self, pipeline: Pipeline, data: Data) -> tuple[Data, list[Made]]:
        """The result of all steps and where it came from, step by step. What was made before is read, its hash compared."""
        trail: list[Made] = []
        source = data.digest()
        pending: Data | None = data  # None while only hashes were needed
        for step in pipeline.steps:
            number = hash_of(step)
            made = self._known(source, number)
            if made is None:
                if pending is None:
                    pending = self.read(source)
                pending = step.apply(pending)
                raw = packed(pending)
                made = Made(source, number, step.name, step.version, sha256(raw).hexdigest())
                self._write(self._folder / f"{made.output}.safetensors", raw)
                self._write(self._folder / _edge(source, number), json.dumps(asdict(made), sort_keys=True).encode())
            else:
                pending = None
            trail.append(made)
            source = made.output
        return (self.read(source) if pending is None else pending), trail

    def read(self, output: str) -> Data:
        """By its hash, which is compared. Raises `Problem` (`pipelines.damaged`)."""
        try:
            raw = (self._folder / f"{output}.safetensors").read_bytes()
        except OSError:
            raise Problem("pipelines.damaged") from None
        if sha256(raw).hexdigest() != output:
            raise Problem("pipelines.damaged")
        return unpacked(raw)

    def origin(self, output: str) -> list[Made]:
        """Every edge that led to `output`, the last first."""
        edges = {made.output: made for made in self._edges()}
        trail: list[Made] = []
        while (made := edges.get(output)) is not None and made not in trail:
            trail.append(made)
            output = made.input
        return trail

    def wipe(self) -> None:
        """Forget everything."""
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)

    def _known(self, source: str, step: str) -> Made | None:
        """What is written of an edge, if its output is still there and whole."""
        try:
            made = Made(**json.loads((self._folder / _edge(source, step)).read_bytes()))
            raw = (self._folder / f"{made.output}.safetensors").read_bytes()
        except (OSError, ValueError, TypeError):
            return None
        return made if sha256(raw).hexdigest() == made.output and (made.input, made.step) == (source, step) else None

    def _edges(self) -> Iterator[Made]:
        for path in sorted(self._folder.glob("*.json")):
            yield Made(**json.loads(path.read_bytes()))

    def _write(self, path: Path, raw: bytes) -> None:
        handle, name = tempfile.mkstemp(dir=self._folder)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)


def _edge(source: str, step: str) -> str:
    return f"{sha256((source + step).encode()).hexdigest()}.json"

"""Installed models on disk: whole or absent, the previous one kept, nothing executable but the graph.

<folder>/<model>/active.json                the folders in use: {"active": ..., "previous": ...}
<folder>/<model>/<version>-<digest>/        model.onnx, and release.json with the release's id and manifest
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from medmesh.canonical import canonical, digest
from medmesh.contracts.registry import Manifest
from medmesh.errors import Problem
from medmesh.serving.batching import MAX_BATCH, Batcher
from medmesh.serving.onnxruntime_session import Session
from medmesh.telemetry import log

PROBABILITIES, LABEL = "probabilities", "label"
"""The outputs that are added to the model's own."""

_STATE, _MODEL, _RELEASE = "active.json", "model.onnx", "release.json"


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A loaded version; requests that began with it end with it, whatever becomes active meanwhile."""

    manifest: Manifest
    release: str
    session: Session
    infer: Batcher


@dataclass(frozen=True, slots=True)
class Installed:
    """A version on disk. `state` is `active`, `previous`, or `broken`: meant to be active, but it did not load."""

    model: str
    version: int
    release: str
    state: str


@dataclass(frozen=True, slots=True)
class _Chosen:
    active: str | None = None
    previous: str | None = None


class Repository:
    """See the module. Methods do blocking I/O but for `active`; changes exclude each other, readers never wait."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Open a folder, load what is active in it and forget what an interrupted change left behind."""
        self._folder, self._threads = folder, threads
        self._lock = threading.Lock()
        self._served: dict[str, Served] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for place in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
            chosen = _read_state(place)
            for left in place.glob(".new-*"):
                shutil.rmtree(left, ignore_errors=True)
            if chosen.active is None:
                continue
            try:
                self._served[place.name] = self._load(place / chosen.active)
            except Problem as problem:
                log("serving.not_loaded", level=40, model=place.name, code=problem.code)

    def active(self, model: str, version: int | None = None) -> Served:
        """What answers for a model now. Raises `Problem` (`serving.not_served`)."""
        served = self._served.get(model)
        if served is None or version not in (None, served.manifest.version):
            raise Problem("serving.not_served", model=model)
        return served

    def list(self) -> tuple[Installed, ...]:
        """Every version on disk that can be or was active."""
        found = []
        for place in sorted(entry for entry in self._folder.iterdir() if entry.is_dir()):
            chosen = _read_state(place)
            for name, state in ((chosen.active, "active" if place.name in self._served else "broken"), (chosen.previous, "previous")):
                if name is not None:
                    found.append(Installed(place.name, int(name.split("-")[0]), _release_of(place / name), state))
        return tuple(found)

    def install(self, manifest: Manifest, onnx_path: Path, release: str) -> Served:
        """Make a verified release the active version of its model; again the same is harmless.

        The file is copied, loaded and run once before anything changes: when it has other bytes than the manifest says, does
        not load or gives no sound answer, what was active stays so. Raises `Problem` (`objects.digest`, `serving.graph`,
        `serving.unhealthy`).
        """
        with self._lock:
            place = self._folder / manifest.model
            place.mkdir(exist_ok=True, mode=0o700)
            document = {"release": release, "manifest": manifest.model_dump(mode="json")}
            name = f"{manifest.version}-{digest(document)[:16]}"
            temporary = place / f".new-{secrets.token_hex(4)}"
            temporary.mkdir(mode=0o700)
            try:
                shutil.copyfile(onnx_path, temporary / _MODEL)
                _sync(temporary / _MODEL)
                _write(temporary / _RELEASE, document)
                served = self._load(temporary)
                if (place / name).exists():  # by an earlier, perhaps damaged, installation of the same release
                    shutil.rmtree(place / name)
                temporary.rename(place / name)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            before = _read_state(place)
            previous = before.previous if before.active == name else before.active
            self._choose(place, _Chosen(name, None if previous == name else previous))
            self._served[manifest.model] = served
            return served

    def rollback(self, model: str) -> Served:
        """Go back to the previous version; the one left becomes the previous. Raises `Problem` (`serving.no_previous`, and as
        `install`), and then nothing has changed."""
        with self._lock:
            place = self._folder / model
            chosen = _read_state(place) if model in self._models() else _Chosen()
            if chosen.previous is None:
                raise Problem("serving.no_previous", model=model)
            served = self._load(place / chosen.previous)
            self._choose(place, _Chosen(chosen.previous, chosen.active))
            self._served[model] = served
            return served

    def remove(self, model: str, version: int) -> bool:
        """Take a version out of service and off the disk; whether there was one. Nothing takes its place by itself."""
        with self._lock:
            if model not in self._models():
                return False
            if (served := self._served.get(model)) is not None and served.manifest.version == version:
                del self._served[model]
            before = _read_state(self._folder / model)
            after = before
            for part in ("active", "previous"):
                name: str | None = getattr(before, part)
                if name is not None and name.startswith(f"{version}-"):
                    after = replace(after, **{part: None})
            if after != before:
                self._choose(self._folder / model, after)
            return after != before

    def _models(self) -> set[str]:
        return {entry.name for entry in self._folder.iterdir()}

    def _choose(self, place: Path, chosen: _Chosen) -> None:
        """Commit: the state file is replaced at once, after everything it names is on the disk."""
        _sync(place)
        temporary = place / f".{_STATE}"
        _write(temporary, {"active": chosen.active, "previous": chosen.previous})
        temporary.replace(place / _STATE)
        _sync(place)
        _tidy(place, chosen)

    def _load(self, folder: Path) -> Served:
        try:
            document = json.loads((folder / _RELEASE).read_bytes())
            manifest, release = Manifest.model_validate(document["manifest"]), str(document["release"])
            output = manifest.preprocess.get("output")
            session = Session(
                folder / _MODEL, self._threads, sha256=manifest.onnx.sha256, output=output if isinstance(output, str) else None
            )
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise Problem("serving.graph", reason=f"its files cannot be read ({type(error).__name__})") from None
        _check_health(manifest, session)
        limit = MAX_BATCH if session.batch is None else session.batch
        return Served(manifest, release, session, Batcher(session.run, name=manifest.model, limit=limit))


def _check_health(manifest: Manifest, session: Session) -> None:
    """One run on zeros, and one on two samples where any number is taken. Raises `Problem` (`serving.unhealthy`)."""

    def sick(reason: str) -> Problem:
        return Problem("serving.unhealthy", model=manifest.model, version=manifest.version, reason=reason)

    if session.outputs[0].name in (PROBABILITIES, LABEL):
        raise sick(f"its output may not be called {session.outputs[0].name!r}")
    for samples in (1, 2) if session.batch is None else (session.batch,):
        try:
            logits = session.run(np.zeros((samples, *session.inputs[0].shape[1:]), np.float32))
        except Exception as error:
            raise sick(f"a run on {samples} empty samples fails ({type(error).__name__})") from None
        if logits.shape != (samples, len(manifest.classes)):
            raise sick(f"it answers {list(logits.shape)}, not [{samples}, {len(manifest.classes)}] for the manifest's classes")
        if not np.isfinite(logits).all():
            raise sick("its answer to empty samples is no number")


def _read_state(place: Path) -> _Chosen:
    try:
        document = json.loads((place / _STATE).read_bytes())
        return _Chosen(document["active"], document["previous"])
    except (OSError, ValueError, KeyError, TypeError):
        return _Chosen()


def _release_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / _RELEASE).read_bytes())["release"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _tidy(place: Path, chosen: _Chosen) -> None:
    for entry in place.iterdir():
        if entry.is_dir() and entry.name not in (chosen.active, chosen.previous):
            shutil.rmtree(entry, ignore_errors=True)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_bytes(canonical(document))
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

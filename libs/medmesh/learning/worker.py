"""The process in which a package's code runs: `python -P -m medmesh.learning.worker`, inside the sandbox.

It answers frames on standard input and output. What the package prints goes nowhere, because it might be a patient's name;
an error is told by its type and the package's line, never by its text. It loads neither pydantic nor contracts: each hospital has one.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from medmesh.errors import Problem
from medmesh.learning import weights
from medmesh.learning.adapter import Adapter, Correction, Private, Samples, Schedule, adapter
from medmesh.learning.protocol import read_frame, write_frame


class Session:
    """One package in one worker. `told` is what the host, who checked it, says of its manifest (`Manifest.told`)."""

    def __init__(self, folder: Path, framework: str, told: dict[str, Any], ranks: int = 1) -> None:
        self.folder, self.framework, self.told, self.ranks = folder, framework, told, ranks
        self.adapter: Adapter = adapter(framework)
        self.hyper: dict[str, Any] = dict(told["hyper"])
        if told["custom"]:
            sys.path.insert(0, str(folder))
        else:
            self.hyper["layers"] = [SimpleNamespace(**layer) for layer in self.hyper["layers"]]
        self.module = importlib.import_module(told["entry"])

    def model(self, seed: int, path: str | None = None) -> Any:
        """A fresh model, with the weights in `path` when there is one."""
        made = self.adapter.build(self.module, self.hyper, seed)
        if path:
            self.adapter.assign(made, weights.Stored(Path(path)))
        return made


def _samples(path: str) -> Samples:
    """What is trained on stays on the disk until it is looked at; labels and patients are small."""
    stored = weights.mapped(Path(path))
    patients = stored.get("patients")
    return Samples(stored["x"], np.array(stored["y"]), None if patients is None else np.array(patients))


def initial(session: Session, call: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Write fresh weights."""
    weights.save(session.adapter.tensors(session.model(call["seed"])), Path(call["out"]))
    return {}


def train(session: Session, call: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Train from given weights on given samples and write the result; with the correction of an algorithm where there is one. How far it is
    is told at most once in `every` seconds."""
    if session.ranks > 1 and "rank" not in call:
        from medmesh.learning.ranks import together

        return together(session, call, tell)
    samples, correction, plain = _samples(call["data"]), _correction(call), bool(call.get("plain"))
    own = getattr(session.module, "train", None)
    if (correction or plain) and not getattr(session.adapter if own is None else session.module, "corrects", False):
        raise Problem("package.uncorrected", framework=session.framework)
    private = Private(**call["private"]) if call.get("private") else None
    if private and (own is not None or not getattr(session.adapter, "private", False)):
        raise Problem("privacy.package", reason="its framework does not clip by patient" if own is None else "it has a training of its own")
    how = (correction, plain, private, call.get("rank", 0), call.get("ranks", 1))
    schedule = Schedule(call["steps"], call["batch_size"], call["learning_rate"], call["seed"], *how)
    model = session.model(call["seed"], call["weights"])

    told, every = time.monotonic(), call.get("every", 0.0)

    def on_step(step: int, loss: float) -> None:
        nonlocal told
        if (now := time.monotonic()) - told >= every:
            told = now
            tell({"event": "progress", "step": step, "steps": schedule.steps, "loss": loss})

    loss = session.adapter.train(session.module, model, samples, schedule, on_step)
    if schedule.rank == 0:
        weights.save(session.adapter.tensors(model), Path(call["out"]))
    return {"loss": loss, "samples": len(samples.y), "processes": 1}


def _correction(call: dict[str, Any]) -> Correction | None:
    anchor, shift = call.get("anchor"), call.get("shift")
    if not anchor and not shift:
        return None
    return Correction(call["pull"], weights.load(Path(anchor)) if anchor else {}, weights.load(Path(shift)) if shift else {})


def evaluate(session: Session, call: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Confusion counts [true][predicted] of each model on given samples; with `out`, also what each predicted for every sample (int64
    [samples] by the model's place), for a host that counts by itself."""
    samples = _samples(call["data"])
    classes = session.told["classes"]
    results, answers = [], {}
    for number, path in enumerate(call["models"], start=1):
        predicted = session.adapter.logits(session.model(0, path), samples.x).argmax(axis=1)
        answers[str(number - 1)] = predicted.astype(np.int64)
        counts = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(counts, (samples.y, predicted), 1)
        results.append(counts.tolist())
        tell({"event": "progress", "step": number, "steps": len(call["models"]), "loss": 0.0})
    if call.get("out"):
        weights.save(answers, Path(call["out"]))
    return {"counts": results}


def predict(session: Session, call: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Write the model's answers (float32 [samples, classes]) to given samples."""
    model = session.model(0, call["weights"])
    weights.save({"logits": session.adapter.logits(model, _samples(call["data"]).x)}, Path(call["out"]))
    return {}


def export(session: Session, call: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Write ONNX, and the model's own answers to seeded inputs for the parity gate."""
    if session.told["sample"] is None:
        raise Problem("package.no_table")
    generator = np.random.default_rng(call["seed"])
    x = generator.integers(0, 256, (call["examples"], *session.told["sample"]), dtype=np.uint8)
    model = session.model(0, call["weights"])
    tools = session.adapter.export_onnx(model, x[:2], Path(call["out"]))
    weights.save({"x": x, "logits": session.adapter.logits(model, x)}, Path(call["reference"]))
    return {"tools": tools}


OPERATIONS = {"initial": initial, "train": train, "evaluate": evaluate, "predict": predict, "export": export}


def main() -> int:
    """Serve until the host closes the pipe."""
    stream_in, stream_out = take_pipes()

    def tell(document: dict[str, Any]) -> None:
        write_frame(stream_out, document | {"cpu": math.ceil(time.process_time())})

    session: Session | None = None
    while (call := read_frame(stream_in)) is not None:
        bound(call["cpu"])
        try:
            if call["op"] == "open":
                session = Session(Path(call["package"]), call["framework"], call["told"], call.get("ranks", 1))
                tell({"event": "done", "result": {}})
            elif session is None:
                raise ValueError("open a package first")
            else:
                tell({"event": "done", "result": OPERATIONS[call["op"]](session, call, tell)})
        except Problem as problem:
            tell({"event": "problem", "document": problem.document()})
        except BaseException as error:
            full = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)  # what PyTorch says of it is a RuntimeError
            tell({"event": "failed", "error": "MemoryError" if full else type(error).__name__, "at": "" if full else place(error)})
            if not isinstance(error, Exception):
                return 1
    return 0


def bound(seconds: int) -> None:
    """From here on this process may use so many seconds of CPU; the kernel ends it with SIGXCPU then. Whose code moves or catches that is
    ended at the hard limit, which nobody here can move."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def place(error: BaseException) -> str:
    """File and line of the innermost frame: enough to find the mistake, too little to carry data."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the host's pipes for ourselves; whatever the package prints is dropped."""
    stream_in, stream_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    return stream_in, stream_out


if __name__ == "__main__":
    sys.exit(main())

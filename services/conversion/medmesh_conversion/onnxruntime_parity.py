"""The process that opens a converted file: `python -P -m medmesh_conversion.onnxruntime_parity MODEL INPUTS FOLDER OLDEST NEWEST`.

The file comes out of code that a researcher brought, so this runs in a sandbox of its own, never in the service. It takes the
file exactly as a hospital's server does, and checks more: the checker of the standard, and which operator set it is.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from pydantic import FiniteFloat

from medmesh.contracts.message import Record
from medmesh.errors import Problem
from medmesh.learning import weights
from medmesh.learning.adapter import float_input
from medmesh.serving.graph import DOMAINS, check_graph

ANSWER, LOGITS = "answer.json", "logits.safetensors"
_REPEATS = 5


class Latency(Record):
    """Medians in ms for a batch of one image and for all examples in one batch."""

    single: FiniteFloat
    batched: FiniteFloat


class Answer(Record):
    """What the process writes when there is no problem."""

    opset: int
    latency_ms: Latency
    tools: dict[str, str]


def check(data: bytes, oldest: int, newest: int) -> int:
    """The operator set version of an ONNX file. Raises `Problem` (`serving.graph`, `conversion.opset`) for tensors in other files,
    operators outside the standard, what the standard's checker refuses, and versions outside `oldest`..`newest`."""
    check_graph(data)
    import onnx

    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's exceptions have no common base of their own
        raise Problem("serving.graph", reason=f"the ONNX checker refuses it ({type(error).__name__})") from None
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if foreign := sorted(set(versions) - DOMAINS):
        raise Problem("serving.graph", reason=f"it imports operators that are not of the ONNX standard ({', '.join(foreign)[:200]})")
    found = int(versions.get("", versions.get("ai.onnx", 0)))
    if not oldest <= found <= newest:
        raise Problem("conversion.opset", found=found, oldest=oldest, newest=newest)
    return found


def run(model: Path, x: np.ndarray) -> tuple[dict[str, np.ndarray], Latency]:
    """Logits "batched" and "single", float32 [examples, classes], of uint8 samples [examples, *shape], and how long
    they took. Raises `Problem` (`serving.graph`)."""
    from medmesh.serving.onnxruntime_session import Session

    session = Session(model)
    if session.batch is not None:
        raise Problem("serving.graph", reason=f"it takes batches of {session.batch} only")
    if (shape := session.inputs[0].shape[1:]) != x.shape[1:]:
        raise Problem("serving.graph", reason=f"it takes samples {list(shape)}, the package declares {list(x.shape[1:])}")
    images = float_input(x)
    try:
        session.run(images[:1])
        single, each = _timed(session.run, [images[i : i + 1] for i in range(len(images))])
        batched, whole = _timed(session.run, [images] * _REPEATS)
    except Exception as error:  # as above: the runtime's exceptions have no common base
        raise Problem("serving.graph", reason=f"the runtime fails on it ({type(error).__name__})") from None
    return {"single": np.concatenate(single), "batched": batched[0]}, Latency(single=each, batched=whole)


def _timed(call: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    answers, seconds = [], []
    for batch in batches:
        began = perf_counter()
        answers.append(call(batch))
        seconds.append(perf_counter() - began)
    return answers, round(1000 * statistics.median(seconds), 4)


def main(argv: list[str]) -> int:
    """Write the logits and an answer, or the problem, below the folder."""
    model, given, folder = (Path(argument) for argument in argv[:3])
    try:
        opset = check(model.read_bytes(), int(argv[3]), int(argv[4]))
        logits, latency = run(model, weights.load(given)["x"])
        weights.save(logits, folder / LOGITS)
        answer = Answer(opset=opset, latency_ms=latency, tools=_tools()).model_dump_json()
    except Problem as problem:
        answer = json.dumps({"problem": problem.document()})
    (folder / ANSWER).write_text(answer, encoding="utf-8")
    return 0


def _tools() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("onnx", "onnxruntime")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

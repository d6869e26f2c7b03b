"""The two sandboxes of a conversion: one runs the package and leaves a file, the other opens that file.

Whatever a sandbox leaves is copied out first, by descriptor and with a limit, and only the copy is looked at: it cannot be a link,
a pipe or a device, and it cannot change any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import medmesh
import medmesh_conversion
from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.learning import isolation, weights
from medmesh.learning.host import worker
from medmesh.learning.package import Package
from medmesh_conversion.domain import Measured, inputs
from medmesh_conversion.onnxruntime_parity import ANSWER, LOGITS, Answer
from medmesh_conversion.settings import Settings

_MAX_ANSWER = 2**16
_MAX_REFERENCE = 2**31
_NOT_ISOLATED = 125


@dataclass(frozen=True, slots=True)
class Exported:
    """What a package left: an ONNX file nobody has looked at, and the model's own logits float32 [examples, classes]."""

    onnx: Path
    sha256: str
    reference: np.ndarray
    tools: object


def take(source: Path, target: Path, limit: int) -> str:
    """Copy a file that a sandbox left to `target`, readable for all; answers its SHA-256. Raises `Problem` (`conversion.output`)."""
    try:
        # Not to wait for ever on a pipe, not to follow a link.
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise Problem("conversion.output", file=source.name, reason="it is missing or a link") from None
    digest, size = hashlib.sha256(), 0
    with os.fdopen(descriptor, "rb") as file, target.open("xb") as copy:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Problem("conversion.output", file=source.name, reason="it is no ordinary file")
        while piece := file.read(2**20):
            size += len(piece)
            if size > limit:
                raise Problem("conversion.output", file=source.name, reason=f"it has more than the {limit} bytes allowed")
            digest.update(piece)
            copy.write(piece)
    target.chmod(0o644)
    return digest.hexdigest()


def give(source: Path, target: Path) -> str:
    """Copy a file into a folder that a package may write: a new file and no other, whatever the package put in its place."""
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError:
        raise Problem("conversion.output", file=target.name, reason="the package took its name") from None
    with os.fdopen(descriptor, "wb") as copy, source.open("rb") as file:
        os.fchmod(copy.fileno(), 0o644)
        shutil.copyfileobj(file, copy, 2**20)
    return str(target)


async def export(package: Package, source: Path, folder: Path, settings: Settings, seed: int) -> Exported:
    """Let the package write ONNX from the weights in `source`. Raises `Problem` (`worker.*`, `package.*`, `conversion.output`,
    `conversion.reference`)."""
    data, examples = package.manifest.items(), settings.examples
    # Room beyond the limit: a file that is too large is told as that, not as an error of the package's.
    limits = isolation.Limits(memory_bytes=settings.memory_bytes, file_bytes=settings.max_onnx_bytes + 2**30)
    running = worker(
        package, folder / "package", python=settings.python, silence=settings.silence_seconds, limits=limits, account=settings.account
    )
    async with running as w:
        given = await asyncio.to_thread(give, source, w.folder / "weights.safetensors")
        out, reference = w.folder / "model.onnx", w.folder / "reference.safetensors"
        try:
            answer = await w.call("export", weights=given, out=str(out), reference=str(reference), examples=examples, seed=seed)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Problem("worker.crashed", reason="it wrote nonsense") from None
        await w.kill()  # nothing writes any more
        onnx = _shared(folder / "given") / "model.onnx"
        sha256 = await asyncio.to_thread(take, out, onnx, settings.max_onnx_bytes)
        said = folder / "reference.safetensors"
        await asyncio.to_thread(take, reference, said, _MAX_REFERENCE)
    x = inputs(seed, examples, data)
    logits = TensorSignature(name="logits", shape=(examples, len(data.classes)), dtype="F32")
    found = _tensors(said, logits, TensorSignature(name="x", shape=x.shape, dtype="U8"))
    # The package may not choose what it is asked: answers to images of its own prove nothing.
    if found is None or not np.array_equal(found["x"], x):
        raise Problem("conversion.reference", examples=examples, classes=len(data.classes))
    return Exported(onnx, sha256, found["logits"], answer.get("tools"))


async def measure(exported: Exported, x: np.ndarray, folder: Path, settings: Settings) -> Measured:
    """Check and run the file on uint8 samples [examples, *shape], in a sandbox without the package. Raises `Problem`
    (`serving.graph`, `conversion.opset`, `conversion.runtime`)."""
    given, left = exported.onnx.parent, folder / "left"
    images = given / "inputs.safetensors"
    weights.save({"x": x}, images)
    images.chmod(0o644)
    left.mkdir(mode=0o700)
    arguments = [str(exported.onnx), str(images), str(left), str(settings.opset_oldest), str(settings.opset_newest)]
    await _isolated("medmesh_conversion.onnxruntime_parity", arguments, given, left, settings)
    answer = await asyncio.to_thread(_answer, left, folder)
    await asyncio.to_thread(take, left / LOGITS, folder / LOGITS, _MAX_REFERENCE)
    wanted = (TensorSignature(name=name, shape=exported.reference.shape, dtype="F32") for name in ("batched", "single"))
    found = _tensors(folder / LOGITS, *wanted)
    if found is None:
        raise Problem("serving.graph", reason=f"its answers are not logits {list(exported.reference.shape)}")
    return Measured(found["batched"], found["single"], answer.opset, answer.latency_ms.single, answer.latency_ms.batched, answer.tools)


async def _isolated(module: str, arguments: list[str], read: Path, write: Path, settings: Settings) -> None:
    """Run a module of ours in a sandbox. Raises `Problem` (`conversion.runtime`, `worker.not_isolated`, `isolation.*`)."""
    ours = tuple(Path(package.__path__[0]).parent for package in (medmesh, medmesh_conversion))
    limits = isolation.Limits(memory_bytes=settings.memory_bytes, cpu_seconds=int(settings.measure_seconds) + 1)
    sandbox = isolation.Sandbox(read=(*ours, read), write=write, limits=limits, account=settings.account)
    environment = {**isolation.environment(sandbox), "PYTHONPATH": os.pathsep.join(map(str, ours))}
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *isolation.wrap([sys.executable, "-P", "-m", module, *arguments], sandbox),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=said,
            env=environment,
            start_new_session=True,
            cwd="/",
        )
        try:
            code = await asyncio.wait_for(process.wait(), settings.measure_seconds)
        except TimeoutError:
            raise Problem("conversion.runtime", reason=f"no answer within {settings.measure_seconds:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if code == _NOT_ISOLATED:
            said.seek(0)
            raise Problem("worker.not_isolated", reason=said.read(300).decode(errors="replace").strip())
    if code:
        raise Problem("conversion.runtime", reason=signal.Signals(-code).name if code < 0 else f"exit code {code}")


def _answer(left: Path, folder: Path) -> Answer:
    take(left / ANSWER, folder / ANSWER, _MAX_ANSWER)
    said = (folder / ANSWER).read_bytes()
    try:
        document = json.loads(said)
        if "problem" in document:
            raise Problem.from_document(document["problem"])
        return Answer.model_validate_json(said)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Problem("conversion.runtime", reason="it wrote nonsense") from None


def _tensors(path: Path, *signature: TensorSignature) -> dict[str, np.ndarray] | None:
    """Exactly these tensors, or None."""
    try:
        weights.check(path, signature)
    except Problem:
        return None
    return weights.load(path)


def _shared(folder: Path) -> Path:
    """A folder the sandbox's account may look into; the one above it is private."""
    folder.mkdir(mode=0o700)
    folder.chmod(0o755)
    return folder

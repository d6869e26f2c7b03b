"""Faces in volumes of the head: whether one may be there, and the plug-in point for software that removes it (PS3.15 §E.3.2, the Clean
Recognizable Visual Features Option).

Nothing here knows a face. A hospital installs what it trusts (entry points of the group `medmesh.deface`); where a project asks for it
(`Options.faces`) and there is none, or it fails, or its answer cannot be right, the volume is refused. It runs in a process of its own,
one for each volume: a crash or a hang costs that volume, and the memory of a model is given back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import entry_points
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medmesh.embedded import child
from medmesh.errors import Problem

GROUP = "medmesh.deface"
LONGEST = 3600.0
"""Seconds that one volume may take."""


@dataclass(frozen=True, slots=True)
class Volume:
    """What a plug-in is given: float32 [x, y, z], the axes turned (nothing resampled) so that they point right, anterior and superior as
    nearly as can be; `affine` float64 [4, 4] from voxels to millimetres in RAS+; `modality` as CT, MR or PT, OT where nobody said."""

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    modality: str

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along each axis."""
        x, y, z = (float(size) for size in np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)))
        return x, y, z


Defacer = Callable[[Volume], "NDArray[Any] | None"]
"""Answers, in the volume's shape, which voxels to blank (bool), or the values without the face (numbers); None for what it is not made
for, and the next one is asked."""


def may_show(dataset: Dataset) -> bool:
    """Whether a face may be in what an object is part of: in all but what its header names and the table knows to show none. Raises
    `imaging.unreadable`."""
    try:
        return _may_show(dataset)
    except Exception as error:  # pydicom decodes a value when it is first looked at, and lets errors of every kind through
        raise Problem("imaging.unreadable", reason=type(error).__name__) from None


def _may_show(dataset: Dataset) -> bool:
    lists = _lists()
    if modality_is_flat(str(dataset.get("Modality") or "")) or not any(name in dataset for name in _PIXELS):
        return False
    parts = {str(dataset.get("BodyPartExamined") or "").replace(" ", "").replace("_", "").strip().upper()} - {""}
    regions = {str(item.get("CodeValue") or "") for item in dataset.get("AnatomicRegionSequence") or ()}
    known = parts <= lists["body_parts"] and regions <= lists["regions"]
    return not (known and (parts or regions))


def modality_is_flat(modality: str) -> bool:
    """Whether it is known to show no face, whatever part of the body it is of."""
    return modality.strip().upper() in _lists()["modalities"]


def installed() -> list[str]:
    """The names of what is installed to remove faces, in the order in which it is asked."""
    return sorted(point.name for point in entry_points(group=GROUP))


def removed(volume: Volume) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The volume's values without the face, and which of them changed. Blank is the least value that the volume has. Raises `Problem`:
    `imaging.face_no_software`, `imaging.face_failed`."""
    if not installed():
        raise Problem("imaging.face_no_software")
    answer = _asked(volume)
    if answer.shape != volume.values.shape:
        raise _failed("its answer has another shape")
    if answer.dtype == np.bool_:
        made = np.where(answer, lowest(volume.values), volume.values).astype(np.float32)
    elif np.issubdtype(answer.dtype, np.integer) or np.issubdtype(answer.dtype, np.floating):
        made = answer.astype(np.float32)
    else:
        raise _failed("its answer is neither a mask nor numbers")
    changed = (made != volume.values) & ~(np.isnan(made) & np.isnan(volume.values))
    if not np.isfinite(made[changed]).all():
        raise _failed("its answer holds values that are not finite")
    if not changed.any():
        raise _failed("it removed nothing")
    if np.ptp(made[np.isfinite(made)]) == 0:
        raise _failed("it left nothing")
    return made, changed


def lowest(values: NDArray[np.float32]) -> float:
    """What blank is: the least value that is finite. Raises `Problem` (`imaging.face_failed`) where none is."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise _failed("it holds no values")
    return float(finite.min())


_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@cache
def _lists() -> dict[str, frozenset[str]]:
    text = resources.files("medmesh.imaging.deidentify").joinpath("tables", "faces.toml").read_text(encoding="utf-8")
    return {name: frozenset(values) for name, values in tomllib.loads(text).items()}


def _failed(reason: str) -> Problem:
    return Problem("imaging.face_failed", reason=reason)


def _asked(volume: Volume) -> NDArray[Any]:
    """What the installed software answers. Images go through pipes and touch no disk; what it prints is its own, on standard error."""
    about = {"shape": volume.values.shape, "affine": volume.affine.tolist(), "modality": volume.modality}
    program = [sys.executable, "-m", "medmesh.imaging.deidentify.faces"]
    # ends with us, and leaves no core dump
    command = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), "9", "-1", "-1", os.getcwd(), *program]
    sent = json.dumps(about).encode() + b"\n" + np.ascontiguousarray(volume.values, "<f4").tobytes()
    try:
        ran = subprocess.run(command, input=sent, stdout=subprocess.PIPE, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        raise _failed(f"it took longer than {LONGEST:.0f} seconds") from None
    head, _, body = ran.stdout.partition(b"\n")
    try:
        said = json.loads(head)
    except ValueError:
        raise _failed(f"it ended without an answer ({ran.returncode})") from None
    if "failed" in said:
        raise _failed(str(said["failed"]))
    return np.frombuffer(body, np.dtype(said["dtype"])).reshape(said["shape"])


def _serve(given: BinaryIO, answer: BinaryIO) -> None:
    """The other end of `_asked`."""
    about = json.loads(given.readline())
    values = np.frombuffer(given.read(), "<f4").astype(np.float32).reshape(about["shape"])
    volume = Volume(values, np.array(about["affine"], np.float64), about["modality"])
    try:
        points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
        made = next((one for point in points if (one := point.load()(volume)) is not None), None)
        array = None if made is None else np.asarray(made)
        if array is None:
            said: dict[str, Any] = {"failed": "none of what is installed is made for it"}
        elif array.dtype.kind not in "biuf":
            said = {"failed": "its answer is neither a mask nor numbers"}
        else:
            said = {"dtype": array.dtype.str, "shape": array.shape}
    except (Exception, SystemExit) as error:  # whatever other people's software raises; programs of the command line exit
        traceback.print_exc()
        said, array = {"failed": type(error).__name__}, None
    answer.write(json.dumps(said).encode() + b"\n")
    if array is not None and "dtype" in said:
        answer.write(array.tobytes())
    answer.flush()


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as _answer:
        os.dup2(2, 1)  # what plug-ins print is no answer
        _serve(sys.stdin.buffer, _answer)

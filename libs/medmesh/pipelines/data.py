"""What goes from step to step: an array, what its axes mean, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from medmesh.errors import Problem

TEXT = "UTF-8"
"""The unit of a text."""


@dataclass(frozen=True, slots=True)
class Data:
    """`values`: an image [rows, columns], a volume [x, y, z] with `affine` to RAS+ millimetres, a signal [channels, samples] at `rate`
    hertz, features [numbers], or the bytes of a text (uint8, `TEXT`). `unit` of the values, where one is known."""

    values: NDArray[Any]
    affine: NDArray[np.float64] | None = None
    rate: float | None = None
    unit: str = ""

    def with_values(self, values: NDArray[Any], **changed: Any) -> Data:
        """The same about other values."""
        return replace(self, values=values, **changed)

    def digest(self) -> str:
        """SHA-256 of all of it; equal on every machine."""
        return hashlib.sha256(packed(self)).hexdigest()


def packed(data: Data, **origin: str) -> bytes:
    """As safetensors with little-endian, contiguous arrays: equal data of one `origin`, which is written beside them, are equal bytes."""
    tensors = {"values": _plain(data.values)}
    if data.affine is not None:
        tensors["affine"] = _plain(data.affine.astype(np.float64))
    about = json.dumps({"rate": data.rate, "unit": data.unit, **origin}, sort_keys=True)
    return save(tensors, metadata={"about": about})


def unpacked(raw: bytes) -> Data:
    """What `packed` wrote. Raises `Problem` (`pipelines.damaged`)."""
    try:
        length = int.from_bytes(raw[:8], "little")
        about: Mapping[str, Any] = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["about"])
        tensors = load(raw)
        return Data(tensors["values"], tensors.get("affine"), about["rate"], about["unit"])
    except Exception:  # safetensors has errors of its own
        raise Problem("pipelines.damaged") from None


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))

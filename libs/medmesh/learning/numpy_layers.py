"""Builds declared layers (`medmesh.learning.layers`) with numpy: a single linear one, softmax regression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medmesh.errors import Problem

if TYPE_CHECKING:  # a worker does without pydantic
    from medmesh.learning.layers import Layer


def build(layers: Sequence[Layer], shape: Sequence[int], classes: int) -> dict[str, np.ndarray]:
    """{"weight": float32 [inputs, classes], "bias": [classes]}, all zero. Raises `Problem` (`package.layers`) for anything else."""
    if [layer.kind for layer in layers] != ["linear"] or layers[0].out != classes:
        raise Problem("package.layers", place=0, reason=f"numpy knows one linear layer with {classes} outputs")
    return {"weight": np.zeros((math.prod(shape), classes), dtype=np.float32), "bias": np.zeros(classes, dtype=np.float32)}

"""Models as data: a package that lists its layers in `medmesh.toml` brings no code, so that there is none to review.

    [[layers]]
    kind = "convolution"           # out, kernel (odd; the border is padded so that the size stays)
    out = 16
    kernel = 3
    [[layers]]
    kind = "group_norm"            # groups
    groups = 4
    [[layers]]
    kind = "relu"
    [[layers]]
    kind = "max_pool"              # kernel
    kernel = 2
    [[layers]]
    kind = "flatten"               # or "average": the mean over each channel
    [[layers]]
    kind = "linear"                # out; the last one has as many as there are classes

Tensors are named as in PyTorch's `nn.Sequential` of these layers ("0.weight", "0.bias", "1.weight", ...), which a hospital may train with
MindSpore, too. The framework `numpy` knows one model: a single linear layer, whose tensors are "weight" [inputs, classes] and "bias"
[classes].
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medmesh.contracts.message import Record

DECLARED = {
    "torch": "medmesh.learning.torch_layers",
    "mindspore": "medmesh.learning.mindspore_layers",
    "numpy": "medmesh.learning.numpy_layers",
}
"""Framework to the module that builds a model of layers: `build(layers, shape, classes)`."""
TWINS = {"torch": "mindspore", "mindspore": "torch"}
"""Of declared layers these make the same tensors: a hospital runs the one that it has."""
_NEEDS: dict[str, frozenset[str]] = {
    "convolution": frozenset({"out", "kernel"}),
    "group_norm": frozenset({"groups"}),
    "relu": frozenset(),
    "max_pool": frozenset({"kernel"}),
    "average": frozenset(),
    "flatten": frozenset(),
    "linear": frozenset({"out"}),
}


class Layer(Record):
    """One layer; each kind has just the numbers it needs."""

    kind: Literal["convolution", "group_norm", "relu", "max_pool", "average", "flatten", "linear"]
    out: int | None = Field(default=None, ge=1, le=65_536)
    kernel: int | None = Field(default=None, ge=1, le=31)
    groups: int | None = Field(default=None, ge=1, le=4096)

    @model_validator(mode="after")
    def _whole(self) -> Layer:
        given = {name for name in ("out", "kernel", "groups") if getattr(self, name) is not None}
        if given != _NEEDS[self.kind]:
            raise ValueError(f"layers: {self.kind} needs {', '.join(sorted(_NEEDS[self.kind])) or 'nothing'}")
        if self.kind == "convolution" and self.kernel is not None and self.kernel % 2 == 0:
            raise ValueError("layers: the kernel of a convolution is odd")
        return self

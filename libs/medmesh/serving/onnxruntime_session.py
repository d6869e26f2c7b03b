"""ONNX Runtime on the CPU. The only module that knows onnxruntime, and it loads it with the first session."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmesh.errors import Problem
from medmesh.serving.graph import check_graph
from medmesh.serving.protocol import TensorMetadata

Floats = NDArray[np.float32]

PLATFORM = "onnx_onnxruntime"
_DATATYPES = {"tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(int64)": "INT64", "tensor(int32)": "INT32"}


class Session:
    """A loaded classifier: float32 samples [batch, ...] to float32 logits [batch, classes]. A sample is an image [channels, height, width],
    a volume [1, x, y, z], or a signal [channels, length].

    `inputs` and `outputs` are what the graph declares, -1 where a size may vary. Only the batch may vary.
    """

    def __init__(self, path: Path, threads: int = 1, *, sha256: str | None = None, output: str | None = None) -> None:
        """Load a file. With `sha256`, the very bytes that are loaded have that digest. `output` declares which one of several
        outputs are the logits; without it there may be only one. Raises `Problem` (`serving.graph`, `objects.digest`)."""
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if sha256 is not None and found != sha256:
            raise Problem("objects.digest", expected=sha256, found=found)
        check_graph(data)
        self._session = _load(data, threads)
        self.inputs = tuple(map(_metadata, self._session.get_inputs()))
        outputs = tuple(map(_metadata, self._session.get_outputs()))
        self.outputs = tuple(o for o in outputs if output in (None, o.name))
        if len(self.inputs) != 1 or len(self.outputs) != 1:
            raise Problem("serving.graph", reason=f"it has {len(self.inputs)} inputs and {len(outputs)} outputs")
        _check(self.inputs[0], ranks=(3, 4, 5))
        _check(self.outputs[0], ranks=(2,))

    @property
    def batch(self) -> int | None:
        """How many samples every run takes; None when any number."""
        size = self.inputs[0].shape[0]
        return None if size == -1 else size

    def run(self, array: Floats) -> Floats:
        """Logits float32 [batch, classes] of samples float32 [batch, ...]. Safe in many threads at once."""
        (logits,) = self._session.run([self.outputs[0].name], {self.inputs[0].name: np.ascontiguousarray(array)})
        result: Floats = logits
        return result


def _load(data: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised and told by us
    options.add_session_config_entry("session.load_model_format", "ONNX")  # no second format that was not looked at
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the machine has other things to do
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base of their own
        raise Problem("serving.graph", reason=f"the runtime refuses it ({type(error).__name__})") from None


def _metadata(node: Any) -> TensorMetadata:
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in node.shape)
    return TensorMetadata(name=node.name, datatype=_DATATYPES.get(node.type, node.type), shape=shape)


def _check(tensor: TensorMetadata, *, ranks: tuple[int, ...]) -> None:
    fixed = tensor.shape[1:] if len(tensor.shape) > 2 else ()
    if tensor.datatype != "FP32" or len(tensor.shape) not in ranks or -1 in fixed:
        shape = ", ".join("?" if size == -1 else str(size) for size in tensor.shape)
        raise Problem("serving.graph", reason=f"its tensor {tensor.name!r} is {tensor.datatype} [{shape}]")

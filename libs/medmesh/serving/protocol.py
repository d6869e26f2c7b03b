"""The Open Inference Protocol, version 2, in JSON: https://github.com/kserve/open-inference-protocol (REST).

Readers ignore fields they do not know. Tensors are flat in row-major order or nested as their shape says. Every mistake is
a `Problem` (`serving.tensor`) that names the tensor and the rule but never a value.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from medmesh.errors import Problem

Array = NDArray[Any]

_NUMBER, _WHOLE, _TRUTH = frozenset({int, float}), frozenset({int}), frozenset({bool})
DATATYPES: dict[str, tuple[np.dtype[Any], frozenset[type]]] = {
    "FP32": (np.dtype(np.float32), _NUMBER),
    "FP64": (np.dtype(np.float64), _NUMBER),
    "INT64": (np.dtype(np.int64), _WHOLE),
    "INT32": (np.dtype(np.int32), _WHOLE),
    "UINT8": (np.dtype(np.uint8), _WHOLE),
    "BOOL": (np.dtype(np.bool_), _TRUTH),
}
"""The protocol's datatype to NumPy's and to what may stand for it in JSON."""
_NAMES = {dtype: name for name, (dtype, _) in DATATYPES.items()}

ShortText = Annotated[str, Field(max_length=256)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TensorMetadata(_Part):
    """A tensor of a model; -1 in `shape` is a size that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(_Part):
    """`GET /v2/models/{model}`."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class ServerMetadata(_Part):
    """`GET /v2`."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


class InferInput(_Part):
    """A tensor of a request."""

    name: ShortText
    shape: Annotated[list[StrictInt], Field(max_length=8)]
    datatype: ShortText
    parameters: dict[str, Any] = {}
    data: list[Any]


class RequestedOutput(_Part):
    """An output the client wants."""

    name: ShortText
    parameters: dict[str, Any] = {}


class InferRequest(_Part):
    """`POST /v2/models/{model}/infer`."""

    id: ShortText | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=16)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=16)] | None = None


class OutputTensor(_Part):
    """A tensor of an answer, flat in row-major order."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any]


class InferResponse(_Part):
    """The answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


def wrong(reason: str) -> Problem:
    """A mistake of the client."""
    return Problem("serving.tensor", reason=reason)


def read_request(body: bytes) -> InferRequest:
    """A request's document. Raises `Problem`."""
    try:
        return InferRequest.model_validate_json(body)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['type']}" for e in error.errors(include_input=False)[:5])
        raise wrong(f"not a request of the protocol ({where})") from None


def read_input(request: InferRequest, expected: TensorMetadata, *, most: int) -> Array:
    """The one input of a model, checked against what it takes: at most `most` samples along the first axis. Raises `Problem`."""
    for tensor in request.inputs:
        if tensor.name != expected.name:
            raise wrong(f"the model has no input {tensor.name!r}, only {expected.name!r}")
    if len(request.inputs) != 1:
        raise wrong(f"the input {expected.name!r} is given {len(request.inputs)} times")
    tensor = request.inputs[0]
    if tensor.datatype not in DATATYPES:
        raise wrong(f"the datatype {tensor.datatype!r} is not one of {', '.join(DATATYPES)}")
    if tensor.datatype != expected.datatype:
        raise wrong(f"the input {tensor.name!r} takes {expected.datatype}, not {tensor.datatype}")
    fits = len(tensor.shape) == len(expected.shape) and all(
        given > 0 and size in (given, -1) for given, size in zip(tensor.shape, expected.shape, strict=True)
    )
    if not fits:
        raise wrong(f"the input {tensor.name!r} takes the shape {list(expected.shape)} with -1 for any size, not {tensor.shape}")
    if tensor.shape[0] > most:
        raise wrong(f"{tensor.shape[0]} samples are more than the {most} allowed in one request")
    return to_numpy(tensor)


def to_numpy(tensor: InferInput) -> Array:
    """The array of a tensor in its own datatype and shape. Raises `Problem`."""
    if tensor.datatype not in DATATYPES:
        raise wrong(f"the datatype {tensor.datatype!r} is not one of {', '.join(DATATYPES)}")
    dtype, allowed = DATATYPES[tensor.datatype]
    flat = _flat(tensor)
    if not set(map(type, flat)) <= allowed:
        raise wrong(f"the input {tensor.name!r} holds something that is not {tensor.datatype}")
    try:
        if dtype.kind == "f":
            return _finite(np.array(flat, dtype=np.float64), dtype, tensor.name).reshape(tensor.shape)
        wide = np.array(flat, dtype=np.int64)
    except OverflowError:
        raise wrong(f"the input {tensor.name!r} holds a number beyond {tensor.datatype}") from None
    if dtype.kind in "iu" and wide.size and (wide.min() < np.iinfo(dtype).min or wide.max() > np.iinfo(dtype).max):
        raise wrong(f"the input {tensor.name!r} holds a number beyond {tensor.datatype}")
    return wide.astype(dtype).reshape(tensor.shape)


def _finite(wide: Array, dtype: np.dtype[Any], name: str) -> Array:
    if not np.isfinite(wide).all():
        raise wrong(f"the input {name!r} holds NaN or infinity")
    with np.errstate(over="ignore"):
        narrow: Array = wide.astype(dtype)
    if not np.isfinite(narrow).all():
        raise OverflowError
    return narrow


def _flat(tensor: InferInput) -> list[Any]:
    """The elements in row-major order, of flat or nested data. Raises `Problem`."""
    if any(size < 0 for size in tensor.shape):
        raise wrong(f"the shape of {tensor.name!r} has a negative size")
    values = tensor.data
    if values and isinstance(values[0], list):
        level: list[Any] = [values]
        for size in tensor.shape:
            if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
                raise wrong(f"the data of {tensor.name!r} is not nested as its shape {tensor.shape} says")
            level = list(chain.from_iterable(level))
        values = level
    if len(values) != math.prod(tensor.shape):
        raise wrong(f"{tensor.name!r} has {len(values)} elements, its shape {tensor.shape} takes {math.prod(tensor.shape)}")
    return values


def from_numpy(name: str, array: Array) -> OutputTensor:
    """A tensor of an answer; raises `KeyError` for a type that is not one of `DATATYPES`."""
    return OutputTensor(name=name, shape=array.shape, datatype=_NAMES[array.dtype], data=array.ravel().tolist())

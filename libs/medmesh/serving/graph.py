"""What an ONNX file may hold, read from its bytes before any runtime sees them.

A walk over the protobuf wire format (https://protobuf.dev/programming-guides/encoding/) along the messages of onnx.proto3
that can hold tensors and nodes: it needs no library, copies nothing and builds nothing of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator

from medmesh.errors import Problem

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""The operator sets of the ONNX standard."""

CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto", 22: "SparseTensorProto", 23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}  # fmt: skip
"""Message to the fields that lead on. Field numbers never change within a protobuf schema."""

_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_NODE_OP_TYPE, _NODE_DOMAIN = 4, 7
_FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 10
_MOST_DEEP = 32


def check_graph(data: bytes) -> None:
    """Raise `Problem` (`serving.graph`) for bytes that are no ONNX model, tensors in other files, and operators outside the
    standard that the model does not define itself as functions."""
    used: set[tuple[str, str]] = set()
    defined: set[tuple[str, str]] = set()
    graphs = 0
    todo: list[tuple[str, memoryview, int]] = [("ModelProto", memoryview(data), 0)]
    try:
        while todo:
            kind, view, depth = todo.pop()
            if depth > _MOST_DEEP:
                raise ValueError("nested too deeply")
            found: dict[int, str] = {}
            for number, value in fields(view):
                if isinstance(value, memoryview) and (child := CHILDREN[kind].get(number)):
                    todo.append((child, value, depth + 1))
                elif kind == "TensorProto" and (number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0)):
                    raise Problem("serving.graph", reason="it keeps tensors in other files")
                elif kind in ("NodeProto", "FunctionProto") and isinstance(value, memoryview) and number in (1, 4, 7, 10):
                    found[number] = str(value, "utf-8")
            graphs += kind == "GraphProto"
            if kind == "NodeProto":
                used.add((found.get(_NODE_DOMAIN, ""), found.get(_NODE_OP_TYPE, "")))
            elif kind == "FunctionProto":
                defined.add((found.get(_FUNCTION_DOMAIN, ""), found.get(_FUNCTION_NAME, "")))
    except (ValueError, IndexError):
        raise Problem("serving.graph", reason="it is not an ONNX model") from None
    if not graphs:
        raise Problem("serving.graph", reason="it is not an ONNX model")
    if foreign := sorted({domain for domain, name in used - defined if domain not in DOMAINS}):
        raise Problem("serving.graph", reason=f"it needs operators that are not of the ONNX standard ({', '.join(foreign)[:200]})")


def fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message: an integer for varints, bytes for everything else. Raises `ValueError`, `IndexError`."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(view, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("groups are not used by ONNX")
        if at + size > len(view):
            raise ValueError("cut short")
        yield number, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")

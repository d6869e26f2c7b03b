"""The Open Inference Protocol v2 in JSON: what goes in comes out, and every mistake is told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from medmesh.errors import Problem
from medmesh.serving.protocol import InferInput, TensorMetadata, from_numpy, read_input, read_request, to_numpy

EXPECTED = TensorMetadata(name="x", datatype="FP32", shape=(-1, 2, 2))


def request(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 2, 2], "datatype": "FP32", "data": [1, 2.5, -3, 4]} | changes
    return json.dumps({"id": "a", "inputs": [tensor]}).encode()


def read(body: bytes) -> Any:
    return read_input(read_request(body), EXPECTED, most=3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_])
def test_every_datatype_survives_the_journey_flat_and_nested(dtype: Any) -> None:
    array = np.array([[[0, 1], [200, 3]], [[4, 5], [6, 7]]]).astype(dtype)
    if array.dtype.kind == "f":
        array = array / 3
    told = from_numpy("y", array).model_dump()
    for data in (told["data"], array.tolist()):
        back = to_numpy(InferInput.model_validate_json(json.dumps({**told, "data": data, "a new field": 1})))
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_order_is_row_major_and_unknown_fields_are_ignored() -> None:
    np.testing.assert_array_equal(read(request(new={"a": 1})), np.array([[[1, 2.5], [-3, 4]]], np.float32))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": [1, 2, 3]}, "3 elements"),
        ({"data": [1] * 5}, "5 elements"),
        ({"data": []}, "0 elements"),
        ({"data": [[[1, 2], [3]]]}, "not nested"),
        ({"data": [[[1, 2], [3, 4]], []]}, "not nested"),
        ({"data": [[1, 2], 3, 4]}, "not nested"),
        ({"data": [1, [2], 3, 4]}, "not FP32"),
        ({"data": [[[[1], 2], [3, 4]]]}, "not FP32"),
        ({"shape": [2, 2]}, "takes the shape"),
        ({"shape": [1, 4, 1]}, "takes the shape"),
        ({"shape": [0, 2, 2], "data": []}, "takes the shape"),
        ({"shape": [-1, 2, 2]}, "takes the shape"),
        ({"shape": [True, 2, 2]}, "not a request"),
        ({"shape": ["1", 2, 2]}, "not a request"),
        ({"shape": [4, 2, 2], "data": [0.0] * 16}, "more than the 3"),
        ({"data": [1, 2, 3, float("nan")]}, "NaN or infinity"),
        ({"data": [1, 2, 3, float("-inf")]}, "NaN or infinity"),
        ({"data": [1, 2, 3, 1e39]}, "beyond FP32"),
        ({"data": [1, 2, 3, 10**400]}, "beyond FP32"),
        ({"data": [1, 2, 3, "4"]}, "not FP32"),
        ({"data": [1, 2, 3, None]}, "not FP32"),
        ({"data": [1, 2, 3, True]}, "not FP32"),
        ({"data": "1234"}, "not a request"),
        ({"datatype": "FP128"}, "not one of"),
        ({"datatype": "BYTES"}, "not one of"),
        ({"datatype": "FP64"}, "takes FP32, not FP64"),
        ({"name": "y"}, "no input 'y'"),
    ],
)
def test_every_mistake_is_told_and_none_of_its_values(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Problem) as caught:
        read(request(**changes))
    assert caught.value.code == "serving.tensor"
    assert caught.value.status == 400
    assert reason in str(caught.value.params["reason"])
    assert "1e+39" not in str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "value"), [("UINT8", 256), ("UINT8", -1), ("INT32", 2**31), ("INT64", 2**63), ("INT64", 1.0), ("BOOL", 1), ("UINT8", True)]
)
def test_numbers_never_wrap_around(datatype: str, value: Any) -> None:
    with pytest.raises(Problem) as caught:
        to_numpy(InferInput(name="x", shape=[1], datatype=datatype, data=[value]))
    assert caught.value.code == "serving.tensor"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"inputs": []}', b'{"inputs": [{}]}', b"\xff"])
def test_a_body_that_is_no_request_is_told(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        read_request(body)
    assert caught.value.code == "serving.tensor"


def test_an_input_given_twice_is_told() -> None:
    document = json.loads(request())
    document["inputs"] *= 2
    with pytest.raises(Problem, match="2 times"):
        read(json.dumps(document).encode())

"""Which ONNX files are taken, and what is computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data
from onnx.reference import ReferenceEvaluator
from tests.unit.serving.models import CLASSES, SIZE, graph, saved

from medmesh.errors import Problem
from medmesh.serving import graph as checked
from medmesh.serving.onnxruntime_session import Session


def images(number: int) -> Any:
    return np.random.default_rng(7).normal(size=(number, 1, SIZE, SIZE)).astype(np.float32)


def write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(Problem) as caught:
        Session(path, **options)
    assert caught.value.code == "serving.graph"
    return str(caught.value.params["reason"])


def test_logits_are_those_of_the_reference_implementation(tmp_path: Path) -> None:
    session = Session(saved(tmp_path))
    (expected,) = ReferenceEvaluator(graph()).run(None, {"image": images(5)})
    found = session.run(images(5))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (session.inputs[0].name, session.inputs[0].datatype, session.inputs[0].shape) == ("image", "FP32", (-1, 1, SIZE, SIZE))
    assert (session.outputs[0].name, session.outputs[0].shape) == ("logits", (-1, len(CLASSES)))
    assert session.batch is None
    assert Session(saved(tmp_path, batch=2)).batch == 2


def test_the_walk_knows_the_field_numbers_of_onnx() -> None:
    for message, children in checked.CHILDREN.items():
        found = {field.number: field.message_type.name for field in getattr(onnx, message).DESCRIPTOR.fields if field.message_type}
        leading = {number: name for number, name in found.items() if name in checked.CHILDREN}
        assert children == leading
    numbers = {
        (m, f): getattr(onnx, m).DESCRIPTOR.fields_by_name[f].number
        for m, f in [
            ("TensorProto", "external_data"), ("TensorProto", "data_location"), ("NodeProto", "op_type"), ("NodeProto", "domain"),
            ("FunctionProto", "name"), ("FunctionProto", "domain"),
        ]
    }  # fmt: skip
    assert list(numbers.values()) == [
        checked._TENSOR_EXTERNAL_DATA, checked._TENSOR_DATA_LOCATION, checked._NODE_OP_TYPE, checked._NODE_DOMAIN,
        checked._FUNCTION_NAME, checked._FUNCTION_DOMAIN,
    ]  # fmt: skip


def test_tensors_in_other_files_are_refused_wherever_they_hide(tmp_path: Path) -> None:
    outside = graph()
    convert_model_to_external_data(outside, location="passwd", size_threshold=0)
    assert "other files" in refusal(write(tmp_path, outside))

    hidden = graph()
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    inner = helper.make_graph([helper.make_node("Constant", [], ["x"], value=tensor)], "inner", [], [])
    hidden.graph.node.append(helper.make_node("If", ["c"], ["x"], then_branch=inner, else_branch=inner))
    assert "other files" in refusal(write(tmp_path, hidden))


def test_operators_outside_the_standard_are_refused_unless_the_model_defines_them(tmp_path: Path) -> None:
    foreign = graph()
    foreign.graph.node[1].domain = "com.example"
    foreign.opset_import.append(helper.make_opsetid("com.example", 1))
    assert "com.example" in refusal(write(tmp_path, foreign))

    body = helper.make_node("Relu", ["x"], ["y"])
    foreign.functions.append(helper.make_function("com.example", "Relu", ["x"], ["y"], [body], [helper.make_opsetid("", 17)]))
    np.testing.assert_allclose(Session(write(tmp_path, foreign)).run(images(2)), Session(saved(tmp_path)).run(images(2)), rtol=1e-5)

    unused = graph()
    unused.opset_import.append(helper.make_opsetid("com.example", 1))
    assert Session(write(tmp_path, unused)).run(images(1)).shape == (1, 3)


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    two = graph()
    two.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["n", 64]))
    assert "2 outputs" in refusal(write(tmp_path, two))
    assert Session(write(tmp_path, two), output="logits").run(images(1)).shape == (1, 3), "declared, one of several is taken"
    assert "0 outputs" not in refusal(write(tmp_path, two), output="nothing")

    more = graph()
    more.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 1]))
    assert "2 inputs" in refusal(write(tmp_path, more))

    double = graph()
    double.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert "refuses" in refusal(write(tmp_path, double))

    free = graph()
    free.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    assert "'image' is FP32 [?, 1, 6, ?]" in refusal(write(tmp_path, free))


@pytest.mark.parametrize("damage", [b"", b"\x80\x02}q\x00.", b"\xff" * 64, b"ORTM" * 16])
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(damage)
    assert "not an ONNX model" in refusal(path)
    path.write_bytes(graph().SerializeToString()[:-30])
    assert "not an ONNX model" in refusal(path)


def test_other_bytes_than_the_digest_says_are_not_even_looked_at(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        Session(saved(tmp_path), sha256="0" * 64)
    assert caught.value.code == "objects.digest"


def test_importing_the_serving_library_does_not_load_the_runtime() -> None:
    program = "import sys, medmesh.serving.app, medmesh.serving.repository; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

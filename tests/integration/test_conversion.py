"""Conversion: real packages in their sandbox, the parity gate, and the service on real servers."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from sqlalchemy import func, select
from tests.platform import Platform, platform

import medmesh
from medmesh.contracts.conversion import ConversionRefused, ConvertModel, ModelConverted
from medmesh.contracts.message import ObjectRef, OperationFinished, Query, Record
from medmesh.contracts.registry import Artefact, GetModel, Lineage, VersionView
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.learning import isolation, weights
from medmesh.learning.adapter import float_input
from medmesh.learning.host import worker
from medmesh.learning.package import Package, pack
from medmesh.serving.onnxruntime_session import Session
from medmesh.store.objects.directory import DirectoryStore
from medmesh.store.objects.port import fetch, file_digest
from medmesh_conversion.domain import Parity, Thresholds, compare, told, verdict
from medmesh_conversion.handlers import Attempt, attempt
from medmesh_conversion.ports import Ports
from medmesh_conversion.service import SERVICE
from medmesh_conversion.settings import Settings
from medmesh_conversion.tables import conversions

DEMO = Path(medmesh.__path__[0]) / "demo" / "package"
R = TypeVar("R", bound=Record)
LIMITS = Thresholds(max_abs=1e-3, agreement=1.0)

needs_isolation = pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")

# --- the gate ---------------------------------------------------------------------------------------------------------

LOGITS = np.array([[1.0, -2.0], [-0.5, 3.0], [0.0, 0.25]], dtype=np.float32)


def test_the_gate_tells_the_largest_differences_and_lets_equal_answers_pass() -> None:
    other = LOGITS.copy()
    other[1, 1] += 0.0005
    parity = compare(LOGITS, other, LOGITS)
    assert parity.max_abs == pytest.approx(0.0005, rel=1e-3)
    assert parity.batch_max_abs == pytest.approx(0.0005, rel=1e-3)
    assert parity.max_rel == pytest.approx(0.0005 / 3, rel=1e-3)
    assert parity.agreement == 1.0
    assert verdict(parity, LIMITS) is None


@pytest.mark.parametrize("where", ["batched", "single"])
@pytest.mark.parametrize("change", [0.0011, np.nan, np.inf])
def test_the_gate_refuses_one_wrong_logit_in_either_batch_size(where: str, change: float) -> None:
    wrong = LOGITS.copy()
    wrong[2, 1] += change
    answers = {"batched": LOGITS, "single": LOGITS, where: wrong}
    problem = verdict(compare(LOGITS, **answers), LIMITS)
    assert problem is not None
    assert problem.code == "conversion.parity"


def test_the_gate_refuses_another_class_even_where_the_difference_is_allowed() -> None:
    close = np.array([[0.0001, 0.0], [1.0, 0.0]], dtype=np.float32)
    swapped = np.array([[0.0, 0.0001], [1.0, 0.0]], dtype=np.float32)
    parity = compare(close, swapped, swapped)
    assert parity.agreement == 0.5
    problem = verdict(parity, LIMITS)
    assert problem is not None
    assert problem.params["agreement"] == "50.00"
    assert verdict(parity, Thresholds(max_abs=1e-3, agreement=0.5)) is None


def test_the_gate_refuses_two_batch_sizes_that_each_come_close_but_differ_from_each_other() -> None:
    parity = Parity(max_abs=0.0009, max_rel=0.1, batch_max_abs=0.0018, agreement=1.0, finite=True)
    assert verdict(parity, LIMITS) is not None


def test_what_a_problem_tells_of_a_package_fits_a_message() -> None:
    found = told(Problem("weights.foreign", tensor="a\x00\ud800" + "b" * 5000))
    assert found.params["tensor"].startswith("a??b")
    assert len(found.params["tensor"]) == 300


def test_the_service_starts_without_frameworks() -> None:
    program = "import sys, medmesh_conversion.service; print(*({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- one conversion, with packages that export by hand ----------------------------------------------------------------

LINEAR_TOML = """
[package]
name = "linear"
version = "1.0.0"
framework = "numpy"
entry = "model"

[data]
modality = "MR"
image_size = 8
classes = ["none", "tumour"]

[[tensors]]
name = "bias"
shape = [2]
dtype = "F32"

[[tensors]]
name = "weight"
shape = [64, 2]
dtype = "F32"
"""

LINEAR = """
import os
from pathlib import Path
import numpy as np
from medmesh.learning import numpy_adapter, weights as library

FOLDER = Path(__file__).resolve().parents[1]

def build():
    return {"weight": np.zeros((64, 2), np.float32), "bias": np.zeros(2, np.float32)}

def graph(weight, bias, opset=18, domain="", batch="batch", before=()):
    from onnx import TensorProto, helper, numpy_helper
    nodes = [
        *before,
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"], domain=domain),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes, "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(made, opset_imports=opsets, ir_version=10)

def export(self, model, example, path):
    weight, bias = model["weight"], model["bias"]
    BODY
    return {"exporter": "by hand", "odd\\x00": "x" * 5000}

numpy_adapter.NumpyAdapter.export_onnx = export
"""

HONEST = "path.write_bytes(graph(weight, bias).SerializeToString())"
EXTERNAL = """made = graph(weight, bias)
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    path.write_bytes(made.SerializeToString())"""
OF_THE_BATCH = """from onnx import helper, numpy_helper
    made = graph(weight, bias)
    made.graph.node[2].output[0] = "own"
    made.graph.node.append(helper.make_node("Shape", ["image"], ["size"], start=0, end=1))
    made.graph.node.append(helper.make_node("Cast", ["size"], ["count"], to=1))
    made.graph.node.append(helper.make_node("Div", ["count", "examples"], ["share"]))
    made.graph.node.append(helper.make_node("Mul", ["own", "share"], ["logits"]))
    made.graph.initializer.append(numpy_helper.from_array(np.full(1, 32, np.float32), "examples"))
    path.write_bytes(made.SerializeToString())"""
"""Right for a batch of all 32 examples, and for no other."""


def linear(folder: Path, body: str = HONEST, extra: str = "") -> Package:
    """A package of one layer without a framework, that writes its ONNX file by `body`."""
    source = folder / "linear"
    source.mkdir()
    (source / "medmesh.toml").write_text(LINEAR_TOML)
    (source / "model.py").write_text(LINEAR.replace("BODY", body) + extra)
    return pack(source)


def linear_weights(path: Path, **changed: np.ndarray) -> Path:
    generator = np.random.default_rng(3)
    tensors = {"weight": generator.normal(size=(64, 2)).astype(np.float32), "bias": np.array([0.5, -0.5], np.float32)}
    weights.save({**tensors, **changed}, path)
    return path


async def convert(folder: Path, package: Package, given: Path, **changed: Any) -> Attempt:
    """What the handler does between its database transactions."""
    values = {"nats_url": "", "identity": folder, "database_url": "", "trust": folder, "state": folder, **changed}

    async def nobody(query: Query, reply: type[R]) -> R:
        raise AssertionError("nobody is asked")

    ports = Ports(Settings.model_validate(values), DirectoryStore(folder / "kept", durable=False), nobody, folder)
    sha256, size = file_digest(given)
    work = folder / "work"
    work.mkdir(mode=0o700)
    return await attempt(package.archive, given, ObjectRef(sha256=sha256, bytes=size), work, ports)


@needs_isolation
async def test_a_framework_without_torch_converts_as_well(private: Path) -> None:
    made = await convert(private, linear(private), linear_weights(private / "w"))
    assert made.problem is None
    assert made.report["max_abs_diff"] < 1e-4
    assert made.report["opset"] == 18
    assert made.report["tools"]["exporter"] == "by hand"
    assert made.report["tools"]["odd?"] == "x" * 80
    assert hashlib.sha256(made.onnx.read_bytes()).hexdigest() == made.report["artefact"]


@needs_isolation
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("pass", "conversion.output"),
        ("os.symlink('/etc/hostname', path)", "conversion.output"),
        ("os.mkfifo(path)", "conversion.output"),
        ("path.write_bytes(bytes(70_000))", "conversion.output"),
        ("path.write_bytes(b'no model')", "serving.graph"),
        (EXTERNAL, "serving.graph"),
        ("path.write_bytes(graph(weight, bias, domain='com.microsoft').SerializeToString())", "serving.graph"),
        ("path.write_bytes(graph(weight, bias, batch=32).SerializeToString())", "serving.graph"),
        ("path.write_bytes(graph(weight[:, :1], bias[:1]).SerializeToString())", "serving.graph"),
        ("path.write_bytes(graph(weight, bias, opset=21).SerializeToString())", "conversion.opset"),
        ("os._exit(3)", "worker.crashed"),
        ("raise RuntimeError('patient zhang')", "worker.failed"),
    ],
)
async def test_a_file_that_is_no_safe_model_is_refused_before_it_is_compared(private: Path, body: str, code: str) -> None:
    with pytest.raises(Problem) as caught:
        await convert(private, linear(private, body), linear_weights(private / "w"), max_onnx_bytes=65_536)
    assert caught.value.code == code
    assert "zhang" not in str(caught.value)


@needs_isolation
@pytest.mark.parametrize(
    "body",
    [
        "path.write_bytes(graph(weight + np.float32(0.001), bias).SerializeToString())",
        "path.write_bytes(graph(weight, bias * np.float32('nan')).SerializeToString())",
        OF_THE_BATCH,
    ],
    ids=["other weights", "no numbers", "depends on the batch"],
)
async def test_a_file_that_answers_otherwise_is_refused_by_parity(private: Path, body: str) -> None:
    made = await convert(private, linear(private, body), linear_weights(private / "w"))
    assert made.problem is not None
    assert made.problem.code == "conversion.parity"
    assert made.report["max_abs_diff"] is None or made.report["max_abs_diff"] > 1e-3


@needs_isolation
async def test_a_package_does_not_choose_the_images_it_is_compared_on(private: Path) -> None:
    extra = """
real = library.save
library.save = lambda tensors, path: real({**tensors, "x": tensors["x"] * 0} if "x" in tensors else tensors, path)
"""
    with pytest.raises(Problem) as caught:
        await convert(private, linear(private, HONEST, extra), linear_weights(private / "w"))
    assert caught.value.code == "conversion.reference"


@needs_isolation
async def test_a_package_cannot_make_us_write_elsewhere(private: Path) -> None:
    victim = private / "victim"
    victim.write_text("untouched")
    extra = f"\nos.symlink({str(victim)!r}, FOLDER / 'weights.safetensors')\n"
    with pytest.raises(Problem) as caught:
        await convert(private, linear(private, HONEST, extra), linear_weights(private / "w"))
    assert caught.value.code == "conversion.output"
    assert victim.read_text() == "untouched"


@needs_isolation
async def test_a_file_that_takes_too_much_to_run_ends_with_a_clear_problem(private: Path) -> None:
    with pytest.raises(Problem) as caught:
        await convert(private, linear(private), linear_weights(private / "w"), measure_seconds=0.05)
    assert caught.value.code == "conversion.runtime"


# --- the service ------------------------------------------------------------------------------------------------------


@dataclass
class Registry:
    """Answers `GetModel` in the registry's place."""

    p: Platform
    versions: dict[tuple[str, int], VersionView] = field(default_factory=dict)

    async def start(self) -> None:
        """Answer until the platform ends."""
        await self.p.bus.serve(GetModel.subject(), self._answer, queue="registry")

    async def _answer(self, body: bytes) -> bytes:
        import json

        asked = json.loads(body)["data"]
        view = self.versions.get((asked["model"], asked["version"]))
        if view is None:
            return b"!" + json.dumps(Problem("request.not_found", kind="model version", id=asked["model"]).document()).encode()
        return view.model_dump_json().encode()

    async def add(self, model: str, package: Package, given: Path | None) -> VersionView:
        """Register version 1."""
        kept = self.p.stores.kept
        files: tuple[Artefact, ...] = ()
        if given is not None:
            ref = await kept.put_file(given, file_digest(given)[0])
            files = (Artefact(format="safetensors", object=ref),)
        code = await kept.put(package.archive)
        view = VersionView(model=model, version=1, state="registered", artefacts=files, package=code, lineage=Lineage(), releases=())
        self.versions[model, 1] = view
        return view

    async def convert(self, model: str) -> OperationFinished:
        """Ask for a conversion as a researcher."""
        token = self.p.person("wang", "researcher")
        return await self.p.send(ConvertModel(model=model, version=1), token, timeout=60)


@pytest.fixture
async def registry(servers: RunningServers, private: Path) -> AsyncIterator[Registry]:
    async with platform(servers, private, SERVICE) as p:
        made = Registry(p)
        await made.start()
        yield made


@pytest.fixture(scope="module")
def demo_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh seeded weights of the demonstration package."""
    folder = tmp_path_factory.mktemp("weights")

    async def draw() -> Path:
        async with worker(pack(DEMO), folder / "work") as w:
            await w.call("initial", seed=11, out=str(w.folder / "w0"))
            return Path(shutil.copyfile(w.folder / "w0", folder / "w0"))

    return asyncio.run(draw())


@needs_isolation
async def test_a_torch_model_converts_once_and_answers_as_the_model_does(registry: Registry, demo_weights: Path, private: Path) -> None:
    p, package = registry.p, pack(DEMO)
    view = await registry.add("mri", package, demo_weights)
    done = await registry.convert("mri")
    assert done.succeeded, done.problem
    report = done.result
    assert report is not None
    assert report["max_abs_diff"] < 1e-4
    assert report["argmax_agreement"] == 1.0
    assert report["examples"] == 32
    assert report["opset"] == 18
    assert {"torch", "onnx", "onnxruntime"} <= set(report["tools"])
    assert report["latency_ms_batch_1"] > 0
    assert report["latency_ms_batch_n"] > 0

    made = (await p.wait(ModelConverted)).data
    assert made.source == view.artefacts[0].object
    data = package.manifest.images()
    assert data.pipeline is not None, "who uses the model is told what the images go through"
    assert made.preprocess == {"size": 64, "channels": 1, "scale": "pipeline", "data": data.model_dump(mode="json")}
    assert made.classes == ("none", "tumour")
    assert made.max_abs_diff == report["max_abs_diff"]
    x = np.random.default_rng(99).integers(0, 256, (7, 1, 64, 64), dtype=np.uint8)
    answered = Session(await fetch(p.stores.kept, made.artefact, p.folder / "made.onnx"), sha256=made.artefact.sha256).run(float_input(x))
    np.testing.assert_allclose(answered, _model(demo_weights, x), atol=1e-4)

    (record,) = [r for r in await p.audited("conversion") if r["sub"] == "model.convert"]
    assert record["out"] == 0
    assert record["agents"][0]["who"] == "person:wang"
    digests = {entity["digest"] for entity in record["entities"]}
    assert {made.source.sha256, made.artefact.sha256, package.digest} <= digests

    # Without the package nothing can be converted: what answers now is the report that was kept.
    await p.stores.kept.delete(package.digest)
    again = await registry.convert("mri")
    assert again.succeeded, again.problem
    assert again.result == report
    assert len(p.emitted(ModelConverted)) == 1
    async with p.runtimes["conversion"].unit() as uow:
        counted = await uow.first(select(func.count()).select_from(conversions))
    assert counted is not None
    assert counted[0] == 1


def _model(given: Path, x: np.ndarray) -> np.ndarray:
    """The demonstration package's own logits, computed here."""
    import importlib.util

    from medmesh.learning.torch_adapter import ADAPTER

    spec = importlib.util.spec_from_file_location("demo_model", DEMO / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = ADAPTER.build(module, {"width": 16, "classes": 2}, 0)
    ADAPTER.assign(model, weights.load(given))
    return ADAPTER.logits(model, x)


@needs_isolation
async def test_a_model_that_is_noisy_unless_it_is_exported_is_refused_by_parity(
    registry: Registry, demo_weights: Path, private: Path
) -> None:
    p, source = registry.p, private / "noisy"
    shutil.copytree(DEMO, source, ignore=shutil.ignore_patterns("__pycache__"))
    code = (source / "model.py").read_text().replace("nn.Sequential(", "Noisy(")
    noisy = """

class Noisy(nn.Sequential):
    def forward(self, x):
        y = super().forward(x)
        return y if torch.compiler.is_compiling() else y + 0.01 * torch.randn_like(y)
"""
    (source / "model.py").write_text(code + noisy)
    await registry.add("noisy", pack(source), demo_weights)
    done = await registry.convert("noisy")
    assert not done.succeeded
    assert done.problem is not None
    assert done.problem["code"] == "conversion.parity"
    told = (await p.wait(ConversionRefused)).data
    assert (told.model, told.code) == ("noisy", "conversion.parity")
    assert told.report["max_abs_diff"] > 1e-3
    assert told.report["thresholds"] == {"max_abs": 1e-3, "agreement": 1.0}
    assert p.emitted(ModelConverted) == []
    assert await p.stores.kept.size(told.report["artefact"]) is None
    refused = [r for r in await p.audited("conversion") if r["out"] == 8]
    assert [r["why"] for r in refused] == ["conversion.parity"]


@needs_isolation
async def test_weights_that_are_not_the_packages_and_packages_that_crash_are_refused_with_their_reason(
    registry: Registry, private: Path
) -> None:
    p = registry.p
    odd = linear_weights(private / "odd", bias=np.zeros(3, np.float32))
    package = linear(private)
    await registry.add("odd", package, odd)
    done = await registry.convert("odd")
    assert done.problem is not None
    assert done.problem["code"] == "weights.signature"
    assert done.problem["params"]["tensor"] == "bias"

    (private / "linear" / "model.py").write_text("raise SystemExit(1)")
    await registry.add("crash", pack(private / "linear"), linear_weights(private / "good"))
    done = await registry.convert("crash")
    assert done.problem is not None
    assert done.problem["code"] == "worker.failed"
    assert done.problem["params"] == {"error": "SystemExit", "at": "model.py:1"}

    await p.wait(ConversionRefused, lambda found: found.data.model == "crash")
    told = {found.data.model: found.data.code for found in p.emitted(ConversionRefused)}
    assert told == {"odd": "weights.signature", "crash": "worker.failed"}
    assert {r["why"] for r in await p.audited("conversion") if r["out"] == 8} == {"weights.signature", "worker.failed"}

    # The same command delivered again is not told again; concurrency is one, so what follows is answered after it.
    again = ConvertModel(model="crash", version=1)
    token = p.person("wang", "researcher")
    await p.send(again, token, id="op-1")
    await p.send(again, token, id="op-1")
    assert (await registry.convert("unheard-of")).problem is not None
    assert [found.data.model for found in p.emitted(ConversionRefused)] == ["odd", "crash", "crash"]

    # A mended version goes through: a refusal is no verdict for ever.
    await registry.add("odd", package, private / "good")
    assert (await registry.convert("odd")).succeeded


async def test_what_cannot_be_converted_is_answered_and_nobody_else_may_ask(registry: Registry, private: Path) -> None:
    p = registry.p
    done = await registry.convert("unheard-of")
    assert done.problem is not None
    assert done.problem["code"] == "request.not_found"
    await registry.add("bare", linear(private), None)
    done = await registry.convert("bare")
    assert done.problem is not None
    assert done.problem["code"] == "conversion.no_weights"
    done = await p.send(ConvertModel(model="bare", version=1), p.person("li", "clinician"))
    assert done.problem is not None
    assert done.problem["code"] == "access.denied"
    assert p.emitted(ConversionRefused) == []

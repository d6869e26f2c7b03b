"""Tiny classifiers and the releases around them."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.rosters import decision, roster_of

from medmesh.canonical import canonical
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.registry import Lineage, Manifest, ModelReleased
from medmesh.security import approvals
from medmesh.security.keys import Identity
from medmesh.security.signing import Signer
from medmesh.security.tokens import TrustBundle

SIZE, CLASSES = 6, ("benign", "malignant", "uncertain")


def graph(*, batch: int | str = "n", seed: int = 0, output: str = "logits", bias: float | None = None) -> onnx.ModelProto:
    """Convolution, ReLU, flatten and a linear layer: float32 [batch, 1, 6, 6] to logits [batch, 3]. A `bias` of NaN makes it sick."""
    random = np.random.default_rng(seed)
    weights = {
        "kernel": random.normal(size=(4, 1, 3, 3)),
        "matrix": random.normal(size=(4 * 16, len(CLASSES))),
        "bias": random.normal(size=len(CLASSES)) if bias is None else np.full(len(CLASSES), bias),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "matrix", "bias"], [output]),
    ]
    made = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, len(CLASSES)])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(folder: Path, name: str = "model.onnx", **options: Any) -> Path:
    """The classifier as a file."""
    path = folder / name
    path.write_bytes(graph(**options).SerializeToString())
    return path


def manifest(path: Path, version: int = 1, **changes: Any) -> Manifest:
    """The manifest of a file."""
    data = path.read_bytes()
    reference = ObjectRef(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    values: dict[str, Any] = {
        "model": "lung-nodule",
        "version": version,
        "onnx": reference,
        "package": reference,
        "preprocess": {},
        "classes": CLASSES,
        "lineage": Lineage(),
        "hospitals": ("renji", "huashan"),
    }
    return Manifest(**values | changes)


class Authorities:
    """The two keys a release needs, and the bundle that believes them."""

    def __init__(self, release: Identity, governance: Identity) -> None:
        self.release, self.governance = release, governance
        self.approver = Signer.create("person:wu@platform")
        self.roster = roster_of(self.approver)
        self.trust = TrustBundle("medmesh", services={"governance": governance.public}, release_key=release.public)

    @classmethod
    def create(cls, folder: Path) -> Authorities:
        """Keys of a test's own."""
        return cls(Identity.create(folder / "release.nk"), Identity.create(folder / "governance.nk"))

    def approval(self, body: bytes, release: str, *, action: str = "model.release", minutes: float = 60) -> str:
        """Governance's token over what an approver signed of the digest of the bytes."""
        expires = datetime.now(UTC) + timedelta(minutes=minutes)
        digest = hashlib.sha256(body).hexdigest()
        about = {"approval": "approval-1", "action": action, "target": release, "digest": digest, "requester": "person:li@platform"}
        signed = decision(self.approver, **about, made=expires - timedelta(minutes=60), expires=expires)
        return approvals.issue(self.governance, **about, statements=[signed], expires=expires)

    def released(self, signed: Manifest, *, release: str = "release-1", body: bytes | None = None, **changes: Any) -> ModelReleased:
        """The event, as the registry publishes it."""
        body = canonical(signed.model_dump(mode="json")) if body is None else body
        values: dict[str, Any] = {
            "release": release,
            "model": signed.model,
            "version": signed.version,
            "hospitals": signed.hospitals,
            "manifest": base64.b64encode(body).decode(),
            "signature": base64.b64encode(self.release.sign(body)).decode(),
            "approval": self.approval(body, release),
        }
        return ModelReleased(**values | changes)

"""Training packages for tests: `tiny` on numpy, and variations of it that misbehave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmesh.learning.layers import Layer
from medmesh.learning.package import Package, pack
from tests.tutorials import blocks

TINY = Path(__file__).parent / "tiny"
TWINS = Path(__file__).parent / "twins"
"""One model for three frameworks, one of which is written by hand."""


def tiny(folder: Path, code: str = "") -> Package:
    """The tiny package, with `code` added to its module."""
    target = folder / "package-source"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(TINY, target, ignore=shutil.ignore_patterns("__pycache__"))
    if code:
        with (target / "model.py").open("a") as file:
            file.write(code)
    return pack(target)


def calm_twins(folder: Path) -> Package:
    """The twins without batch normalisation, which keeps statistics of patients."""
    target = folder / "package-calm"
    shutil.copytree(TWINS, target, ignore=shutil.ignore_patterns("__pycache__"))
    for module, layer in {"model.py": "nn.BatchNorm2d(width)", "model_ms.py": "nn.BatchNorm2d(width, eps=1e-5, momentum=0.9)"}.items():
        text = (target / module).read_text(encoding="utf-8")
        assert layer in text
        (target / module).write_text(text.replace(layer, "nn.Identity()"), encoding="utf-8")
    head, *tensors = (target / "medmesh.toml").read_text(encoding="utf-8").split("[[tensors]]")
    kept = [one for one in tensors if 'name = "1.' not in one]
    (target / "medmesh.toml").write_text("[[tensors]]".join([head, *kept]), encoding="utf-8")
    return pack(target)


def of_layers(folder: Path, layers: Sequence[Layer], data: str, shape: Sequence[int]) -> Package:
    """A package without code, of these layers, for two classes of samples of this shape, which `data` says in TOML."""
    from medmesh.learning.torch_layers import build

    lines = [f"[package]\nname = 'net'\nversion = '1.0.0'\nframework = 'torch'\n[data]\nclasses = ['none', 'tumour']\n{data}"]
    lines += ["[[layers]]\n" + "".join(f"{n} = {json.dumps(v)}\n" for n, v in one.model_dump(exclude_none=True).items()) for one in layers]
    lines += listed(build(layers, shape, 2).state_dict())
    folder.mkdir()
    (folder / "medmesh.toml").write_text("\n".join(lines), encoding="utf-8")
    return pack(folder)


def listed(tensors: Mapping[str, Any]) -> list[str]:
    """A PyTorch model's tensors as a manifest lists them."""
    kinds = {"torch.float32": "F32", "torch.int64": "I64"}
    about = sorted(tensors.items())
    return [f"[[tensors]]\nname = '{name}'\nshape = {list(one.shape)}\ndtype = '{kinds[str(one.dtype)]}'\n" for name, one in about]


def of_tutorial(document: Path, folder: Path) -> Package:
    """The package that the tutorial of the MRI set writes, by its own listing of tensors."""
    folder.mkdir()
    for _, name, text in blocks(document):
        if name and name.startswith("mri/"):
            (folder / name.removeprefix("mri/")).write_text(text, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec((folder / "model.py").read_text(encoding="utf-8"), scope)
    with (folder / "medmesh.toml").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(listed(scope["build"](8, 2).state_dict())))
    return pack(folder)


PIPELINE = """
[data.pipeline]
name = "mri-8"
[[data.pipeline.steps]]
step = "window"
version = 1
center = 127.5
width = 255
[[data.pipeline.steps]]
step = "scale"
version = 1
shape = [8, 8]
"""


def piped(folder: Path, pipeline: str = PIPELINE) -> Path:
    """The folder of the tiny package, its images going through a pipeline."""
    target = folder / "package-piped"
    shutil.copytree(TINY, target, ignore=shutil.ignore_patterns("__pycache__"))
    manifest = target / "medmesh.toml"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace("\n[hyper]", pipeline + "\n[hyper]"), encoding="utf-8")
    return target


HEADS = """
[data]
kind = "volumes"
volume = "CT"
size = [6, 8, 10]
classes = ["none", "bleeding"]

[data.pipeline]
"""
"""What a package says of its data that trains on volumes of the head; its pipeline's name and steps follow."""

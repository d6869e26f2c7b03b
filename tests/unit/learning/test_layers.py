"""A model of declared layers trains as one of code does, and what does not fit is said with its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.packages import TINY, of_layers

from medmesh.contracts.training import Rehearsing
from medmesh.demo.practice import HEART
from medmesh.errors import Problem
from medmesh.federated.rehearsal import rehearse
from medmesh.learning import isolation, numpy_layers
from medmesh.learning.host import worker
from medmesh.learning.layers import Layer
from medmesh.learning.package import pack, read_manifest

torch = pytest.importorskip("torch")
NET = (
    Layer(kind="convolution", out=4, kernel=3),
    Layer(kind="group_norm", groups=2),
    Layer(kind="relu"),
    Layer(kind="max_pool", kernel=2),
    Layer(kind="average"),
    Layer(kind="linear", out=2),
)


def test_layers_are_those_of_the_same_names_in_pytorch() -> None:
    from torch import nn

    from medmesh.learning.torch_layers import build

    torch.manual_seed(1)
    made = build(NET, (1, 8, 8), 2)
    torch.manual_seed(1)
    by_hand = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 2),
    )
    assert made.state_dict().keys() == by_hand.state_dict().keys()
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(made(x), by_hand(x))


WRONG = {
    "linear on an image": (NET[:1] + NET[5:], "after flatten or average"),
    "another number of classes": ((*NET[:5], Layer(kind="linear", out=3)), "2 classes"),
    "groups": ((NET[0], Layer(kind="group_norm", groups=3), *NET[4:]), "do not make 3 groups"),
    "an image after flattening": ((NET[4], NET[0]), "needs an image"),
    "pooled to nothing": ((Layer(kind="max_pool", kernel=9), *NET[4:]), "smaller than 9"),
}


@pytest.mark.parametrize("what", WRONG)
def test_layers_that_do_not_fit_are_named(what: str) -> None:
    from medmesh.learning.torch_layers import build

    layers, said = WRONG[what]
    with pytest.raises(Problem, match=said) as caught:
        build(layers, (1, 8, 8), 2)
    assert caught.value.code == "package.layers"


def test_numpy_knows_one_linear_layer() -> None:
    made = numpy_layers.build([Layer(kind="linear", out=2)], (1, 8, 8), 2)
    assert {name: array.shape for name, array in made.items()} == {"weight": (64, 2), "bias": (2,)}
    with pytest.raises(Problem):
        numpy_layers.build(NET, (1, 8, 8), 2)


def manifest(text: str) -> str:
    return (TINY / "medmesh.toml").read_text().replace('entry = "model"\n', text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "entry module"),
        ('entry = "model"\n[[layers]]\nkind = "relu"\n', "not both"),
        ('[[layers]]\nkind = "linear"\nout = 2\n', "hyper-parameters"),
        ('[[layers]]\nkind = "linear"\n', "needs out"),
        ('[[layers]]\nkind = "convolution"\nout = 2\nkernel = 4\n', "odd"),
    ],
)
def test_a_manifest_has_code_or_layers(text: str, said: str) -> None:
    with pytest.raises(Problem, match=said):
        read_manifest(manifest(text))


def test_a_package_of_layers_brings_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "medmesh.toml").write_text((HEART / "medmesh.toml").read_text())
    assert not pack(tmp_path).manifest.custom
    (tmp_path / "model.py").write_text("")
    with pytest.raises(Problem, match="no files beside"):
        pack(tmp_path)


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
async def test_packages_of_layers_run_in_the_sandbox(private: Path) -> None:
    declared = of_layers(private / "declared", NET, "modality = 'MR'\nimage_size = 8\n", (1, 8, 8))
    for number, package in enumerate((declared, pack(HEART))):
        room = private / f"room-{number}"
        room.mkdir(mode=0o711)
        report = await rehearse(package, Rehearsing(batch_size=8), worker, room)
        assert report.passed, report.stages[-1]
    assert np.isfinite(report.memory_mib)

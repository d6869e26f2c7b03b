"""Every model that medmesh ships for several frameworks is one model: with the same weights, statistics of batch normalisation included,
it gives the same answers with each of them, and so does every kind of declared layer. PyTorch is the oracle."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.contract.test_adapters import FORWARD, TRAINED, answers, apart, trained
from tests.frameworks import INTERPRETERS
from tests.packages import TWINS, of_layers, of_tutorial
from tests.tutorials import REPO, blocks

from medmesh.demo.stage import PACKAGE
from medmesh.learning import isolation, weights
from medmesh.learning.host import Worker, worker
from medmesh.learning.layers import _NEEDS, Layer
from medmesh.learning.package import Package, pack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("frameworks"),
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
TUTORIALS = REPO / "docs" / "tutorial"
IMAGES = (  # of 11 x 11, which no pooling divides
    Layer(kind="convolution", out=6, kernel=3),
    Layer(kind="group_norm", groups=3),
    Layer(kind="relu"),
    Layer(kind="max_pool", kernel=2),
    Layer(kind="convolution", out=8, kernel=5),
    Layer(kind="relu"),
    Layer(kind="average"),
    Layer(kind="linear", out=2),
)
FLAT = (
    Layer(kind="convolution", out=4, kernel=1),
    Layer(kind="max_pool", kernel=3),
    Layer(kind="flatten"),
    Layer(kind="linear", out=5),
    Layer(kind="relu"),
    Layer(kind="linear", out=2),
)
ROWS = (Layer(kind="linear", out=4), Layer(kind="relu"), Layer(kind="linear", out=2))
OF_IMAGES = "modality = 'MR'\nimage_size = 11\nchannels = 2\n"
FEATURES = "".join(f"[[data.features]]\nname = 'f{n}'\nkind = 'number'\nlow = '0'\nhigh = '9'\n" for n in range(5))
OF_ROWS = f"kind = 'table'\ntable = 't'\n{FEATURES}"
Made = Callable[[Path], Package]
PACKAGES: dict[str, Made] = {
    "the demonstration": lambda _: pack(PACKAGE),
    "the tutorial of the MRI set": lambda folder: of_tutorial(TUTORIALS / "mri.md", folder / "mri"),
    "the tests' own": lambda _: pack(TWINS),
    "declared layers on images": lambda folder: of_layers(folder / "net", IMAGES, OF_IMAGES, (2, 11, 11)),
    "declared layers, flattened": lambda folder: of_layers(folder / "net", FLAT, OF_IMAGES, (2, 11, 11)),
    "declared layers on rows": lambda folder: of_layers(folder / "net", ROWS, OF_ROWS, (5,)),
}


def samples(package: Package, folder: Path) -> Path:
    dice, data = np.random.default_rng(5), package.manifest.data
    x = dice.normal(0, 1, (24, *data.shape)) if data.kind == "table" else dice.integers(0, 256, (24, *data.shape))
    x = x.astype(np.float32 if data.kind == "table" else np.uint8)
    weights.save({"x": x, "y": dice.integers(0, 2, 24)}, folder / "data")
    return folder / "data"


async def fresh(w: Worker, folder: Path) -> Path:
    """First weights in which nothing is one of the usual zeros and ones: neither what scales and shifts nor statistics."""
    await w.call("initial", seed=3, out=str(w.folder / "initial"))
    made, dice = weights.load(w.folder / "initial"), np.random.default_rng(6)
    for name, array in made.items():
        if array.dtype.kind == "f" and array.ndim == 1:
            made[name] = (array + dice.uniform(0.1, 0.9, array.shape)).astype(np.float32)
    weights.save(made, folder / "base")
    return folder / "base"


@pytest.mark.parametrize("which", PACKAGES)
async def test_a_model_gives_the_same_answers_with_each_of_its_frameworks(which: str, private: Path) -> None:
    package = PACKAGES[which](private)
    data, found, learned = samples(package, private), {}, {}
    assert len(package.manifest.entries) > 1
    for framework in package.manifest.entries:  # PyTorch is the first
        async with worker(package, private / framework, framework=framework, python=INTERPRETERS[framework]()) as w:
            base = private / "base" if found else await fresh(w, private)
            found[framework] = await answers(w, base, data)
            if not package.manifest.custom:  # no code of anybody draws by chance
                learned[framework] = weights.load(await trained(w, base, data, steps=4))
    wanted = found.pop("torch")
    assert np.ptp(wanted) > 0.01, "a model that says nothing would agree with everything"
    for answered in found.values():
        assert np.abs(answered - wanted).max() <= FORWARD
    if learned:
        assert apart(weights.load(base), learned["torch"]) > 100 * TRAINED
        assert apart(learned["torch"], learned["mindspore"]) <= TRAINED


def test_every_model_of_several_frameworks_and_every_kind_of_layer_is_compared(private: Path) -> None:
    texts = {path.parent.name: path.read_text(encoding="utf-8") for path in (REPO / "libs").rglob("medmesh.toml")}
    for document in TUTORIALS.glob("*.md"):
        texts |= {f"{document.name}: {name}": text for _, name, text in blocks(document) if name.endswith("medmesh.toml")}
    assert {name for name, text in texts.items() if tomllib.loads(text).get("variants")} == {"package", "mri.md: mri/medmesh.toml"}
    assert PACKAGES["the demonstration"](private).manifest.variants
    assert {layer.kind for layer in (*IMAGES, *FLAT, *ROWS)} == set(_NEEDS)

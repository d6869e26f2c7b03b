"""The parity gate and what goes into its report, as functions of values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medmesh.contracts.data import ItemSchema
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.registry import VersionView
from medmesh.errors import Problem

if TYPE_CHECKING:
    import numpy as np

_TINY = 1e-6
"""Keeps the relative difference finite where a logit is zero."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """`max_abs` in units of the logits, `agreement` a share of the examples."""

    max_abs: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Parity:
    """How a converted file compares with the model: the worse of both batch sizes. Differences are NaN unless `finite`."""

    max_abs: float
    max_rel: float
    batch_max_abs: float
    """Between the file's own answers in one batch and one by one."""
    agreement: float
    finite: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """What running the converted file said. `batched` and `single` are float32 [examples, classes]; latencies are medians in ms."""

    batched: np.ndarray
    single: np.ndarray
    opset: int
    latency_single_ms: float
    latency_batched_ms: float
    tools: dict[str, str]


def inputs(seed: int, examples: int, data: ItemSchema) -> np.ndarray:
    """The samples both sides answer: uint8 [examples, *shape], for 0..1, the same as a worker's `export` draws from the seed."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, (examples, *data.shape), dtype=np.uint8)


def seed_of(sha256: str) -> int:
    """The seed for weights of this digest, so that anybody can repeat the comparison; below 2^48."""
    return int(sha256[:12], 16)


def compare(reference: np.ndarray, batched: np.ndarray, single: np.ndarray) -> Parity:
    """Compare the model's logits with the file's, all float32 [examples, classes], computed in one batch and one by one."""
    import numpy as np

    if not reference.shape == batched.shape == single.shape:
        raise ValueError("logits of other shapes")
    wanted, *found = (array.astype(np.float64) for array in (reference, batched, single))
    agreement = min(float((array.argmax(axis=1) == wanted.argmax(axis=1)).mean()) for array in found)
    if not all(np.isfinite(array).all() for array in (wanted, *found)):
        return Parity(math.nan, math.nan, math.nan, agreement, finite=False)
    differences = np.stack([np.abs(array - wanted) for array in found])
    return Parity(
        max_abs=float(differences.max()),
        max_rel=float((differences / (np.abs(wanted) + _TINY)).max()),
        batch_max_abs=float(np.abs(found[0] - found[1]).max()),
        agreement=agreement,
        finite=True,
    )


def verdict(parity: Parity, thresholds: Thresholds) -> Problem | None:
    """None when the file may stand for the model, otherwise why not."""
    largest = max(parity.max_abs, parity.batch_max_abs) if parity.finite else math.nan
    # Written so that NaN refuses: no comparison with NaN holds.
    if largest <= thresholds.max_abs and parity.agreement >= thresholds.agreement:
        return None
    return Problem(
        "conversion.parity",
        max_abs=f"{largest:.3g}",
        limit=f"{thresholds.max_abs:.3g}",
        agreement=f"{100 * parity.agreement:.2f}",
        needed=f"{100 * thresholds.agreement:.2f}",
    )


def report(parity: Parity, thresholds: Thresholds, measured: Measured, *, seed: int, artefact: str, tools: object) -> dict[str, Any]:
    """The parity report; a difference that is no number is null, because JSON has no NaN."""
    return {
        "max_abs_diff": _number(parity.max_abs),
        "max_rel_diff": _number(parity.max_rel),
        "batch_max_abs_diff": _number(parity.batch_max_abs),
        "argmax_agreement": parity.agreement,
        "finite": parity.finite,
        "examples": len(measured.batched),
        "seed": seed,
        "opset": measured.opset,
        "latency_ms_batch_1": measured.latency_single_ms,
        "latency_ms_batch_n": measured.latency_batched_ms,
        "artefact": artefact,
        "thresholds": {"max_abs": thresholds.max_abs, "agreement": thresholds.agreement},
        "tools": {**plain(tools), **plain(measured.tools)},
    }


def plain(tools: object) -> dict[str, str]:
    """The tool versions a worker named, cut to what a report may hold: a package could have written anything there."""
    if not isinstance(tools, dict):
        return {}
    return {_printable(name, 40): _printable(version, 80) for name, version in list(tools.items())[:10]}


def told(problem: Problem) -> Problem:
    """The same problem with parameters that fit a message and a database: names of tensors and files are a package's own."""
    return Problem(
        problem.code,
        **{name: value if isinstance(value, bool | int) else _printable(value, 300) for name, value in problem.params.items()},
    )


def preprocess(data: ItemSchema) -> dict[str, Any]:
    """What a reader of the file must do to an image: bring it to `size`, `channels` and the range 0..1; where there is `data`,
    what that says instead."""
    simple = {"size": data.image_size, "channels": data.channels, "scale": "0..1"} if data.kind == "images" else {}
    if data.kind == "images" and data.pipeline is None:
        return simple
    return {**simple, "scale": "schema" if data.pipeline is None else "pipeline", "data": data.model_dump(mode="json")}


def weights_of(view: VersionView) -> ObjectRef:
    """The version's safetensors file. Raises `Problem` (`conversion.no_weights`)."""
    for artefact in view.artefacts:
        if artefact.format == "safetensors":
            return artefact.object
    raise Problem("conversion.no_weights", model=view.model, version=view.version)


def _printable(value: object, most: int) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(value)[:most])


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

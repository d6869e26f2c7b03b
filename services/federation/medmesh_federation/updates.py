"""What a hospital may hand in: its model or vector against the plan, and what it says beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmesh.contracts.federation import RoundKind, Work
from medmesh.contracts.plan import Plan, TensorSignature
from medmesh.errors import Problem

BESIDE = 2**20
"""Bytes for a file's header, at least."""
MOST_COUNTED = 2**53
"""Samples that a hospital may say it has: every number up to it is the same in JSON, and in the database."""


def encoded(plan: Plan, kind: RoundKind | str) -> bool:
    """Whether updates of a round travel as differences from its model, in a plan's codec."""
    return plan.codec != "none" and RoundKind(kind) is RoundKind.TRAIN


def check(path: Path, plan: Plan, current: Any, base: Path | None) -> str | None:
    """The update's fingerprint, where the plan has updates compared. What could not be aggregated is refused here, where its hospital hears
    of it: of an encoded one what it stands for is looked at, beside the round's model `base` (None: that is lost, and made again). Raises
    `Problem` (`weights.*`, `federation.update`)."""
    from medmesh.federated.aggregation import algorithm_of, upload_signature
    from medmesh.federated.codecs import check_decoded
    from medmesh.federated.screening import fingerprint
    from medmesh.federated.streams import Reader
    from medmesh.learning import weights

    training, signature = current.kind == RoundKind.TRAIN, _signature(plan, current)
    if encoded(plan, current.kind) and base is not None:
        weights.check(path, signature)
        check_decoded(plan.codec, upload_signature(plan), base, path, share=plan.codec_share)
    else:
        weights.check_finite(path, signature=signature)
    algorithm = algorithm_of(plan)
    if algorithm.NUMBERS and training:
        with Reader(path) as file:
            algorithm.check_update(algorithm.numbers(file))
    return fingerprint(path) if plan.screening is not None and training else None


def most(plan: Plan, current: Any) -> int:
    """Bytes of the largest file that is looked at: one that is somewhat too large is told which of its tensors is at fault."""
    from medmesh.federated.codecs import wire_bytes

    return 2 * wire_bytes(_signature(plan, current)) + BESIDE


def _signature(plan: Plan, current: Any) -> tuple[TensorSignature, ...]:
    from medmesh.federated.codecs import sent

    kind = RoundKind(current.kind)
    signature = plan.signature if kind is RoundKind.BASELINE else sent(plan)  # alone: a whole model
    if plan.secure is not None:
        from medmesh.federated.secure import counts, vectors

        signature = () if kind is RoundKind.EVALUATE else signature
        signature = vectors.signature(signature, counts.width(plan, kind, current.round, len(current.models)), plan.secure.ring)
    return tuple(signature)


def bounded(metrics: dict[str, float]) -> dict[str, float]:
    """At most eight finite numbers under short names."""
    if len(metrics) > 8 or any(
        len(name) > 40 or not name.isprintable() or value != value or abs(value) > 1e12 for name, value in metrics.items()
    ):
        raise Problem("request.invalid", reason="metrics: at most eight finite numbers")
    return metrics


def sensible(milliseconds: Mapping[Work, int]) -> dict[Work, int]:
    """Between nothing and a year."""
    if any(not 0 <= value <= 365 * 86_400_000 for value in milliseconds.values()):
        raise Problem("request.invalid", reason="milliseconds: between 0 and a year")
    return dict(milliseconds)


def checked(counts: tuple[tuple[int, ...], ...], plan: Plan) -> list[list[int]]:
    """`counts[true][predicted]`, of the plan's classes."""
    classes = len(plan.data.classes)
    if len(counts) != classes or any(len(line) != classes or min(line) < 0 or sum(line) > MOST_COUNTED for line in counts):
        raise Problem("federation.evaluation", reason=f"counts are a {classes} by {classes} table of whole numbers")
    return [list(line) for line in counts]

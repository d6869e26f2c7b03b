"""What a hospital may hand in: its model or vector against the plan, and what it says beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmesh.contracts.federation import RoundKind, Work
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem


def check(path: Path, plan: Plan, current: Any) -> str | None:
    """The update's fingerprint, where the plan has updates compared. Raises `Problem` (`weights.*`)."""
    from medmesh.federated.codecs import sent
    from medmesh.federated.screening import fingerprint
    from medmesh.learning import weights

    kind = RoundKind(current.kind)
    signature = plan.signature if kind is RoundKind.BASELINE else sent(plan)  # alone: a whole model
    if plan.secure is not None:
        from medmesh.federated.secure import counts, vectors

        signature = () if kind is RoundKind.EVALUATE else signature
        signature = vectors.signature(signature, counts.width(plan, kind, current.round, len(current.models)), plan.secure.ring)
    weights.check_finite(path, signature=signature)
    return fingerprint(path) if plan.screening is not None and kind is RoundKind.TRAIN else None


def bounded(metrics: dict[str, float]) -> dict[str, float]:
    """At most eight finite numbers under short names."""
    if len(metrics) > 8 or any(len(name) > 40 or value != value or abs(value) > 1e12 for name, value in metrics.items()):
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
    if len(counts) != classes or any(len(line) != classes or min(line) < 0 for line in counts):
        raise Problem("federation.evaluation", reason=f"counts are a {classes} by {classes} table of whole numbers")
    return [list(line) for line in counts]

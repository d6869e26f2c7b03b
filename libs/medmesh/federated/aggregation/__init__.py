"""Federated algorithms by name, and one round's aggregation with them: memory is a piece of each party, whatever the model's size."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from medmesh.contracts.plan import Plan, TensorSignature
from medmesh.contracts.privacy import Privacy
from medmesh.errors import Problem
from medmesh.federated.aggregation import averages, corrected, fedamp, fedopt, robust
from medmesh.federated.aggregation.algorithm import Algorithm, Left, Local, Outcome, Parameter, Piece, Run, Start, spread
from medmesh.federated.privacy.budget import affordable, spent
from medmesh.federated.privacy.clipping import WITHIN
from medmesh.federated.streams import FLOATS
from medmesh.memo import by_identity

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Left",
    "Local",
    "Outcome",
    "Parameter",
    "Piece",
    "Run",
    "Start",
    "aggregate",
    "algorithm_of",
    "compatible",
    "download_signature",
    "named",
    "register",
    "upload_signature",
]

ALGORITHMS: dict[str, type[Algorithm]] = {}
"""Name in the plan to its implementation."""


def register(algorithm: type[Algorithm]) -> type[Algorithm]:
    """Make an algorithm known under its name; also a decorator."""
    ALGORITHMS[algorithm.NAME] = algorithm
    return algorithm


for _algorithm in (
    *(averages.FedAvg, averages.FedProx, averages.FedBN, averages.Ditto, averages.FineTuning),
    *(fedopt.FedAvgM, fedopt.FedAdagrad, fedopt.FedAdam, fedopt.FedYogi),
    *(corrected.Scaffold, corrected.FedNova, fedamp.FedAMP, fedamp.HeurFedAMP),
    *(robust.Median, robust.TrimmedMean, robust.Krum, robust.MultiKrum, robust.Bulyan, robust.Clipping),
):
    register(_algorithm)


def named(name: str) -> type[Algorithm]:
    """An algorithm: ours, a registered one, or one of the entry points `medmesh.algorithms`. Raises `Problem` (`federation.algorithm`)."""
    if name not in ALGORITHMS:
        for entry in entry_points(group="medmesh.algorithms", name=name):
            register(entry.load())
    if name not in ALGORITHMS:
        raise Problem("federation.algorithm", algorithm=name, known=", ".join(sorted(ALGORITHMS)))
    return ALGORITHMS[name]


def algorithm_of(plan: Plan) -> Algorithm:
    """A plan's algorithm with its parameters. Raises `Problem` (`federation.algorithm`, `federation.parameter`)."""
    return named(plan.algorithm)(plan.parameters)


def compatible(plan: Plan) -> Algorithm:
    """The plan's algorithm when everything in the plan fits it. Raises `Problem` with the reason otherwise."""
    algorithm = algorithm_of(plan)
    if plan.secure is not None and (algorithm.UPLOADS or algorithm.NUMBERS):
        raise Problem("federation.secure_more", algorithm=plan.algorithm)
    if algorithm.INDIVIDUAL and plan.secure is not None:
        raise Problem("federation.secure", algorithm=plan.algorithm)
    if plan.privacy is not None:
        _private(plan, plan.privacy, algorithm)
    algorithm.check(plan)
    if plan.pace is not None:
        _hurried(plan, algorithm)
    if plan.stop is not None and (algorithm.PERSONAL or plan.local):
        raise Problem("plan.stop_personal")
    if plan.codec != "topk" and plan.codec_share != Plan.model_fields["codec_share"].default:
        raise Problem("plan.codec_share", codec=plan.codec)
    return algorithm


def _hurried(plan: Plan, algorithm: Algorithm) -> None:
    """Raise `Problem` where an update of an earlier round cannot count in a later one."""
    if algorithm.INDIVIDUAL:
        raise Problem("federation.pace", algorithm=plan.algorithm)
    if algorithm.UPLOADS or algorithm.NUMBERS:
        raise Problem("federation.pace_more", algorithm=plan.algorithm)
    if algorithm.KEEPS or algorithm.SHOWN:
        raise Problem("federation.pace_kept", algorithm=plan.algorithm)


def _private(plan: Plan, privacy: Privacy, algorithm: Algorithm) -> None:
    """Raise `Problem` where an algorithm needs more than the one noised mean, or the budget is too small for a single round."""
    if privacy.unit == "hospital" and (algorithm.UPLOADS or algorithm.NUMBERS):
        raise Problem("privacy.algorithm_more", algorithm=plan.algorithm)
    if privacy.unit == "hospital" and algorithm.INDIVIDUAL:
        raise Problem("privacy.algorithm", algorithm=plan.algorithm)
    if privacy.unit == "patient" and algorithm.NUMBERS:
        raise Problem("privacy.algorithm_numbers", algorithm=plan.algorithm)
    if not affordable(plan, 1):
        raise Problem("plan.budget", spent=f"{spent(plan, 1):.3f}", epsilon=privacy.epsilon)


def makes_own(plan: Plan) -> bool:
    """Whether each hospital ends with a model of its own."""
    return algorithm_of(plan).PERSONAL or bool(plan.local)


@by_identity()
def upload_signature(plan: Plan) -> tuple[TensorSignature, ...]:
    """What a hospital sends in a round: the shared tensors, and what its algorithm sends beside them in the same file."""
    kind = named(plan.algorithm)
    shared = tuple(tensor for tensor in plan.signature if tensor.name not in plan.local)
    extra = spread(kind.UPLOADS, [tensor for tensor in shared if tensor.dtype in FLOATS])
    numbers = tuple(TensorSignature(name=name, shape=(1,), dtype="F64") for name in kind.NUMBERS)
    within = (WITHIN,) if plan.privacy is not None and plan.privacy.adaptive else ()
    return (*shared, *extra.values(), *numbers, *within)


def download_signature(plan: Plan) -> tuple[TensorSignature, ...]:
    """What a hospital gets as the round's state, in a file beside the global model (which has `plan.signature`); nothing for most."""
    kind = named(plan.algorithm)
    if not kind.SHOWN:
        return ()
    return tuple(spread(kind.STATE, [t for t in plan.signature if t.dtype in FLOATS and t.name not in plan.local]).values())


def aggregate(algorithm: Algorithm | str, start: Start | Path, updates: Iterable[tuple[str, Path, int]], target: Path) -> Outcome:
    """One round: (party, update, samples) in any order; what it leaves is written into the existing folder `target`."""
    running = named(algorithm)() if isinstance(algorithm, str) else algorithm
    begun = start if isinstance(start, Start) else Start(start)
    try:
        running.begin(begun)
        for party, path, samples in sorted(updates):
            running.add(party, path, samples)
        return running.finish(target)
    finally:
        running.close()

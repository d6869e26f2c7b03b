"""Whether a package was run on invented data before hospitals are asked to run it on theirs."""

from __future__ import annotations

from medmesh.contracts.plan import Plan
from medmesh.contracts.training import GetRehearsal, RehearsalReport, RehearsalView
from medmesh.errors import Problem
from medmesh.learning.package import Manifest
from medmesh_federation.ports import Ports


async def check(ports: Ports, plan: Plan, manifest: Manifest) -> None:
    """Raise a `Problem` (`federation.not_rehearsed`, `federation.rehearsal_failed`, `federation.rehearsed_otherwise`) unless the plan names
    a rehearsal of just this that passed, and tells what it found; a package without code of its own needs none."""
    if (told := plan.rehearsal) is None:
        if manifest.custom and ports.settings.require_rehearsal:
            raise Problem("federation.not_rehearsed", package=plan.package[:16])
        return
    found = (await ports.ask(GetRehearsal(package=plan.package, report=told.report), RehearsalView)).found
    if found is None:
        raise Problem("federation.not_rehearsed", package=plan.package[:16])
    if failed := next((stage for stage in found.stages if stage.problem), None):
        assert failed.problem is not None
        raise Problem("federation.rehearsal_failed", stage=failed.name, what=failed.problem["code"])
    if differs := _otherwise(plan, found):
        raise Problem("federation.rehearsed_otherwise", what=differs)


def _otherwise(plan: Plan, found: RehearsalReport) -> str:
    """In what the plan is not what was rehearsed, if in anything."""
    how = found.how
    same = {
        "framework": found.framework == plan.framework,
        "algorithm": (how.algorithm, how.parameters) == (plan.algorithm, plan.parameters),
        "local": how.local == plan.local,
        "privacy": how.privacy == plan.privacy,
        "codec": (how.codec, how.codec_share) == (plan.codec, plan.codec_share),
        "secure": how.secure_bits == (plan.secure.bits if plan.secure else None),
        "batch_size": how.batch_size == plan.batch_size,
        "learning_rate": how.learning_rate == plan.learning_rate,
        "rehearsal": plan.rehearsal is not None
        and (plan.rehearsal.memory_mib, plan.rehearsal.step_microseconds) == (found.memory_mib, found.step_microseconds),
    }
    return next((name for name, holds in same.items() if not holds), "")

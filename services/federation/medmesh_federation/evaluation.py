"""Evaluations at the coordinator: what hospitals counted, what it tells of a model, and which model is kept in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from sqlalchemy import select

from medmesh.contracts.federation import CandidateModel, SubmitEvaluation
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.plan import plan_of
from medmesh.store.attempts import same_attempt
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh_federation.answering import MADE, answer, answering
from medmesh_federation.domain import Counts, Situation, best, score
from medmesh_federation.handlers import entity
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.tables import answers, rounds
from medmesh_federation.updates import checked, sensible

GLOBAL = "federated"
"""The name of the federation's model among those that are evaluated."""


@HANDLERS.on(SubmitEvaluation, batch=16)
async def submit_evaluation(command: Envelope[SubmitEvaluation], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """A hospital's counts for every model it was asked to evaluate."""
    given = command.data
    asked, late = await answering(uow, given.federation, given.round, given.attempt)
    current = asked.round
    plan, models = plan_of(current), {model["weights"]["sha256"] for model in current.models}
    if plan.secure is not None:
        raise Problem("federation.evaluation", reason="the plan has only sums of counts opened")
    if current.kind != "evaluate" or {result.model for result in given.results} != models:
        raise Problem("federation.evaluation", reason="every model, and only those, must be evaluated")
    results = {result.model: checked(result.counts, plan) for result in given.results}
    if given.personal is not None:
        results["personal"] = checked(given.personal, plan)
    values = {"results": results, "samples": sum(map(sum, given.results[0].counts)), "milliseconds": sensible(given.milliseconds)}
    if await answer(uow, asked, late, **values) is not None:
        uow.audit(AuditEntry("federation.evaluation", "C", entities=(entity(current),), detail={"late": late, "models": len(results)}))
    else:
        uow.unchanged()
    return {"late": late}


async def scores(uow: UnitOfWork[Any], federation: str, plan: Plan) -> Mapping[int, Fraction]:
    """Training round to how its model did at the hospitals that evaluated it: the round after it brought the counts."""
    assert plan.stop is not None
    made = await uow.all(select(rounds.c.round, rounds.c.summed).where(rounds.c.federation == federation, MADE).order_by(rounds.c.round))
    # The number before is not the round before where rounds were undone, or skipped.
    before = dict(zip([one.round for one in made], [0, *(one.round for one in made)], strict=False))
    if plan.secure is not None:
        return {before[one.round]: score(plan.stop.metric, [one.summed["results"]["base"]]) for one in made if one.summed}
    wanted = select(answers.c.round, answers.c.results).join(rounds, same_attempt(rounds, answers))
    counted = MADE & ~answers.c.late & answers.c.failed.is_(None)
    tables: dict[int, list[Counts]] = {}
    for row in await uow.all(wanted.where(rounds.c.federation == federation, counted)):
        if row.results:
            tables.setdefault(before[row.round], []).append(row.results["base"])
    return {number: score(plan.stop.metric, found) for number, found in tables.items()}


async def global_models(uow: UnitOfWork[Any], row: Any, situation: Situation) -> list[CandidateModel]:
    """The federation's model; where it may have stopped early, the last and the best so far, of which one is kept."""
    last = CandidateModel(name=GLOBAL, weights=ObjectRef.model_validate(row.model))
    stop = situation.plan.stop
    if stop is None or (number := best(stop, await scores(uow, row.federation, situation.plan))) is None:
        return [last]
    wanted = select(rounds.c.round, rounds.c.model).where(rounds.c.federation == row.federation, MADE)
    made = {found.round: found.model for found in await uow.all(wanted)}
    older = ObjectRef.model_validate(made.get(number) or row.initial)
    if older == last.weights:
        return [last]
    return [last.model_copy(update={"name": f"round-{max(made)}"}), CandidateModel(name=f"round-{number}", weights=older)]


def kept(situation: Situation, told: Sequence[Mapping[str, Counts]]) -> ObjectRef | None:
    """Which of two models this evaluation keeps: the older one, unless the last is better by more than `min_delta`. None: there is one.
    `told` are the counts of each hospital, or of all together, by model."""
    assert situation.round is not None
    stop, two = situation.plan.stop, [model for model in situation.round.models if model.name.startswith("round-")]
    if stop is None or len(two) < 2:
        return None
    last, older = (score(stop.metric, [results[model.weights.sha256] for results in told]) for model in two)
    return two[best(stop, {0: older, 1: last}) == 0].weights

"""Invitations: what the policy refuses is declined with its rule; a plan that a person approved, or whose code the policy names, is
consented to by signature."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select, update

from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import RoundKind
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.learning.environment import Environment
from medmesh.security import statements
from medmesh.security.statements import Acceptance, PlanApproval
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_edge import attempts, code, continuity, environments, pipelines, privacy
from medmesh_edge.outgoing import is_transient, queue, unsay
from medmesh_edge.policy import refusal
from medmesh_edge.ports import Site
from medmesh_edge.tables import OPEN_STATES, federations, tasks

WAITING = frozenset(("roster.none", "roster.expired"))
"""What a hospital sets right by itself: an invitation waits for it."""
_INVITED = Prepared(select(federations).where(federations.c.state == "invited"))


async def approve(site: Site, federation: str, by: str) -> str:
    """A person of the hospital approves the plan of a federation, its code and what that runs in, by their hashes, and no other plan with
    the same code; answers the plan's hash. Raises `Problem`."""
    async with site.unit() as uow:
        row = await _known(uow, federation)
    found = await site.interpreters.of(environments.framework(site, row))
    async with site.unit() as uow:
        row = await _known(uow, federation)
        if row.state not in OPEN_STATES:
            raise Problem("edge.nothing_to_approve", federation=federation, state=row.state)
        # Before the roster has the hospital's key its signature counts nowhere: say so now, not when somebody verifies.
        if not site.roster().has_hospital(site.organisation().vkey):
            raise Problem("edge.not_rostered")
        signed = await _approved(site, uow, row, found, by[:80])
        await uow.execute(update(federations).where(federations.c.federation == federation).values(approved=signed))
    return str(row.plan_hash)


async def _known(uow: UnitOfWork[Any], federation: str) -> Any:
    row = await uow.first(select(federations).where(federations.c.federation == federation))
    if row is None:
        raise Problem("request.not_found", kind="federation", id=federation)
    return row


async def _approved(site: Site, uow: UnitOfWork[Any], row: Any, found: Environment, by: str) -> str:
    """Sign that a plan's code may run here in this environment, and put it on record; answers the statement."""
    package = str(row.package["sha256"])
    which = {"federation": row.federation, "plan": row.plan_hash, "package": package, "environment": found.digest}
    signed = statements.sign(PlanApproval(made=uow.now, **which, hospital=site.settings.hospital, by=by), site.organisation())
    await environments.approve(uow, row.federation, found, by)
    about = (Entity("package", package[:16], digest=package), Entity("federation", row.federation, digest=row.plan_hash))
    uow.audit(AuditEntry("package.approve", "E", entities=about, detail={"statement": statements.pack(signed)}))
    return signed


async def decline(site: Site, federation: str, reason: str) -> None:
    """A person declines. Raises `Problem`."""
    async with site.unit() as uow:
        row = await uow.first(select(federations).where(federations.c.federation == federation, federations.c.state == "invited"))
        if row is None:
            raise Problem("request.not_found", kind="open invitation", id=federation)
        await _answer(uow, row, accept=False, reason=reason or "declined by the hospital")


async def withdraw(site: Site, federation: str, reason: str) -> None:
    """A person takes this hospital out, for good, also after the end: from this moment nothing of it leaves. Raises `Problem`."""
    async with site.unit() as uow:
        row = await _known(uow, federation)
        if row.state == "withdrawn":
            return
        if row.state in ("invited", "declined", "expired"):
            raise Problem("federation.not_taking_part", federation=federation, state=row.state)
        ours = federations.c.federation == federation
        await uow.execute(update(federations).where(ours).values(state="withdrawn", reason=reason))
        await attempts.forget_all(uow, federation)
        await unsay(uow, federation)
        await queue(uow, f"/v1/federations/{federation}/withdrawal", {"reason": reason[:200]})
        about = (Entity("federation", federation, digest=row.plan_hash),)
        uow.audit(AuditEntry("federation.withdraw", "E", entities=about))
    site.changed.set()


async def part(site: Site, federation: str) -> int:
    """In how many rounds this hospital trained whose model may have its part: what the platform stored, or was not heard of again. What is
    in committed models for good, the platform says (`inbox._left`)."""
    mine = (
        (tasks.c.federation == federation) & (tasks.c.kind == RoundKind.TRAIN.value) & tasks.c.state.in_(["sent", "releasable", "released"])
    )
    wanted = select(func.count(func.distinct(tasks.c.round))).where(mine)
    async with site.unit() as uow:
        return int((await uow.execute(wanted)).scalar_one())


async def answer_invitations(site: Site, gateway: Gateway) -> None:
    """Answer what can be answered: by the policy at once, by an approval when it is there; the rest waits for a person. The package is
    fetched, so that who decides can look into it."""
    waiting = await site.database.look(_INVITED)
    if not waiting:
        return
    policy = site.policy()
    for row in waiting:
        plan = Plan.model_validate(row.plan)
        refused = refusal(policy, plan, await privacy.cohort(site, plan, row.federation))
        refused = refused or await _unfit(site, gateway, plan, row)
        if refused is not None:
            async with site.unit() as uow:
                await _answer(uow, row, accept=False, reason=refused.code)
        elif row.approved is not None or row.package["sha256"] in policy.packages:
            await _accept(site, row)


async def _unfit(site: Site, gateway: Gateway, plan: Plan, row: Any) -> Problem | None:
    """Why it may not run here, if it may not: its pipeline or its code. Raises transient problems."""
    try:
        pipelines.check(plan.data)
        package = await code.fetch(site, gateway, ObjectRef.model_validate(row.package))
        await code.allowed(site, gateway, plan, package, row.reviews)
    except Problem as problem:
        if is_transient(problem) or problem.code in WAITING:
            raise
        return problem
    return None


async def _accept(site: Site, row: Any) -> None:
    """Sign the plan with the hospital's own key; one that the roster does not have would be believed by nobody, so the answer waits. So it
    does where the plan's code would run in something else than what a person approved."""
    try:
        found = None if environments.asks_nothing(site) else await site.interpreters.of(environments.framework(site, row))
    except Problem as problem:
        async with site.unit() as uow:
            await _waits(uow, row, problem.code)
        return
    async with site.unit() as uow:
        key, seen = site.organisation(), await continuity.view(uow, continuity.keys(site)[0].name)
        if (missing := _missing(site, key.vkey, seen)) is not None:
            await _waits(uow, row, missing)
            return
        if not await _suits(site, uow, row, found):
            await _waits(uow, row, "edge.environment_changed")
            return
        knows = seen.note if seen else ""
        said = Acceptance(made=uow.now, federation=row.federation, plan=row.plan_hash, hospital=site.settings.hospital, seen=knows)
        await _answer(uow, row, accept=True, signature=statements.sign(said, key), small_cell=min(site.policy().small_cell, 1_000_000))


async def _suits(site: Site, uow: UnitOfWork[Any], row: Any, found: Environment | None) -> bool:
    """Whether a plan's code may run in what was found, which is approved here by nobody but the rules where no person has."""
    if found is not None and await environments.approved(uow, row.federation) is None:
        await _approved(site, uow, row, found, "policy.toml")
    return found is None or await environments.suits(uow, row.federation, found)


def _missing(site: Site, vkey: str, seen: Any) -> str | None:
    """The code of what is amiss with this hospital's word, if anything."""
    try:
        missing = None if site.roster().has_hospital(vkey) else "edge.not_rostered"
    except Problem as problem:
        return problem.code
    return missing or (seen.fault if seen else "") or None


async def _waits(uow: UnitOfWork[Any], row: Any, reason: str) -> None:
    await uow.execute(update(federations).where(federations.c.federation == row.federation).values(reason=reason))


async def _answer(uow: UnitOfWork[Any], row: Any, *, accept: bool, signature: str = "", reason: str = "", small_cell: int = 0) -> None:
    open_ = (federations.c.federation == row.federation) & (federations.c.state == "invited")
    state = "accepted" if accept else "declined"
    changed = await uow.execute(update(federations).where(open_).values(state=state, reason=reason))
    if changed.rowcount == 0:
        return
    body = {"plan_hash": row.plan_hash, "accept": accept, "signature": signature, "reason": reason, "small_cell": small_cell}
    await queue(uow, f"/v1/federations/{row.federation}/answer", body)
    about = (Entity("federation", row.federation, digest=row.plan_hash),)
    refused = not accept and reason.startswith(("policy.", "review.", "package.", "roster.", "statement.", "pipelines."))
    detail: dict[str, str | int | bool] = {"accepted": accept}
    if signature:
        detail["statement"] = statements.pack(signature)
    why = reason if refused else ""
    uow.audit(AuditEntry("federation.consent", "E", outcome=8 if refused else 0, why=why, entities=about, detail=detail))

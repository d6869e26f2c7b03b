"""What training code runs in at this hospital: its interpreters with all that is installed for them. Who approves code approves that, too:
it is compared before a worker starts, and another one trains nothing until somebody here approved anew.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import null, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.errors import Problem
from medmesh.learning.environment import Environment, Inventory, differences, explain, shortly
from medmesh.store.unit import UnitOfWork
from medmesh_edge import code
from medmesh_edge.ports import Site
from medmesh_edge.tables import OPEN_STATES, environments, federations


def framework(site: Site, row: Any) -> str:
    """The framework with which a federation's package would run here. Raises `Problem` (`edge.package_not_here`) where nobody can know."""
    if (package := code.held(site, row.package["sha256"])) is not None:
        return package.manifest.framework(site.settings.frameworks)
    if site.settings.python:
        raise Problem("edge.package_not_here", federation=row.federation)
    return str(row.plan["framework"])  # whichever it is: there is one interpreter


def asks_nothing(site: Site) -> bool:
    """Whether the hospital's rules let approved code run in anything; rules that cannot be read do not."""
    try:
        return site.policy().environment == "any"
    except Problem:
        return False


async def approved(uow: UnitOfWork[Any], federation: str) -> Any:
    """What was approved for a federation; None where nothing was."""
    return await uow.first(select(environments).where(environments.c.federation == federation))


async def approve(uow: UnitOfWork[Any], federation: str, found: Environment, by: str) -> None:
    """In the transaction of the approval: this one from now on, in place of any before."""
    values = {"digest": found.digest, "inventory": found.inventory, "found": null(), "by": by, "at": uow.now}
    await _write(uow, federation, values, values)
    # An invitation that waited for this waits for nothing now.
    waited = (federations.c.federation == federation) & (federations.c.reason == "edge.environment_changed")
    await uow.execute(update(federations).where(waited).values(reason=""))


async def suits(uow: UnitOfWork[Any], federation: str, found: Environment) -> bool:
    """Whether a federation's code may run in it; where it may not, what was found is kept for who reads why."""
    row = await approved(uow, federation)
    if row is not None and row.digest == found.digest:
        if row.found is not None:  # what was refused is gone again
            await uow.execute(update(environments).where(environments.c.federation == federation).values(found=null()))
        return True
    nothing = {"digest": "", "inventory": {}, "by": "", "at": uow.now}
    await _write(uow, federation, {**nothing, "found": found.inventory}, {"found": found.inventory})
    return False


async def _write(uow: UnitOfWork[Any], federation: str, values: dict[str, Any], changed: dict[str, Any]) -> None:
    into = upsert(environments).values(federation=federation, **values)
    await uow.execute(into.on_conflict_do_update(index_elements=[environments.c.federation], set_=changed))


async def allowed(site: Site, federation: str, wanted: str) -> str:
    """The digest of what a federation's code would run in with this framework. Raises `Problem` (`edge.environment_changed`) where it is
    not what was approved."""
    found = await site.interpreters.of(wanted)
    if asks_nothing(site):
        return found.digest
    async with site.unit() as uow:
        suited, row = await suits(uow, federation, found), await approved(uow, federation)
        if not suited:
            await uow.execute(update(federations).where(federations.c.federation == federation).values(reason="edge.environment_changed"))
    if not suited:
        raise _changed(federation, row.inventory, found.inventory)
    return found.digest


def _changed(federation: str, was: Inventory, now: Inventory) -> Problem:
    return Problem("edge.environment_changed", federation=federation, changes=shortly(differences(was, now)))


async def problems(site: Site) -> list[Problem]:
    """Of every federation that waits for somebody to approve what its code would run in."""
    if asks_nothing(site):
        return []
    wanted = select(environments).join(federations, federations.c.federation == environments.c.federation)
    async with site.unit() as uow:
        rows = await uow.all(
            wanted.where(environments.c.found.is_not(None), federations.c.state.in_(OPEN_STATES)).order_by(environments.c.at)
        )
    return [_changed(row.federation, row.inventory, row.found) for row in rows]


async def since(site: Site, federation: str, language: str) -> list[str]:
    """As `described`, of a federation by its number; nothing where it is not known."""
    async with site.unit() as uow:
        row = await uow.first(select(federations).where(federations.c.federation == federation))
    return [] if row is None else await described(site, row, language)


async def described(site: Site, row: Any, language: str) -> list[str]:
    """What a person who decides about a federation is told of what its code would run in, and what of that is other than what was
    approved; a sentence a line."""
    try:
        wanted = framework(site, row)
        found = await site.interpreters.of(wanted)
    except Problem as problem:
        return [problem.detail(language)]
    async with site.unit() as uow:
        before = await approved(uow, row.federation)
    lines = [explain(found, language, wanted)]
    if before is not None and before.digest != found.digest and not asks_nothing(site):
        lines.append("与批准时不同：" if language == "zh" else "It is not what was approved:")
        lines += [f"  {one}" for one in differences(before.inventory, found.inventory)]
    return lines

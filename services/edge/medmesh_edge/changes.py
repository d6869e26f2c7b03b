"""What is other in a plan and its code than in what this hospital accepted before: who decides again reads the difference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import select

from medmesh.errors import Problem
from medmesh.learning.capabilities import difference
from medmesh.learning.package import Package
from medmesh_edge import code
from medmesh_edge.ports import Site
from medmesh_edge.tables import federations

ACCEPTED = ("accepted", "running", "paused", "completed", "failed", "withdrawn")
"""States of a federation that this hospital signed once."""
_EVERY_TIME = frozenset(("accept_by", "start_at", "package"))
"""Other in every plan; of the package its files are compared."""
_LONGEST = 160
_MOST_LINES = 400


async def before(site: Site, row: Any) -> Any:
    """The newest earlier federation of the same name and initiator that this hospital accepted, else of the same code; None when there is
    neither."""
    wanted = select(federations).where(
        federations.c.federation != row.federation, federations.c.state.in_(ACCEPTED), federations.c.at <= row.at
    )
    async with site.unit() as uow:
        rows = await uow.all(wanted.order_by(federations.c.at.desc()))
    # A failed invitation was not accepted: only of those that began is there a start.
    signed = [one for one in rows if one.state != "failed" or one.start is not None]
    alike = [one for one in signed if all(one.plan[name] == row.plan[name] for name in ("name", "initiator"))]
    return next(iter(alike or [one for one in signed if one.plan["package"] == row.plan["package"]]), None)


def fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, before, after) of each field of two plans that differs, in the order of the names; `-` for what is not there."""
    first, second = dict(_flat(old)), dict(_flat(new))
    for name in sorted({*first, *second}):
        if name not in _EVERY_TIME and first.get(name) != second.get(name):
            yield name, first.get(name, "-"), second.get(name, "-")


def _flat(document: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{under}{name}.")
        elif value not in (None, {}, [], ()):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
            yield under + name, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


async def since(site: Site, federation: str, language: str = "en") -> list[str]:
    """What a person reads: the fields of the plan and the lines of code that differ from what was accepted last; empty where nothing was.
    Raises `Problem` (`request.not_found`)."""
    async with site.unit() as uow:
        row = await uow.first(select(federations).where(federations.c.federation == federation))
    if row is None:
        raise Problem("request.not_found", kind="federation", id=federation)
    if (old := await before(site, row)) is None:
        return []
    zh, when = language == "zh", f"{old.at:%Y-%m-%d}"
    lines = [
        f"与贵院 {when} 接受的方案（{old.federation}）相比："
        if zh
        else f"Compared with the plan of {when} that you accepted ({old.federation}):"
    ]
    lines += [f"  {name}: {first} → {second}" for name, first, second in fields(old.plan, row.plan)]
    if len(lines) == 1:
        lines.append("  方案无变化。" if zh else "  nothing in the plan is different.")
    if old.package["sha256"] == row.package["sha256"]:
        return [*lines, "  代码未变：同一训练包。" if zh else "  The code is the same package."]
    packages = [code.held(site, one.package["sha256"]) for one in (old, row)]
    if not all(packages):
        return [*lines, "  训练包已变，但并非两者都在本节点。" if zh else "  The package is another, and not both are at this node."]
    return [*lines, *_files(packages, zh)]


def _files(packages: list[Package | None], zh: bool) -> Iterator[str]:
    first, second = ({} if one is None else one.files for one in packages)
    yield "  训练包的变化：" if zh else "  In the package:"
    for number, line in enumerate(difference(first, second)):
        if number == _MOST_LINES:
            yield "  …其余从略。" if zh else "  … and more."
            return
        yield f"  {line}"

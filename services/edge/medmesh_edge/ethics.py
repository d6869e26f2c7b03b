"""On what a hospital may use data: an approval of its ethics committee (伦理审查批件) for kinds of data and for a time, with each patient's
own consent (知情同意) or with that waived. What has ended is used by nobody from the next round on; it stays where it lies until forgotten.

Sources: 涉及人的生命科学和医学研究伦理审查办法 (2023), chapter 4 on informed consent; FHIR R4 Consent (category, provision.period).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, get_args

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.errors import Problem
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_edge import samples
from medmesh_edge.ports import Site
from medmesh_edge.tables import consents, ethics_approvals, items

Kind = Literal["image", "signal", "table", "text"]
KINDS: tuple[str, ...] = get_args(Kind)
_SIGNALS = frozenset(("ECG", "EEG", "EMG", "EOG", "EPS", "HD", "RESP", "AU"))  # PS3.3 C.7.3.1.1.1: modalities of waveforms and sounds


def kind_of(modality: str) -> str:
    """Of what kind an item is, by its modality."""
    group, named, _ = modality.partition(":")
    if named:
        return {"volume": "image"}.get(group, group)
    return "signal" if modality in _SIGNALS else "image"


@dataclass(frozen=True, slots=True)
class Approval:
    """What the committee approved: `until` is the last day; with `individual` only of patients who agreed."""

    number: str
    title: str
    kinds: tuple[str, ...]
    since: date
    until: date
    individual: bool


async def record(site: Site, approval: Approval, by: str) -> None:
    """Write an approval down; the same one again changes nothing. Raises `Problem` (`ethics.contradicts`, `ethics.other`)."""
    if not approval.number.strip() or len(approval.number) > 64 or not approval.kinds or not set(approval.kinds) <= set(KINDS):
        raise Problem("ethics.contradicts", reason="a number of at most 64 signs, and kinds among " + ", ".join(KINDS))
    if approval.until < approval.since:
        raise Problem("ethics.contradicts", reason="it ends before it begins")
    values = {
        "title": approval.title[:200],
        "kinds": sorted(set(approval.kinds)),
        "since": approval.since.isoformat(),
        "until": approval.until.isoformat(),
        "individual": approval.individual,
    }
    async with site.unit() as uow:
        known = await _approval(uow, approval.number)
        if known is not None:
            if any(getattr(known, name) != value for name, value in values.items()) or known.ended:
                raise Problem("ethics.other", number=approval.number)
            return
        await uow.execute(upsert(ethics_approvals).values(number=approval.number, **values, ended="", by=by[:80], at=uow.now))
        detail: dict[str, str | int | bool] = {
            "kinds": " ".join(sorted(set(approval.kinds))),
            "since": approval.since.isoformat(),
            "until": approval.until.isoformat(),
            "individual": approval.individual,
        }
        uow.audit(AuditEntry("ethics.record", "C", entities=(about(approval.number),), detail=detail))


async def end(site: Site, number: str, reason: str) -> None:
    """End an approval before its time: what was taken in under it is used no more. Raises `Problem` (`ethics.unknown`)."""
    async with site.unit() as uow:
        known = await _approval(uow, number)
        if known is None or known.ended:
            raise Problem("ethics.unknown", number=number)
        await uow.execute(update(ethics_approvals).where(ethics_approvals.c.number == number).values(ended=reason[:200] or "ended"))
        uow.audit(AuditEntry("ethics.end", "U", entities=(about(number),)))
    await asyncio.to_thread(samples.forget_arrays, site)


async def consent(site: Site, number: str, patients: Iterable[str], *, agreed: bool) -> int:
    """Write down who (pseudonyms) agreed, or took that back; how many that changed. Raises `Problem` (`ethics.unknown`)."""
    wanted = sorted(set(patients))
    async with site.unit() as uow:
        if await _approval(uow, number) is None:
            raise Problem("ethics.unknown", number=number)
        theirs = (consents.c.number == number) & consents.c.patient.in_(wanted)
        known = {row.patient for row in await uow.all(select(consents.c.patient).where(theirs))}
        changed = [one for one in wanted if (one not in known) == agreed]
        if agreed and changed:
            await uow.execute(upsert(consents), [{"number": number, "patient": one, "at": uow.now} for one in changed])
        elif changed:
            await uow.execute(delete(consents).where(theirs))
        detail: dict[str, str | int | bool] = {"patients": len(changed), "agreed": agreed}
        uow.audit(AuditEntry("ethics.consent", "U", entities=(about(number),), detail=detail))
    if changed and not agreed:
        await asyncio.to_thread(samples.forget_arrays, site)
    return len(changed)


async def admitted(uow: UnitOfWork[None], site: Site, number: str, kind: str, patients: Iterable[str]) -> frozenset[str]:
    """Whose data of a kind may be taken in today under an approval; without one everybody's, where the policy does not ask for one.

    Raises `Problem`: `ethics.needed`, `ethics.unknown`, `ethics.not_valid`, `ethics.kind`.
    """
    wanted = frozenset(patients)
    if not number:
        if site.policy().ethics:
            raise Problem("ethics.needed")
        return wanted
    known = await _approval(uow, number)
    if known is None:
        raise Problem("ethics.unknown", number=number)
    if known.ended or not known.since <= date.today().isoformat() <= known.until:
        raise Problem("ethics.not_valid", number=number, since=known.since, until=known.until, ended=known.ended or "-")
    if kind not in known.kinds:
        raise Problem("ethics.kind", number=number, kind=kind, kinds=", ".join(known.kinds))
    if not known.individual:
        return wanted
    theirs = select(consents.c.patient).where(consents.c.number == number, consents.c.patient.in_(sorted(wanted)))
    return frozenset(row.patient for row in await uow.all(theirs))


async def usable(uow: UnitOfWork[None], site: Site) -> Callable[[str, str], bool]:
    """Whether what was taken in of a patient (pseudonym) under an approval may be used today; under none where the policy asks for none."""
    today = date.today().isoformat()
    valid = (ethics_approvals.c.ended == "") & (ethics_approvals.c.since <= today) & (ethics_approvals.c.until >= today)
    known = await uow.all(select(ethics_approvals.c.number, ethics_approvals.c.individual).where(valid))
    individual = {row.number for row in known if row.individual}
    waived = {row.number for row in known} - individual | (set() if site.policy().ethics else {""})
    theirs = await uow.all(select(consents.c.number, consents.c.patient).where(consents.c.number.in_(sorted(individual))))
    agreed = {(row.number, row.patient) for row in theirs}
    return lambda patient, number: number in waived or (number, patient) in agreed


async def listed(site: Site) -> list[dict[str, Any]]:
    """Every approval, what is used under it, and how many patients agreed."""
    async with site.unit() as uow:
        known = await uow.all(select(ethics_approvals).order_by(ethics_approvals.c.number))
        held: Sequence[Any] = await uow.all(select(items.c.ethics, items.c.patient))
        agreed = await uow.all(select(consents.c.number))
    today = date.today().isoformat()
    return [
        {
            **{name: getattr(row, name) for name in ("number", "title", "kinds", "since", "until", "individual", "ended")},
            "valid": not row.ended and row.since <= today <= row.until,
            "items": sum(one.ethics == row.number for one in held),
            "patients": len({one.patient for one in held if one.ethics == row.number}),
            "agreed": sum(one.number == row.number for one in agreed),
        }
        for row in known
    ]


def about(number: str) -> Entity:
    """An approval as audit names it."""
    return Entity("ethics", number)


async def _approval(uow: UnitOfWork[None], number: str) -> Any:
    return await uow.first(select(ethics_approvals).where(ethics_approvals.c.number == number))

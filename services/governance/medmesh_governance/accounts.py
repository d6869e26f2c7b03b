"""Accounts as evaluators ask for them: listed with their rights and what is amiss, ended at their time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, update

from medmesh.contracts.governance import AccountEntry, AccountReport, LimitUser, ReportAccounts
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_governance.domain import AccountFacts, AccountRules, findings
from medmesh_governance.people import account, change_account
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.tables import certificates, sessions, users


@HANDLERS.answers(ReportAccounts)
async def report_accounts(query: Envelope[ReportAccounts], uow: UnitOfWork[Ports]) -> AccountReport:
    """A page of accounts; the record of it says how many."""
    wanted, settings = query.data, uow.ports.settings
    rows = await uow.all(select(users).where(users.c.name > wanted.after).order_by(users.c.name).limit(wanted.limit + 1))
    page = rows[: wanted.limit]
    names = [row.name for row in page]
    open_now = select(sessions.c.name, func.count().label("n")).where(sessions.c.name.in_(names), sessions.c.expires_at > uow.now)
    counts = {row.name: row.n for row in await uow.all(open_now.group_by(sessions.c.name))}
    good = certificates.c.revoked_at.is_(None) & (certificates.c.expires_at > uow.now) & certificates.c.name.in_(names)
    latest = select(certificates.c.name, func.max(certificates.c.expires_at).label("until")).where(good).group_by(certificates.c.name)
    until = {row.name: row.until for row in await uow.all(latest)}
    rules = AccountRules(settings.idle_days, settings.password_days, settings.second_factor_roles, settings.shared_sessions)
    entries = [_entry(row, counts.get(row.name, 0), until.get(row.name), rules, uow) for row in page]
    amiss = sum(bool(entry.findings) for entry in entries)
    uow.audit(AuditEntry("user.report", "R", detail={"accounts": len(entries), "amiss": amiss}))
    return AccountReport(accounts=tuple(entries), next=page[-1].name if len(rows) > len(page) else None)


def _entry(row: Any, open_sessions: int, certificate: Any, rules: AccountRules, uow: UnitOfWork[Ports]) -> AccountEntry:
    person = row.kind == "person"
    facts = AccountFacts(
        name=row.name,
        roles=tuple(row.roles),
        person=person,
        used=row.signed_in_at or row.created_at,
        activated=row.password_hash is not None or not person,
        code_ends=row.activation_expires,
        password_at=row.password_at,
        has_factor=row.factor is not None or certificate is not None,
        disabled=row.disabled_at is not None,
        ends=row.ends_at,
        locked_until=row.locked_until,
        sessions=open_sessions,
    )
    found = findings(facts, rules, uow.now)
    factor = "certificate" if certificate else "otp" if row.factor is not None else "key" if not person else ""
    due = row.password_at + timedelta(days=rules.password_days) if person and row.password_at else None
    return AccountEntry(
        name=row.name,
        kind=row.kind,
        display_name=row.display_name,
        organisation=row.organisation,
        roles=tuple(row.roles),
        state="disabled" if facts.disabled else "locked" if "locked" in found else "active" if facts.activated else "new",
        factor=factor,
        created=row.created_at,
        signed_in=row.signed_in_at,
        password_due=due,
        certificate_until=certificate,
        ends=row.ends_at,
        sessions=open_sessions,
        findings=found,
    )


@HANDLERS.on(LimitUser)
async def limit_user(command: Envelope[LimitUser], uow: UnitOfWork[Ports]) -> None:
    """From that moment nobody signs in with it; its sessions end no later."""
    wanted = command.data
    row = await account(uow, wanted.name)
    if wanted.ends is not None and wanted.ends.tzinfo is None:
        raise Problem("request.invalid", reason="ends: a time with its zone")
    if row.ends_at == wanted.ends:
        uow.unchanged()
        return
    await uow.execute(update(users).where(users.c.name == row.name).values(ends_at=wanted.ends))
    if wanted.ends is not None:
        theirs = (sessions.c.name == row.name) & (sessions.c.expires_at > wanted.ends)
        await uow.execute(update(sessions).where(theirs).values(expires_at=wanted.ends))
    detail: dict[str, str | int | bool] = {"ends": wanted.ends.isoformat() if wanted.ends else "never"}
    uow.audit(AuditEntry("user.limit", "U", entities=(Entity("user", row.name),), detail=detail))


async def disable_ended(uow: UnitOfWork[Ports]) -> None:
    """Close accounts whose time is over (8.1.4.2 c)."""
    over = users.c.disabled_at.is_(None) & (users.c.ends_at <= uow.now)
    for row in await uow.all(select(users).where(over).order_by(users.c.name).with_for_update(skip_locked=True)):
        await change_account(uow, row, "user.disable", {"reason": "ended"}, disabled_at=uow.now)

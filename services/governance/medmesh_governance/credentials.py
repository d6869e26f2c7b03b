"""A person's own secrets: the password and its history, the second factor."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update

from medmesh.contracts.governance import ChangePassword, ConfirmSecondFactor, Done, EnrolSecondFactor, SecondFactorSecret
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.security import totp
from medmesh.security.passwords import check_policy, hash_password, verify_password
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.sessions import end_all, failed, fulfilled, live, locked, spend_code
from medmesh_governance.tables import passwords, users


async def set_password(uow: UnitOfWork[Ports], name: str, password: str, **values: Any) -> None:
    """Give a known person a password that fits the policy and is none of the last ones. Raises `Problem`."""
    check_policy(name, password)
    keep = uow.ports.settings.password_history
    before = await uow.all(select(passwords).where(passwords.c.name == name).order_by(passwords.c.at.desc()))
    if any(verify_password(row.hash, password) for row in before[:keep]):
        raise Problem("security.password_used", last=keep)
    encoded = hash_password(password)
    await uow.execute(insert(passwords).values(name=name, at=uow.now, hash=encoded))
    if old := [row.at for row in before[keep - 1 :]]:
        await uow.execute(delete(passwords).where(passwords.c.name == name, passwords.c.at.in_(old)))
    await uow.execute(update(users).where(users.c.name == name).values(password_hash=encoded, password_at=uow.now, **values))


@HANDLERS.answers(ChangePassword)
async def change_password(query: Envelope[ChangePassword], uow: UnitOfWork[Ports]) -> Done | Problem:
    """The old one is asked for again: a session left open is no way to the account."""
    wanted = query.data
    row = await live(uow, wanted, limited=True)
    if problem := locked(uow, row, "password.change"):
        return problem
    if not verify_password(row.password_hash, wanted.old):
        return await failed(uow, row, "password.change", Problem("governance.sign_in_refused"))
    await set_password(uow, row.name, wanted.new)
    await end_all(uow, row.name, but=row.hash)
    await fulfilled(uow, row, "password")
    uow.audit(AuditEntry("password.change", "U", entities=(Entity("user", row.name),)))
    return Done()


def just_signed_in(uow: UnitOfWork[Ports], row: Any) -> None:
    """Raise a `Problem` in a session that was opened a while ago: left open, it is no way to a second factor of one's own."""
    if row.opened_at + timedelta(minutes=uow.ports.settings.grace_minutes) < uow.now:
        raise Problem("governance.sign_in_again", minutes=uow.ports.settings.grace_minutes)


@HANDLERS.answers(EnrolSecondFactor)
async def enrol_second_factor(query: Envelope[EnrolSecondFactor], uow: UnitOfWork[Ports]) -> SecondFactorSecret | Problem:
    """A new secret, shown this once. Who has a factor shows it first, who has none has just signed in: a session that was left
    open is no way to make a factor of one's own. Nothing changes until the new one is confirmed."""
    row = await live(uow, query.data, limited=True)
    if row.factor is None:
        just_signed_in(uow, row)
    else:
        if problem := locked(uow, row, "second_factor.enrol"):
            return problem
        if not await spend_code(uow, row, query.data.code or ""):
            return await failed(uow, row, "second_factor.enrol", Problem("governance.code_wrong"))
    secret = totp.new_secret()
    await uow.execute(update(users).where(users.c.name == row.name).values(factor_new=uow.ports.seal.close(secret, row.name)))
    uow.audit(AuditEntry("second_factor.enrol", "C", entities=(Entity("user", row.name),)))
    return SecondFactorSecret(secret=totp.text(secret), uri=totp.uri(secret, row.name, uow.ports.settings.platform))


@HANDLERS.answers(ConfirmSecondFactor)
async def confirm_second_factor(query: Envelope[ConfirmSecondFactor], uow: UnitOfWork[Ports]) -> Done | Problem:
    """From here on signing in needs it, and every other session, which never showed it, ends."""
    row = await live(uow, query.data, limited=True)
    if row.factor_new is None:
        raise Problem("governance.no_second_factor")
    if problem := locked(uow, row, "second_factor.confirm"):
        return problem
    step = totp.accept(uow.ports.seal.open(row.factor_new, row.name), query.data.code, uow.now, 0)
    if step is None:
        return await failed(uow, row, "second_factor.confirm", Problem("governance.code_wrong"))
    values = {"factor": row.factor_new, "factor_new": None, "factor_step": step, "failures": 0}
    await uow.execute(update(users).where(users.c.name == row.name).values(values))
    await end_all(uow, row.name, but=row.hash)
    await fulfilled(uow, row, "second_factor", strong_at=uow.now)
    uow.audit(AuditEntry("second_factor.confirm", "U", entities=(Entity("user", row.name),)))
    return Done()


async def reseal(uow: UnitOfWork[Ports]) -> int:
    """Bring the secrets of authenticators under the newest key, so that an older one can be destroyed; answers how many."""
    seal, moved = uow.ports.seal, 0
    for row in await uow.all(select(users.c.name, users.c.factor, users.c.factor_new)):
        old = {"factor": row.factor, "factor_new": row.factor_new}
        new = {name: seal.close(seal.open(value, row.name), row.name) for name, value in old.items() if value and seal.is_old(value)}
        if new:
            await uow.execute(update(users).where(users.c.name == row.name).values(new))
            moved += 1
    return moved

"""The site's access policy: proposals by their digest, and which were in force, in order."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.governance import GetPolicy, PolicyChanged, PolicyView
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.security.access import Rules, check_site, policies_of
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.signatures import evidence
from medmesh_governance.tables import policies, policy_texts

ACTION = "policy.change"
TARGET = "site-policy"


def text_digest(text: str) -> str:
    """What is approved: the exact text."""
    return hashlib.sha256(text.encode()).hexdigest()


def summary(text: str) -> str:
    """The ids of its policies, for who approves."""
    return ", ".join(one["id"] for one in policies_of(text))[:400]


async def keep(uow: UnitOfWork[Ports], text: str) -> str:
    """The digest of a text that fits, kept. Raises `Problem` (`access.policy_invalid`) with the validator's words."""
    check_site(text)
    digest = text_digest(text)
    await uow.execute(upsert(policy_texts).values(digest=digest, text=text, at=uow.now).on_conflict_do_nothing())
    return digest


async def adopt(uow: UnitOfWork[Ports], approval: Any) -> None:
    """Put the approved text in force, for every service; checked again, because the rules of the platform may have changed meanwhile."""
    row = await uow.first(select(policy_texts).where(policy_texts.c.digest == approval.digest))
    if row is None or approval.target != TARGET:
        raise Problem("request.not_found", kind="policy", id=approval.digest[:16])
    check_site(row.text)
    number = (await _newest(uow)).number + 1
    await uow.execute(insert(policies).values(number=number, digest=row.digest, approval=approval.approval, at=uow.now))
    uow.emit(PolicyChanged(number=number, digest=row.digest))
    entities = (Entity("policy", TARGET, str(number), row.digest),)
    uow.audit(AuditEntry(ACTION, "U", entities=entities, approval=await evidence(uow, approval), detail={"bundle": Rules(row.text).digest}))


async def _newest(uow: UnitOfWork[Ports]) -> PolicyView:
    wanted = select(policies, policy_texts.c.text).join(policy_texts, policy_texts.c.digest == policies.c.digest)
    row = await uow.first(wanted.order_by(policies.c.number.desc()).limit(1))
    if row is None:
        return PolicyView(number=0, text="", digest=text_digest(""))
    return PolicyView(number=row.number, text=row.text, digest=row.digest, approval=row.approval)


@HANDLERS.answers(GetPolicy)
async def get_policy(_query: Envelope[GetPolicy], uow: UnitOfWork[Ports]) -> PolicyView:
    """The policy in force."""
    return await _newest(uow)

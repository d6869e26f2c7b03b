"""Whether a plan can be answered and can begin: who is invited has a key that counts, and its times are such as people mean."""

from __future__ import annotations

from datetime import datetime, timedelta

from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.security.roster import Roster

ANSWER = timedelta(days=90)
"""How long an invitation may stand at most: who is invited, and what their code may do, is another matter after that."""
START = timedelta(days=365)
"""How far ahead a start may lie."""
PAST = timedelta(days=1)
"""How long ago a start may lie: "at once" was said a while before it is heard."""


def check(plan: Plan, roster: Roster, now: datetime) -> None:
    """Raise `Problem` (`federation.strangers_invited`, `federation.accept_by`, `federation.start_at`) for a plan that nobody is asked to
    accept."""
    if unknown := roster.lacks(plan.participants):
        raise Problem("federation.strangers_invited", hospitals=", ".join(unknown[:20]), count=len(unknown))
    if not now < plan.accept_by <= now + ANSWER:
        raise Problem("federation.accept_by", given=_shown(plan.accept_by), now=_shown(now), days=ANSWER.days)
    if not now - PAST <= plan.start_at <= now + START:
        raise Problem("federation.start_at", given=_shown(plan.start_at), now=_shown(now), days=START.days)


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")

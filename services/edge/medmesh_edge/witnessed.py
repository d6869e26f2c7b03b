"""The start of a federation in the platform's log, under a checkpoint that the witnesses of this hospital's own roster saw: so that what
is begun here is on record where nobody can take it back, before anything is trained."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.client.gateway import Gateway
from medmesh.contracts.audit import Events
from medmesh.contracts.audit import Evidence as Shown
from medmesh.errors import Problem
from medmesh.ledger.proof import Evidence, evidence_file, read_evidence, verify_evidence
from medmesh.security.roster import Roster
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge.outgoing import is_transient
from medmesh_edge.ports import Site
from medmesh_edge.tables import given, witnessed

VERB = "federation.move"
NOT_YET = frozenset(("ledger.quorum", "request.not_found"))
"""What passes by itself when the log and its witnesses are honest: the record is on its way, or its checkpoint to the witnesses."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
_INSERT = upsert(witnessed)
_KEEP = Prepared(
    _INSERT.values(given(witnessed)).on_conflict_do_update(
        index_elements=["federation"], set_={n: _INSERT.excluded[n] for n in given(witnessed)}
    )
)


async def prove(site: Site, gateway: Gateway, federation: str, plan_hash: str) -> None:
    """Fetch the proof, verify it and keep it; waits a while for the log and its witnesses. Raises `Problem` (`federation.unwitnessed`)."""
    clock = asyncio.get_running_loop().time
    end, pause = clock() + site.settings.witness_seconds, FIRST_PAUSE
    while True:
        try:
            evidence = await _fetch(gateway, federation)
            check(evidence, site.roster(), federation, plan_hash)
            break
        except Problem as problem:
            if is_transient(problem):
                raise
            if problem.code not in NOT_YET or clock() > end:
                raise Problem("federation.unwitnessed", federation=federation, reason=problem.detail()) from None
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    async with site.unit() as uow:
        await uow.rows(_KEEP, federation=federation, plan_hash=plan_hash, evidence=evidence_file(evidence), at=uow.now)
        about = (Entity("federation", federation, digest=plan_hash),)
        uow.audit(AuditEntry("federation.witnessed", "R", entities=about, detail={"seq": evidence.proof.index}))


async def _fetch(gateway: Gateway, federation: str) -> Evidence:
    """What the platform shows of the start. Raises `Problem` (`request.not_found` while there is nothing)."""
    found = await gateway.ask("/v1/audit/events", Events, entity=f"federation:{federation}", verb=VERB)
    seq = next((one.seq for one in found.events if _begins(one.record)), None)
    if seq is None:
        raise Problem("request.not_found", kind="start in the log", id=federation)
    shown = await gateway.ask(f"/v1/audit/events/{seq}/proof", Shown)
    return read_evidence(shown.model_dump_json())


def _begins(record: dict[str, Any]) -> bool:
    detail = record.get("detail")
    return isinstance(detail, dict) and detail.get("to") == "running"


def check(evidence: Evidence, roster: Roster, federation: str, plan_hash: str) -> None:
    """Raise a `Problem` unless it proves that federation started exactly this plan: by the roster's log, before its witnesses."""
    record, _ = verify_evidence(evidence, roster.log_policy())
    about = [(entity.get("type"), entity.get("id"), entity.get("digest")) for entity in record["entities"]]
    whole = record["sub"] == VERB and record["out"] == 0 and record["src"]["service"] == "federation" and _begins(record)
    if not whole or ("federation", federation, plan_hash) not in about:
        raise Problem("ledger.not_the_record", seq=evidence.proof.index)

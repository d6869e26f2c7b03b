"""Bodies go when policy, holds, locks and two people agree, and in no other way; what stays still proves everything else."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import select
from tests.contract.test_sealed import keys
from tests.integration.test_audit_sequencer import newest
from tests.logs import audit_service, connected, copied, faults, hand_in, records, vkey
from tests.platform import Platform

from medmesh.contracts.audit import GetRetention, LogChanged, PlaceHold, RequestLift, RequestPruning, RequestRetention, RetentionView
from medmesh.contracts.governance import ApprovalGranted, ApprovalRefused
from medmesh.contracts.message import Command
from medmesh.embedded.testing import RunningServers
from medmesh.ledger import proof
from medmesh.service.settings import ObjectSettings
from medmesh.store.objects.sealed import SealedStore
from medmesh_audit import pruning, queries, search
from medmesh_audit.anomalies import Anomalies
from medmesh_audit.restore import restore
from medmesh_audit.sealing import Sealer
from medmesh_audit.tables import entries

pytestmark = pytest.mark.xdist_group("audit-pruning")
SECONDS = 3
ONCE = pruning.once


@asynccontextmanager
async def old_log(servers: RunningServers, private: Path, unique: str) -> AsyncIterator[tuple[Platform, Sealer]]:
    """600 records of seven years ago, sealed under a lock that is over in a moment."""
    private.chmod(0o700)
    where = ObjectSettings(s3_url=servers.s3_url, s3_credentials=keys(servers, private), keys=str(private / "kek"))
    bucket = f"prune-{unique}"
    slow = {"seal_seconds": 3600, "inspect_seconds": 3600}
    async with audit_service(servers, private, objects=where, sealed_bucket=bucket, **slow) as p:
        assert where.s3_credentials is not None
        store = await SealedStore.open(servers.s3_url, bucket, where.s3_credentials, retain_days=200)
        store._retain = timedelta(seconds=SECONDS)
        sealer = Sealer(p.runtimes["audit"], store)
        for first in (1, 301):
            await hand_in(p.bus, "governance", records("governance", first, 300))
        await sealer.run()
        await aged(servers, p, "7 years")
        yield p, sealer
        store.close()


async def aged(servers: RunningServers, p: Platform, age: str) -> None:
    """Nobody can wait for years: the superuser turns clocks back."""
    async with connected(servers, p, superuser=True) as sql:
        for table in ("entries", "seals"):
            await sql.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER; UPDATE {table} SET at = at - interval '{age}'")
            await sql.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER no_change; ALTER TABLE {table} ENABLE ALWAYS TRIGGER no_truncate")


async def asked(p: Platform, command: Command) -> dict[str, Any]:
    done = await p.send(command, p.person("zhao", "audit_administrator"))
    assert done.succeeded, done.problem
    assert done.result is not None
    return done.result


async def refused(p: Platform, command: Command) -> str:
    done = await p.send(command, p.person("zhao", "audit_administrator"))
    assert not done.succeeded
    assert done.problem is not None
    return str(done.problem["code"])


async def granted(p: Platform, made: dict[str, Any], approval: str) -> None:
    action = made["request"]["action"]
    token = p.approval(action, made["change"], made["digest"], approval=approval)
    event = ApprovalGranted(approval=approval, action=action, target=made["change"], digest=made["digest"], token=token)
    await p.publish(event, source="governance")


async def view(p: Platform) -> RetentionView:
    return await p.ask(GetRetention(), RetentionView, p.person("qian", "auditor"))


async def told(p: Platform, made: dict[str, Any]) -> list[tuple[str, str, int, str]]:
    """What is on record about a change, in the log or on the way there."""
    runtime = p.runtimes["audit"]
    async with runtime.unit() as uow:
        logged = [row.body for row in await uow.all(select(entries.c.body).order_by(entries.c.seq))]
    found = {one["id"]: one for one in [json.loads(body) for body in logged if body] + await p.audited("audit")}
    about = [one for one in found.values() if made["change"] in {thing["id"] for thing in one["entities"]}]
    return [(one["sub"], one["act"], one["out"], one["why"]) for one in about]


async def changed(p: Platform, made: dict[str, Any], sealer: Sealer | None = None) -> LogChanged:
    """When it is done; a pruning is done by hand here, with the sealer whose locks are short."""
    async with asyncio.timeout(30):
        while True:
            if sealer is not None:
                await ONCE(p.runtimes["audit"].ports, sealer)
            if found := [e.data for e in p.emitted(LogChanged) if e.data.change == made["change"]]:
                return found[0]
            await asyncio.sleep(0.1)


async def test_it_goes_as_approved_and_everything_else_still_proves_itself(
    servers: RunningServers, private: Path, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with old_log(servers, private, unique) as (p, sealer):
        runtime = p.runtimes["audit"]
        monkeypatch.setattr(pruning, "once", lambda ports, sealer: asyncio.sleep(0, False))  # the service's own, whose locks are long
        async with runtime.unit() as uow:
            row = await search.entry(uow, "7", None)
            before = await queries.evidence(uow, row, await newest(uow), queries.Upper())
        made = await asked(p, RequestPruning())
        assert made["request"]["minimum"] == 512, "two whole bundles"
        assert await refused(p, RequestPruning(below=200)) == "audit.nothing_to_prune"
        await asyncio.sleep(SECONDS + 1)
        await granted(p, made, "a-1")
        assert (await changed(p, made, sealer)).minimum == 512
        copy = await copied(runtime, tmp_path / "copy")
        assert await faults(copy, vkey(private)) == []
        here = [json.loads(line)["seq"] for line in (copy / "bodies.jsonl").read_text().splitlines()]
        assert min(here) == 512
        assert proof.verify(before.proof, base64.b64decode(before.leaf), vkey(private)).size == 600, "the old proof"
        async with runtime.unit() as uow:
            later = await queries.evidence(uow, await search.entry(uow, "550", None), await newest(uow), queries.Upper())
        proof.verify(later.proof, base64.b64decode(later.leaf), vkey(private))
        assert (await view(p)).minimum == 512
        assert await told(p, made) == [("retention.request", "C", 0, ""), (pruning.PRUNE, "D", 0, ""), ("log.pruned", "D", 0, "")]

        async with connected(servers, p, superuser=True) as sql:
            assert await sql.fetchval("SELECT count(*) FROM entries WHERE body = ''") == 512
            assert await sql.fetchval("SELECT count(*) FROM facts WHERE seq < 512") == 0
        left = {version.key for version in await sealer.store.versions("bundle/")}
        assert all(not key.startswith(("bundle/000", "bundle/001")) for key in left), "the sealed bodies went too"
        await sealer.run()
        assert await restore(sealer.store, vkey(private), tmp_path / "restored") >= 600
        assert await faults(tmp_path / "restored", vkey(private)) == []

        async with runtime.unit() as uow:
            rules = {found.rule for found in await Anomalies(runtime)._state(uow)}
        assert rules.isdisjoint({"record_altered", "root_mismatch"}), "a watcher that starts anew accuses nobody"
        # One more body than was approved is tampering.
        lines = (copy / "bodies.jsonl").read_text().splitlines()
        (copy / "bodies.jsonl").write_text("\n".join(lines[1:]))
        found = await faults(copy, vkey(private))
        assert [(fault["check"], fault["seq"]) for fault in found] == [("missing", 512)]


async def test_locks_holds_and_policy_each_forbid_it(servers: RunningServers, private: Path, unique: str) -> None:
    async with old_log(servers, private, unique) as (p, _):
        everything = (await asked(p, PlaceHold(reason="a court asks")))["hold"]
        assert await refused(p, RequestPruning()) == "audit.nothing_to_prune"
        lifted = await asked(p, RequestLift(hold=everything))
        assert [hold.reason for hold in (await view(p)).holds] == ["a court asks"], "asking lifts nothing"
        await granted(p, lifted, "a-1")
        await changed(p, lifted)
        assert (await view(p)).holds == ()

        longer = await asked(p, RequestRetention(kind="clinical", days=36_500))
        await granted(p, longer, "a-2")
        await changed(p, longer)
        assert (await view(p)).days["clinical"] == 36_500
        assert await refused(p, RequestPruning()) == "audit.nothing_to_prune", "training.finish is clinical"
        shorter = await asked(p, RequestRetention(kind="clinical", days=180))
        await granted(p, shorter, "a-3")
        await changed(p, shorter)

        made = await asked(p, RequestPruning(below=256))
        await asked(p, PlaceHold(reason="another court", org="platform"))
        await granted(p, made, "a-4")
        async with asyncio.timeout(20):
            while next(c for c in (await view(p)).changes if c.change == made["change"]).state != "failed":
                await asyncio.sleep(0.1)
        assert (await view(p)).minimum == 0, "a hold that came between request and approval"

        # What an approver refused is closed, whatever is granted afterwards; a refusal of something else closes nothing.
        again = await asked(p, RequestRetention(kind="clinical", days=200))
        said = ApprovalRefused(approval="a-5", action="retention.change", target=again["change"], digest=made["digest"])
        await p.publish(said, source="governance")
        await p.publish(said.model_copy(update={"digest": again["digest"]}), source="governance")
        async with asyncio.timeout(20):
            while next(c for c in (await view(p)).changes if c.change == again["change"]).state != "refused":
                await asyncio.sleep(0.1)
        assert await told(p, made) == [("retention.request", "C", 0, ""), ("retention.request", "D", 4, "audit.held")]
        assert await told(p, again) == [("retention.request", "C", 0, ""), ("retention.request", "U", 4, "audit.change_refused")]
        assert await told(p, lifted) == [("retention.request", "C", 0, ""), ("log.hold", "D", 0, "")]
        assert await told(p, longer) == [("retention.request", "C", 0, ""), ("retention.change", "U", 0, "")]


async def test_the_database_lets_bodies_go_in_this_way_only(servers: RunningServers, private: Path, unique: str) -> None:
    async with old_log(servers, private, unique) as (p, _):
        for superuser in (False, True):
            async with connected(servers, p, superuser=superuser) as sql:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await sql.execute("UPDATE entries SET salt = '', body = '' WHERE seq = 3")
        async with connected(servers, p, superuser=False) as sql:
            await sql.execute("SELECT prune(0, 1000)")
            assert await sql.fetchval("SELECT count(*) FROM entries WHERE body = ''") == 0, "nothing was written down"
            with pytest.raises(asyncpg.CheckViolationError):
                await sql.execute("INSERT INTO prunings VALUES (100, 900, 'x', now())")
            await sql.execute("INSERT INTO prunings VALUES (256, 599, 'x', now())")
        async with connected(servers, p, superuser=True) as sql:
            for statement in (
                "UPDATE entries SET salt = '', body = '' WHERE seq = 256",
                "UPDATE entries SET body = 'other', salt = '' WHERE seq = 3",
                "UPDATE entries SET salt = '', body = '', leaf = '' WHERE seq = 3",
                "DELETE FROM entries WHERE seq = 3",
                "UPDATE prunings SET minimum = 512",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await sql.execute(statement)
            await sql.execute("UPDATE entries SET salt = '', body = '' WHERE seq = 3")


async def test_a_body_that_went_without_a_record_is_tampering(servers: RunningServers, private: Path, unique: str, tmp_path: Path) -> None:
    """The service's own role, in the wrong hands, can write a minimum index down; the log does not say so."""
    async with old_log(servers, private, unique) as (p, _):
        async with connected(servers, p, superuser=False) as sql:
            await sql.execute("INSERT INTO prunings VALUES (256, 599, 'x', now())")
            await sql.execute("SELECT prune(0, 256)")
            await sql.execute("DELETE FROM facts WHERE seq < 256")
        found = await faults(await copied(p.runtimes["audit"], tmp_path / "copy"), vkey(private))
        assert [(fault["check"], fault["seq"]) for fault in found] == [("missing", 0)]


@pytest.mark.parametrize("days", [0, 179])
def test_the_law_s_floor_cannot_be_set_lower(days: int) -> None:
    with pytest.raises(ValueError, match="180"):
        RequestRetention(kind="operations", days=days)

"""The log of a running platform under witnesses, and verified where it lies: over HTTP, in PostgreSQL, after alterations there."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy.engine import make_url
from tests.ledgers import entry
from tests.world import World, small_world

from medmesh.cli import main
from medmesh.cli.session import save
from medmesh.client.credentials import Person
from medmesh.client.doors import bound_token, open_door
from medmesh.contracts.audit import AuditRecord
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.policy import Policy, parse_policy
from medmesh.ledger.proof import read_evidence, verify_evidence
from medmesh.ledger.remote import Served
from medmesh.ledger.report import Report
from medmesh.ledger.verify import Wanted, verify_log
from medmesh.security.keys import Identity
from medmesh.store.audit_copy import Rows
from medmesh.telemetry.metrics import WITNESS_ASKED, WITNESS_REFUSING
from medmesh.witness.server import Witness, server
from medmesh.witness.site import Site, create
from medmesh_audit.domain import admit

ORIGIN = "medmesh/log"


class Hospital:
    """A witness that can be stopped and started at the same port."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._running: tuple[Witness, threading.Thread] | None = None

    def start(self) -> None:
        listening = server(self.site)
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        self._running = listening, thread

    def stop(self) -> None:
        if self._running is not None:
            listening, thread = self._running
            listening.shutdown()
            thread.join()
            listening.server_close()
            self._running = None


@asynccontextmanager
async def witnessed(
    servers: RunningServers, folder: Path, ports: Ports, first: Callable[[dict[str, Hospital]], Awaitable[None]] | None = None
) -> AsyncIterator[tuple[World, Policy, dict[str, Hospital]]]:
    """A platform whose log wants two of three witnesses; `first` happens to them before the log shows itself."""
    vkey = note.verifier_key(ORIGIN, Identity.ensure(folder / "keys" / "log.nk").private_key.public_key())
    names = ("renji", "huashan", "regulator")
    hospitals = {
        name: Hospital(create(folder / f"witness-{name}", f"{name}/witness", [vkey], port=port))
        for name, port in zip(names, ports.take(*(f"witness-{name}" for name in names)), strict=True)
    }
    lines = [f"log {vkey}", *(f"witness {name} {h.site.vkey} http://127.0.0.1:{h.site.port}" for name, h in hospitals.items())]
    file = folder / "policy.txt"
    file.write_text("\n".join([*lines, "group enough 2 " + " ".join(names), "quorum enough", ""]))
    own = {"witness_policy": file, "witness_seconds": 0.05, "witness_timeout_seconds": 2, "witness_patience_seconds": 1.0}
    try:
        if first is not None:
            await first(hospitals)
        async with small_world(servers, folder, ports, settings={"audit": own}) as world:
            yield world, parse_policy(file.read_bytes()), hospitals
    finally:
        for hospital in hospitals.values():
            hospital.stop()


async def until(found: Callable[[], Any], seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while not (answer := await found()):
            await asyncio.sleep(0.05)
        return answer


async def test_a_checkpoint_is_shown_when_enough_witnesses_saw_it(
    servers: RunningServers, private: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with witnessed(servers, private, ports) as (world, policy, hospitals):
        admin = await world.admin()
        auditor = await world.user(admin, "qian", "auditor")
        async with await open_door(auditor, "audit", world.audit) as door:

            async def shown(state: str) -> httpx.Response | None:
                answer = await door.raw("GET", "/log/checkpoint")
                return answer if answer.headers["Medmesh-Witnesses"] == state else None

            await until(lambda: shown("pending"))
            with pytest.raises(Problem) as caught:
                policy.verify((await door.raw("GET", "/log/checkpoint")).text)
            assert (caught.value.code, caught.value.params["got"]) == ("ledger.quorum", "-")

            hospitals["renji"].start()
            hospitals["regulator"].start()
            answer = await until(lambda: shown("witnessed"))
            assert set(policy.verify(answer.text).witnesses) >= {"renji", "regulator"}

            # Each new record gets under a witnessed checkpoint, and its proof says who saw it.
            await world.user(admin, "li", "researcher")

            async def proven() -> Any:
                made = (await door.request("GET", "/v1/events", query={"entity": "user:li"}))["events"]
                found = await door.request("GET", f"/v1/events/{made[0]['seq']}/proof") if made else {"witnesses": ""}
                return found if found["witnesses"] == "witnessed" else None

            record, believed = verify_evidence(read_evidence(json.dumps(await until(proven))), policy)
            assert {"type": "user", "id": "li"}.items() <= record["entities"][0].items()
            assert len(believed.witnesses) >= 2

            # One witness sleeps: the others are enough, and it catches up when it is back.
            hospitals["renji"].stop()
            hospitals["huashan"].start()
            await world.user(admin, "wang", "researcher")
            asking = world.p.runtimes["audit"].ports.witnesses
            await until(lambda: _saw(world, "huashan"))
            hospitals["renji"].start()
            await until(lambda: _saw(world, "renji"))
            # An answer that was lost on the way: huashan saw more than is remembered here, and tells so.
            asking._known["huashan"] = 0
            await world.user(admin, "zhao", "researcher")
            await until(lambda: _saw(world, "huashan"))
            assert asking._refusing == set()

            bound = await bound_token(auditor, "audit", world.audit)
            report = await asyncio.to_thread(_verify, Served(f"{world.audit}/log", lambda address, _: bound.at(address), world.ca), policy)
            assert report.faults == []
            assert report.bodies == report.size > 5
            assert len(report.witnesses) >= 2

            # The same with one command, as the signed-in auditor; reading the log's bodies is recorded in it.
            assert isinstance(auditor.credentials, Person)
            monkeypatch.setenv("MEDMESH_SESSION", str(private / "session.json"))
            save(world.url, world.ca, auditor.credentials.session, "qian")

            def command(*more: str) -> int:
                with pytest.raises(SystemExit) as ended:
                    main(["audit", "verify", "log", "--policy", str(private / "policy.txt"), *more, f"{world.audit}/log"])
                assert isinstance(ended.value.code, int)
                return ended.value.code

            assert await asyncio.to_thread(command, "--keep", str(private / "kept")) == 0
            assert await asyncio.to_thread(command, "--from", str(private / "kept")) == 0

            async def recorded() -> Any:
                return (await door.request("GET", "/v1/events", query={"verb": "audit.copy"}))["events"]

            await until(recorded)  # records reach the log after the effect


async def _saw(world: World, name: str) -> bool:
    """Whether a witness cosigned the newest checkpoint."""
    async with world.p.runtimes["audit"].unit() as uow:
        from sqlalchemy import func, select

        from medmesh_audit.tables import checkpoints, cosignatures

        newest = (await uow.execute(select(func.max(checkpoints.c.size)))).scalar_one()
        seen = (await uow.execute(select(func.max(cosignatures.c.size)).where(cosignatures.c.witness == name))).scalar_one()
        return bool(newest is not None and newest == seen)


def _verify(copy: Any, policy: Policy, **wanted: Any) -> Report:
    try:
        return verify_log(copy, Wanted(policy, **wanted))
    finally:
        copy.close()


async def test_witnesses_join_a_running_log_and_are_not_lost_by_accident(servers: RunningServers, private: Path, ports: Ports) -> None:
    """The policy is a file that the service follows; what cannot be used, or is gone, leaves the policy of before."""
    async with witnessed(servers, private, ports) as (world, policy, hospitals):
        file = private / "policy.txt"
        three = file.read_text()
        asking = world.p.runtimes["audit"].ports.witnesses
        admin = await world.admin()
        auditor = await world.user(admin, "qian", "auditor")
        async with await open_door(auditor, "audit", world.audit) as door:
            fourth = Hospital(create(private / "witness-late", "tongji/witness", [str(policy.logs[0])], port=ports.take("late")[0]))
            for one in (*hospitals.values(), fourth):
                one.start()
            try:
                for unusable in ("", "quorum nobody\n", three.replace("medmesh/log+", "other/log+")):
                    file.write_text(unusable)
                    await asyncio.sleep(1.2)
                    assert asking.text == three
                line = f"witness tongji {fourth.site.vkey} http://127.0.0.1:{fourth.site.port}\n"
                file.write_text(
                    three.replace("group enough 2", f"{line}group all 2 tongji enough\ngroup enough 2").replace(
                        "quorum enough", "quorum all"
                    )
                )
                # A group may name only what stands before it.
                await asyncio.sleep(1.2)
                assert asking.text == three
                four = three.replace("quorum enough", f"{line}group with-tongji all tongji enough\nquorum with-tongji")
                file.write_text(four)

                async def taken() -> Any:
                    answer = await door.raw("GET", "/log/checkpoint")
                    # The newest may still be one that was enough by the policy of before.
                    seen = asking.text == four and answer.headers["Medmesh-Witnesses"] == "witnessed" and "tongji/" in answer.text
                    return answer.text if seen else None

                assert "tongji" in parse_policy(four.encode()).verify(await until(taken)).witnesses

                async def told() -> Any:
                    found = (await door.request("GET", "/v1/events", query={"verb": "audit.witness_policy"}))["events"]
                    return [entry["record"]["detail"]["witnesses"] for entry in found] == [3, 4]

                await until(told)
            finally:
                fourth.stop()


async def test_a_witness_that_knows_another_history_raises_the_alarm(servers: RunningServers, private: Path, ports: Ports) -> None:
    async def another(hospitals: dict[str, Hospital]) -> None:
        """Somebody with the log's key shows renji a log of 10,000 records, which this one is not."""
        key = Identity.load(private / "keys" / "log.nk").private_key
        forged = note.Checkpoint(ORIGIN, 10_000, b"f" * 32)
        hospitals["renji"].start()
        hospitals["huashan"].start()
        async with httpx.AsyncClient(trust_env=False) as http:
            body = f"old 0\n\n{note.sign(forged.text(), ORIGIN, key)}".encode()
            assert (await http.post(f"http://127.0.0.1:{hospitals['renji'].site.port}/add-checkpoint", content=body)).status_code == 200

    async with witnessed(servers, private, ports, another) as (world, policy, hospitals):
        admin = await world.admin()
        auditor = await world.user(admin, "qian", "auditor")
        async with await open_door(auditor, "audit", world.audit) as door:

            async def recorded() -> Any:
                return (await door.request("GET", "/v1/events", query={"verb": "audit.witness_refused"}))["events"]

            found = await until(recorded)
            assert [record["record"]["detail"] for record in found] == [{"status": 409, "theirs": 10_000}]
            assert found[0]["record"]["entities"][0]["id"] == "renji"
            assert WITNESS_REFUSING.labels("renji")._value.get() == 1
            assert WITNESS_REFUSING.labels("huashan")._value.get() == 0
            # The alarm is raised once, although renji is asked again and again, and the log goes on without it.
            await until(lambda: _saw(world, "huashan"))
            await asyncio.sleep(0.3)
            assert len(await recorded()) == 1

            async def waiting() -> bool:
                """What is there is shown, although it is not enough."""
                answer = await door.raw("GET", "/log/checkpoint")
                assert answer.headers["Medmesh-Witnesses"] == "pending"
                return "— huashan/witness " in answer.text

            await until(waiting)
            # Somebody answers at the regulator's address with another key: that counts for nothing.
            (vkey,) = map(str, policy.logs)
            liar = Hospital(create(private / "liar", "regulator/witness", [vkey], port=hospitals["regulator"].site.port))
            liar.start()
            wrong = WITNESS_ASKED.labels("regulator", "wrong")

            async def answered() -> bool:
                return bool(wrong._value.get() > 0)

            await until(answered)
            assert not await _saw(world, "regulator")
            assert (await door.raw("GET", "/log/checkpoint")).headers["Medmesh-Witnesses"] == "pending"
            liar.stop()
            hospitals["regulator"].start()

            async def quorum() -> bool:
                return (await door.raw("GET", "/log/checkpoint")).headers["Medmesh-Witnesses"] == "witnessed"

            await until(quorum)


async def test_what_a_superuser_does_to_the_database_is_found_there(servers: RunningServers, private: Path, ports: Ports) -> None:
    async with witnessed(servers, private, ports) as (world, policy, hospitals):
        for hospital in hospitals.values():
            hospital.start()
        await world.user(await world.admin(), "qian", "auditor")
        runtime = world.p.runtimes["audit"]
        for begin in range(1, 301, 100):
            made = [(n, entry(n, n=n, emitter="edge:renji")) for n in range(begin, begin + 100)]
            batch = [AuditRecord(id=json.loads(e.body)["id"], n=n, body=base64.b64encode(e.body).decode()) for n, e in made]
            await runtime.ports.sequencer.append([admit(record, "edge:renji") for record in batch])
        await until(lambda: _saw(world, "renji"))
        await until(lambda: _saw(world, "huashan"))
        database = make_url(runtime.settings.database_url).database
    # The platform is stopped: nobody writes but the attacker.
    dsn = make_url(servers.postgres_url).set(database=database, drivername="postgresql").render_as_string(hide_password=False)
    sql = await asyncpg.connect(dsn)
    kept = await sql.fetchval("SELECT note FROM audit.checkpoints ORDER BY size DESC LIMIT 1")

    async def report(by: Policy = policy, **wanted: Any) -> Report:
        return await asyncio.to_thread(lambda: _verify(Rows(dsn), by, **wanted))

    clean = await report(kept=kept)
    assert clean.faults == []
    assert clean.bodies == clean.size > 300

    def command() -> int:
        """As an auditor with a right to SELECT runs it."""
        with pytest.raises(SystemExit) as ended:
            main(["audit", "verify", "db", "--policy", str(private / "policy.txt"), "--json", dsn])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    assert await asyncio.to_thread(command) == 0
    tables = ("entries", "tiles", "checkpoints", "cosignatures", "state", "emitters")
    for table in tables:
        await sql.execute(f"ALTER TABLE audit.{table} DISABLE TRIGGER USER")  # as a superuser can
    outcome = """convert_to(replace(convert_from(body, 'UTF8'), '"out":0', '"out":4'), 'UTF8')"""
    smallest = "(SELECT min(size) FROM audit.checkpoints)"
    attacks: dict[str, tuple[str, str]] = {
        f"UPDATE audit.entries SET body = {outcome} WHERE seq = 270": ("body", "out"),
        "UPDATE audit.entries SET salt = substring(sha256(salt) for 16) WHERE seq = 2": ("body", "-"),
        "UPDATE audit.entries SET emitter = 'nobody' WHERE seq = 2": ("column", "emitter"),
        "UPDATE audit.entries SET hash = sha256(hash) WHERE seq = 2": ("column", "hash"),
        "UPDATE audit.entries SET hash = sha256(hash) WHERE seq = 270": ("tile", ""),
        "DELETE FROM audit.entries WHERE seq = 2": ("entries", ""),
        "DELETE FROM audit.entries WHERE seq >= 290": ("entries", ""),
        "UPDATE audit.tiles SET hashes = sha256(hashes) || substring(hashes from 33)": ("tile", ""),
        "UPDATE audit.tiles SET root = sha256(root)": ("column", "tiles.root"),
        "DELETE FROM audit.tiles": ("tile", ""),
        f"UPDATE audit.checkpoints SET root = sha256(root) WHERE size = {smallest}": ("history", ""),
        f"UPDATE audit.checkpoints SET note = replace(note, E'\\n\\n', E'\\n\\n\\n') WHERE size = {smallest}": ("history", ""),
        "DELETE FROM audit.cosignatures WHERE witness <> 'renji'": ("witness", ""),
        "UPDATE audit.state SET size = size + 1": ("column", "state.size"),
        "UPDATE audit.emitters SET n = n - 1 WHERE emitter = 'edge:renji'": ("column", "emitters.n (edge:renji)"),
    }
    for attack, (check, field) in attacks.items():
        saved = {table: await sql.fetch(f"SELECT * FROM audit.{table}") for table in tables}
        await sql.execute(attack)
        found = await report()
        assert found.code == 1, attack
        if check == "body":
            assert await asyncio.to_thread(command) == 1
        assert check in {fault.check for fault in found.faults}, (attack, found.faults)
        assert field in {"", *(fault.problem.params.get("field") for fault in found.faults)}, (attack, found.faults)
        for table, rows in saved.items():
            await sql.execute(f"DELETE FROM audit.{table}")
            await sql.copy_records_to_table(table, schema_name="audit", records=[tuple(row) for row in rows])
    assert (await report(kept=kept)).faults == []
    # Rolled back to an earlier moment, everything that is left is genuine; only who kept a checkpoint can tell.
    smaller = await sql.fetchval("SELECT size FROM audit.checkpoints ORDER BY size DESC OFFSET 1 LIMIT 1")
    for table, column in (("entries", "seq"), ("checkpoints", "size - 1"), ("cosignatures", "size - 1")):
        await sql.execute(f"DELETE FROM audit.{table} WHERE {column} >= $1", smaller)
    await sql.execute("DELETE FROM audit.tiles WHERE (number + 1) * 256 > $1", smaller)
    await sql.execute("UPDATE audit.state SET size = $1", smaller)
    await sql.execute("UPDATE audit.emitters e SET n = (SELECT max(n) FROM audit.entries WHERE emitter = e.emitter)")
    await sql.close()
    alone = Policy(policy.logs)
    assert (await report(alone)).faults == []
    rolled = await report(alone, kept=kept)
    assert [(fault.check, fault.problem.code) for fault in rolled.faults] == [("kept", "ledger.rolled_back")]

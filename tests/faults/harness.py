"""A real platform under load while its processes are killed, and what its effects are when counted from outside.

The platform is the one `medmesh up` starts. The load comes over HTTPS as from anybody; whatever a request fails with, it is
sent again with the same idempotency key. Effects are counted past the platform: in the database as its owner, in the stream
itself, and in an exported copy of the log.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from nats.aio.client import Client
from nats.js import api
from tests.rosters import Rosters

from medmesh.client import Authenticator, Gateway, sign_in
from medmesh.client.approvals import decide
from medmesh.client.audit import at_the_door, export_log
from medmesh.client.credentials import Person
from medmesh.client.doors import open_door
from medmesh.client.gateway import ATTEMPTS
from medmesh.embedded import probe
from medmesh.embedded.run import Run, running
from medmesh.errors import Problem
from medmesh.security import signing
from medmesh.security.roster_file import log_only
from medmesh_edge import roster
from medmesh_edge.enrolment import enrol
from medmesh_edge.settings import Layout, Settings

SOAK = bool(os.environ.get("MEDMESH_SOAK"))
EVENTS = 10_000 if SOAK else 2_000
KILLS = 8 if SOAK else 3
SETTLE_SECONDS = 120.0 if SOAK else 60.0
PASSWORD = "Correct-Horse-7-Battery"
MEDMESH = (sys.executable, "-P", "-m", "medmesh")
CLIENTS = 16


# --- the platform ---------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """A running platform, its people and one hospital, by what outlives an event loop."""

    data: Path
    sessions: dict[str, Person] = field(default_factory=dict)
    hospital: Path = Path()
    rosters: Rosters = field(init=False)

    @classmethod
    def up(cls, folder: Path) -> Stage:
        """Start it as anybody would, with people in every role and one hospital enrolled."""
        stage = cls(folder / "platform")
        (stage.data / "settings").mkdir(parents=True, mode=0o700)
        (stage.data / "settings" / "federation.json").write_text('{"require_rehearsal": false, "code_reviewers": 0}')
        subprocess.run([*MEDMESH, "up", "--data", str(stage.data)], check=True, stdout=subprocess.DEVNULL, timeout=120)
        try:
            asyncio.run(stage._people(folder))
        except BaseException:
            stage.down()
            raise
        return stage

    def down(self) -> None:
        """Stop it in order."""
        subprocess.run([*MEDMESH, "down", "--data", str(self.data)], check=True, stdout=subprocess.DEVNULL, timeout=120)

    @property
    def run(self) -> Run:
        """What runs now."""
        found = running(self.data)
        assert found is not None, "the supervisor itself is gone"
        return found

    def door(self, person: str = "", *, service: str = "gateway", token: str = "", attempts: int = ATTEMPTS) -> Gateway:
        """A client for somebody."""
        credentials = Person(token) if token else self.sessions.get(person)
        return Gateway(self.run.urls[service], ca=self.run.paths["ca"], credentials=credentials, attempts=attempts)

    async def decide(self, wu: Gateway, approval: str) -> None:
        """Wu approves, signed with her own key."""
        await decide(wu, approval, self.rosters.signer("person:wu@platform"))

    async def _people(self, folder: Path) -> None:
        trust = json.loads((self.data / "trust.json").read_text())
        self.rosters = Rosters.create(self.data / "roster.json", log_only(trust["log_key"]))
        secret = (self.data / "secrets" / "bootstrap.token").read_text().strip()
        async with self.door() as anybody:
            first = {"token": secret, "name": "sun", "display_name": "S", "password": PASSWORD}
            await anybody.request("POST", "/v1/bootstrap", first)
            admin = await self._sign_in(anybody, "sun")
            for name, role in (("li", "researcher"), ("wu", "approver"), ("qian", "auditor")):
                body = {"name": name, "display_name": name, "organisation": "platform", "roles": [role]}
                code = (await admin.request("POST", "/v1/users", body))["code"]
                await anybody.request("POST", "/v1/activations", {"name": name, "code": code, "password": PASSWORD})
                await self._sign_in(anybody, name)
            self.hospital = await self.enrol(folder / "huashan", "huashan")

    async def _sign_in(self, door: Gateway, name: str) -> Gateway:
        person = await sign_in(door, name, PASSWORD, Authenticator())
        assert isinstance(person.credentials, Person)
        self.sessions[name] = person.credentials
        return person

    async def enrol(self, folder: Path, hospital: str, **further: Any) -> Path:
        """A hospital's folder with its node's certificate; `further` are settings of its node."""
        async with self.door("sun") as admin:
            code = (await admin.request("POST", "/v1/hospitals", {"hospital": hospital, "display_name": hospital}))["code"]
            settings = Settings(hospital=hospital, node="node-1", gateway=admin.url, **further)
            enrolling = asyncio.create_task(enrol(folder, settings, self.run.paths["ca"].read_bytes(), code, seconds=60))
            wu = admin.acting_as(self.sessions["wu"])

            async def mine() -> Any:
                found = await wu.request("GET", "/v1/approvals", query={"state": "open"})
                return [a for a in found["approvals"] if a["action"] == "hospital.enrol"]

            for approval in await until(mine, 30):
                await self.decide(wu, approval["approval"])
            await enrolling
        self.rosters.add(signing.public_of(Layout(folder).organisation_key))
        roster.pin(Layout(folder), self.rosters.book.versions, self.rosters.pin)
        policy = Layout(folder).policy
        text = policy.read_text(encoding="utf-8").replace("reviewers = 2", "reviewers = 0").replace("ethics = true", "ethics = false")
        text = text.replace("min_hospitals = 3 ", "min_hospitals = 1 ")  # a journey is of two, or of one
        policy.write_text(text, encoding="utf-8")
        return folder

    async def sql(self, query: str, *arguments: Any) -> list[Any]:
        """Ask the database as its owner."""
        run = self.run
        connection = await asyncpg.connect(run.urls["postgres"], password=run.paths["postgres.password"].read_text().strip())
        try:
            found: list[Any] = await connection.fetch(query, *arguments)
            return found
        finally:
            await connection.close()

    async def everywhere(self, table: str) -> dict[str, int]:
        """Rows of one of the base tables in every schema that has any."""
        schemas = await self.sql("SELECT schemaname FROM pg_tables WHERE tablename = $1", table)
        counted = " UNION ALL ".join(f"SELECT '{s}' AS s, count(*) AS n FROM {s}.{table}{_WAITING.get(table, '')}" for (s,) in schemas)
        return {row["s"]: row["n"] for row in await self.sql(counted) if row["n"]}

    async def consumers(self) -> dict[str, int]:
        """Messages that a consumer has not acknowledged yet, by consumer, as the server itself counts them."""
        found = await probe.get_json(self.run.ports["nats.monitor"], "/jsz?consumers=true")
        streams = [s for account in found["account_details"] for s in account.get("stream_detail", ())]
        waiting = {c["name"]: c["num_pending"] + c["num_ack_pending"] for s in streams for c in s.get("consumer_detail") or ()}
        return {name: count for name, count in waiting.items() if count}

    async def settled(self, seconds: float = SETTLE_SECONDS) -> None:
        """Return when nothing waits anywhere; raises `AssertionError` with what still does, once none of it became less for so long."""
        left: dict[str, dict[str, int]] = {}
        fewest = 1 << 62

        async def changed() -> bool:
            left.update(outbox=await self.everywhere("outbox"), audit=await self.everywhere("audit_outbox"), bus=await self.consumers())
            return waiting() < fewest

        def waiting() -> int:
            return sum(n for part in left.values() for n in part.values())

        while fewest:
            try:
                await until(changed, seconds)
            except TimeoutError:
                raise AssertionError(f"something never left: {left}") from None
            fewest = waiting()

    async def stream(self, since: datetime) -> list[dict[str, Any]]:
        """Every message of EVENTS since then, read from the stream itself."""
        client, found = Client(), []
        seed = (self.data / "secrets" / "topology.nk").read_text().strip()
        await client.connect(self.run.urls["nats"], nkeys_seed_str=seed, inbox_prefix=b"_INBOX_topology")
        try:
            inbox = "_INBOX_topology.faults"
            heard = await client.subscribe(inbox, pending_msgs_limit=0, pending_bytes_limit=0)
            config = api.ConsumerConfig(
                deliver_policy=api.DeliverPolicy.BY_START_TIME,
                opt_start_time=since.isoformat().replace("+00:00", "Z"),
                ack_policy=api.AckPolicy.NONE,
                deliver_subject=inbox,
                mem_storage=True,
                inactive_threshold=5.0,
            )
            made = await client.jetstream().add_consumer("EVENTS", config)
            for _ in range(made.num_pending or 0):
                message = await heard.next_msg(timeout=10)
                found.append(json.loads(message.data))
        finally:
            await client.close()
        return found

    async def log(self, folder: Path) -> list[dict[str, Any]]:
        """Every audit record of a verified export: whole, unaltered, and no emitter's counter with a gap."""
        async with self.door("qian") as auditor, await open_door(auditor, "audit", self.run.urls["audit"]) as door:
            await export_log(at_the_door(door), folder)
        checked = await asyncio.to_thread(
            subprocess.run,
            [*MEDMESH, "audit", "verify", "export", "--key", str(self.data / "trust.json"), "--json", str(folder)],
            capture_output=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout.decode()
        lines = (folder / "bodies.jsonl").read_bytes().splitlines()
        return [json.loads(base64.b64decode(json.loads(line)["body"])) for line in lines]


_WAITING = {"outbox": " WHERE sent_at IS NULL"}


async def until(ready: Callable[[], Awaitable[Any]], seconds: float, every: float = 0.2) -> Any:
    """Wait for a truth; what breaks meanwhile is no answer yet. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while True:
            with suppress(Problem, OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if found := await ready():
                    return found
            await asyncio.sleep(every)


# --- load -----------------------------------------------------------------------------------------------------------


Work = Callable[[Gateway], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Wish:
    """One command, and the one fact and the one audit record it must leave."""

    key: str
    path: str
    body: dict[str, Any]
    fact: str
    verb: str


@dataclass
class Load:
    """Many clients at once; every one insists."""

    stage: Stage
    total: int
    patience: float = SETTLE_SECONDS
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    wishes: dict[str, Wish] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Commands answered."""
        return len(self.results)

    async def send(self, door: Gateway, wish: Wish) -> dict[str, Any]:
        """Until it is answered, with the same key, whatever it fails with."""
        self.wishes[wish.key] = wish
        end, pause = time.monotonic() + self.patience, 0.05
        while True:
            try:
                self.results[wish.key] = await door.command("POST", wish.path, wish.body, key=wish.key)
                return self.results[wish.key]
            except Problem as problem:
                self.failures[problem.code] += 1
                if time.monotonic() > end:
                    raise AssertionError(f"{wish.verb} never succeeded, last: {problem}") from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def run(self, works: Sequence[Work], person: str = "li") -> None:
        """Do all of `works`, `CLIENTS` at a time."""
        waiting, began = list(reversed(works)), time.monotonic()

        async def client() -> None:
            async with self.stage.door(person, attempts=1) as door:
                while waiting:
                    await waiting.pop()(door)

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client())
        self.seconds = time.monotonic() - began


# --- killing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """What was killed when."""

    victim: str
    pid: int
    done: int


async def killer(stage: Stage, load: Load, victims: Sequence[str], seed: int) -> list[Kill]:
    """`kill -9` at moments drawn from `seed`, all of them while there is load; the victims take turns."""
    dice, made = random.Random(seed), []
    places = sorted(dice.uniform(0.05, 0.85) * load.total for _ in range(max(KILLS, len(victims))))
    for number, place in enumerate(places):
        victim = victims[number % len(victims)]
        while load.done < place:
            await asyncio.sleep(0.005)
        await asyncio.sleep(dice.uniform(0, 0.05))
        process = await until(_alive(stage, victim), 60, 0.01)
        os.kill(process.pid, signal.SIGKILL)
        made.append(Kill(victim, process.pid, load.done))
    return made


def _alive(stage: Stage, victim: str) -> Callable[[], Awaitable[Any]]:
    async def alive() -> Any:
        process = stage.run.processes.get(victim)
        return process if process is not None and process.alive else None

    return alive


TRY_AGAIN = frozenset(("client.unreachable", "request.unavailable", "request.in_progress", "bus.no_responder", "query.failed"))


async def under_fire(load: Load, works: Sequence[Work], victims: Sequence[str], seed: int) -> None:
    """Run the load while the victims are killed; what the clients were told meanwhile is to try again, and nothing else."""
    killing = asyncio.create_task(killer(load.stage, load, victims, seed))
    try:
        await load.run(works)
        kills = await killing
    finally:
        killing.cancel()
    print(f"{load.seconds:.1f} s, {[(kill.victim, kill.done) for kill in kills]}, repeated after {dict(load.failures)}")
    assert all(kill.done < load.total for kill in kills)
    assert set(load.failures) <= TRY_AGAIN


# --- counting -------------------------------------------------------------------------------------------------------


async def verify(stage: Stage, load: Load, folder: Path) -> list[dict[str, Any]]:
    """Every command of the load had each of its effects exactly once; answers the stream's messages."""
    await stage.settled()
    assert load.done == len(load.wishes) == load.total
    operations = await stage.sql(
        "SELECT operation, idempotency_key, finished, succeeded FROM gateway.operations WHERE idempotency_key = ANY($1)", list(load.wishes)
    )
    assert Counter(row["idempotency_key"] for row in operations) == Counter(load.wishes.keys())
    assert all(row["finished"] and row["succeeded"] for row in operations)
    assert await stage.everywhere("dead_letters") == {}
    wish_of = {row["operation"]: load.wishes[row["idempotency_key"]] for row in operations}

    messages = await stage.stream(load.began)
    assert doubled(Counter(message["id"] for message in messages)) == {}
    answers = Counter(m["data"]["operation"] for m in messages if m["type"].endswith(".operation.finished.v1"))
    assert {operation: answers[operation] for operation in wish_of} == dict.fromkeys(wish_of, 1)
    facts = Counter((m.get("causationid"), m["type"]) for m in messages)
    wanted = {(operation, wish.fact): 1 for operation, wish in wish_of.items()}
    assert {key: facts[key] for key in wanted} == wanted

    records = await stage.log(folder)
    logged = Counter((record["ctx"]["request"], record["sub"]) for record in records)
    wanted = {(operation, wish.verb): 1 for operation, wish in wish_of.items()}
    assert {key: logged[key] for key in wanted} == wanted
    return messages


def doubled(counts: Counter[Any]) -> dict[Any, int]:
    """What was counted more than once."""
    return {key: count for key, count in counts.items() if count > 1}

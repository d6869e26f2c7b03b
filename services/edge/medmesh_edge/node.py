"""The running node: reads its inbox, answers invitations, works on rounds, installs models, ships audit records. It only dials out."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medmesh import telemetry
from medmesh.client.gateway import Gateway, pause
from medmesh.embedded import files
from medmesh.embedded.memory import frugal
from medmesh.embedded.run import Lock
from medmesh.errors import Problem
from medmesh.security.residue import lock_down, wipe
from medmesh.service.asgi import Application, Lazily, Observed, serve
from medmesh.service.doorstep import Doorstep
from medmesh.service.programs import TICK_SECONDS, Verification
from medmesh.tasks import end, uninterrupted
from medmesh.telemetry import log
from medmesh_edge import attempts, consent, forgetting, inbox, models, outgoing, preparing, renewal, samples, sealing
from medmesh_edge.continuity import Continuity
from medmesh_edge.dicom import Processes
from medmesh_edge.listening import Listening
from medmesh_edge.ports import Site, site
from medmesh_edge.roster import Refresher
from medmesh_edge.rounds import Rounds

LOOK_SECONDS = 1.0
"""How often it is looked whether somebody (the command line, too) changed the store, and what is `CLOCKED` is done."""
IDLE_SECONDS = 30.0
"""How long a loop that works on the store and that nobody wakes waits before it looks by itself."""
GATHER_SECONDS = 0.5
"""How long records gather before they are handed in together: a round leaves several within a moment."""
CLOCKED = ("roster", "certificate", "doorstep", "log", "programs", "environment", "progress")
"""What looks at a clock or a file. All of them in one moment: each time that a process wakes costs as much as what it does then."""


class Node:
    """The loops of a node; each goes on by itself when the platform is away."""

    going: asyncio.Future[None]
    """What runs them."""

    def __init__(self, site: Site, gateway: Gateway, programs: Verification | None = None) -> None:
        from medmesh.serving.repository import Repository
        from medmesh_edge.archiving import Archive
        from medmesh_edge.tiering import Tiering

        self.site = site
        self.gateway = gateway
        self.repository = Repository(site.layout.models)
        self.rounds = Rounds(site, gateway, linger=LOOK_SECONDS)
        self.doorstep = Doorstep(site.anonymous)
        self.archive = Archive(site)
        self.tiering = Tiering(self.archive)
        self.programs = programs or verification(site)
        self._look_at_programs = 0.0
        self.connected = False
        self.last_problem: Problem | None = None

    async def run(self) -> None:
        """Until cancelled."""
        loops: list[tuple[str, Callable[[], Awaitable[bool]]]] = [
            ("consent", self._consent),
            ("requests", lambda: outgoing.send_one(self.site, self.gateway)),
            ("audit", lambda: outgoing.ship_audit(self.site, self.gateway)),
            ("rounds", self.rounds.step),
            ("progress", self._progress),
            ("pipelines", preparing.Ahead(self.site).step),
            ("secure", self.rounds.phases),
            ("roster", Refresher(self.site, self.gateway).step),
            ("certificate", self._certificate),
            ("programs", self._programs),
            ("environment", self._environment),
            ("log", Continuity(self.site, self.gateway).step),
            ("doorstep", self._doorstep),
            ("tiers", self.tiering.step),
            ("models", lambda: models.install_waiting(self.site, self.gateway, self.repository)),
        ]
        parts = [self._inbox(), self._watch(), Processes(self.site).run()]
        parts += [self._loop(name, step, self.site.changed.of(name)) for name, step in loops]
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            over, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in over:  # none ends by itself but by a mistake of ours
                task.result()
        finally:
            # Not a `TaskGroup`, which asks its tasks once: one that lost its cancellation in a library would keep the node for ever.
            await uninterrupted(end(*tasks))
            await asyncio.shield(self.rounds.worker.close())

    async def _consent(self) -> bool:
        await consent.answer_invitations(self.site, self.gateway)
        return False

    async def _certificate(self) -> bool:
        await renewal.renew(self.site, self.gateway, datetime.now(UTC))
        return False

    async def _programs(self) -> bool:
        now = time.monotonic()
        if now >= self._look_at_programs:
            await self.programs.tick()
            self._look_at_programs = now + TICK_SECONDS
        return False

    async def _environment(self) -> bool:
        await self.site.interpreters.look()
        return False

    async def _doorstep(self) -> bool:
        await self.doorstep.tell()
        return False

    async def _loop(self, name: str, step: Callable[[], Awaitable[bool]], bell: asyncio.Event) -> None:
        failures = 0
        while True:
            bell.clear()
            try:
                more = await step()
                failures = 0
            except Exception as error:
                failures += 1
                self._failed(name, error, failures)
            if failures:
                # Tried again whether anybody wakes it or not: what it works on is still there.
                await asyncio.sleep(pause(failures + 2))
            elif not more:
                await bell.wait()
                if name == "audit":
                    await asyncio.sleep(GATHER_SECONDS)

    def _failed(self, name: str, error: Exception, failures: int) -> None:
        """Say what one of them could not do so many times in a row. Whatever it was, the others go on, and it is tried again."""
        if known := isinstance(error, Problem):
            self.last_problem = error
        if failures in (1, 10, 100) or failures % 1000 == 0:
            log(f"edge.{name}.{'waiting' if known else 'failed'}", level=30 if known else 40, error=error, failures=failures)

    async def _watch(self) -> None:
        """Wake every loop when another process changed the store, which SQLite tells a connection, and from time to time; else those that
        are clocked."""
        before, all_again, failures = -1, 0.0, 0
        while True:
            at = time.monotonic()
            try:
                async with self.site.database.engine.connect() as sql:
                    now = (await sql.exec_driver_sql("PRAGMA data_version")).scalar_one()
                failures = 0
            except Exception as error:
                now, failures = before, failures + 1
                self._failed("watch", error, failures)
            if now != before or at >= all_again:
                self.site.changed.set()
                all_again = at + IDLE_SECONDS
            else:
                self.site.changed.set(*CLOCKED)
            before = now
            await asyncio.sleep(LOOK_SECONDS)

    async def _inbox(self) -> None:
        """Server-sent events; long polling where they do not come through."""
        listening, clock = Listening(), asyncio.get_running_loop().time
        while True:
            began, polling = clock(), listening.polls(clock())
            try:
                after = await inbox.cursor(self.site)
                if polling:
                    # The first one only asks whether anybody is there.
                    for place, document in await self.gateway.poll(after, 0 if listening.failures else 25):
                        await inbox.take(self.site, place, document)
                    self._opened()
                    listening.polled()
                    continue
                async for place, document in self.gateway.inbox(after, self._opened, self.rounds.fetched.enclosed):
                    await inbox.take(self.site, place, document)
                    listening.heard(clock())
            except Exception as error:
                self.connected = False
                unreachable = isinstance(error, Problem) and error.code == "client.unreachable"
                listening.failed(clock(), began, polling=polling, unreachable=unreachable)
                self._failed("inbox", error, listening.failures)
                await asyncio.sleep(pause(listening.failures))

    def _opened(self) -> None:
        self.connected, self.last_problem = True, None

    async def _progress(self) -> bool:
        with suppress(Problem):
            await self.rounds.tell_progress()
        return False


def page(node: Node) -> Application:
    """The local page with what else is served here. It is loaded when somebody asks for it first; about its health a node answers
    without."""

    async def load() -> Application:
        api = await asyncio.to_thread(importlib.import_module, "medmesh_edge.api")
        application: Application = api.application(node)
        return application

    async def ready() -> dict[str, str]:
        return {} if node.connected else {"gateway": str(node.last_problem.code if node.last_problem else "connecting")}

    return Observed(Lazily(load), "edge", ready)


def verification(site: Site) -> Verification:
    """Of the programs this node runs."""
    return Verification(site.layout.trust, site.roster, site.unit, required=site.settings.require_programs)


@asynccontextmanager
async def running(folder: Path, host: str | None = None, port: int | None = None) -> Any:
    """A node at work (`going`) on its folder, with its local page, until the block ends; `host` and `port` replace the settings'. Raises
    `Problem`."""
    lock = Lock(folder)
    async with AsyncExitStack() as stack:
        stack.callback(lock.close)
        opened = await stack.enter_async_context(site(folder))
        programs = verification(opened)
        await programs.admit()
        # What a kill left in the clear, or half forgotten.
        await asyncio.to_thread(wipe, opened.layout.work)
        await asyncio.to_thread(samples.forget_arrays, opened)
        await forgetting.finish(opened)
        await attempts.sweep(opened)
        await asyncio.to_thread(sealing.clear, opened)
        gateway = await stack.enter_async_context(opened.gateway())
        node = Node(opened, gateway, programs)
        stack.callback(node.archive.close)
        stack.callback(node.tiering.close)
        await node.archive.recover()
        settings = opened.settings
        door = serve(page(node), host=host or settings.host, port=settings.port if port is None else port)
        files.write(opened.layout.port, str(await stack.enter_async_context(door)))
        node.going = asyncio.create_task(node.run())
        try:
            yield node
        finally:
            await end(node.going)


async def run(folder: Path, host: str | None = None, port: int | None = None) -> None:
    """Run until SIGTERM or SIGINT. Raises what ended the node before."""
    import signal

    lock_down()
    frugal()
    telemetry.start("edge", folder=folder / "telemetry")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(folder, host, port) as node:
        log("edge.started", hospital=node.site.settings.hospital)
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait((stopped, node.going), return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            node.going.result()
    telemetry.traces.shutdown()

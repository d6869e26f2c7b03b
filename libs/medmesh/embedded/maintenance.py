"""What an operator does on the platform's own machine, for the audit log: keys, backups.

Such a command runs beside the platform, and often while nothing of it runs. So it is written down here before it is done, as if it had
been interrupted; the outcome replaces that; and whatever lies here is handed to the log by the next command that finds the platform
running (`medmesh up` is one). A command killed in the middle is therefore in the log as well.

    maintenance/<id>.json      0600; the id is the command's, so that handing it in twice records it once
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.port import BusMessage
from medmesh.bus.topology import OPERATOR
from medmesh.contracts.audit import MaintenanceVerb, RecordMaintenance, Thing
from medmesh.contracts.message import encode, envelope, new_id
from medmesh.embedded import files
from medmesh.embedded.process import birth
from medmesh.embedded.run import running
from medmesh.errors import Problem
from medmesh.security.keys import Identity
from medmesh.security.tokens import service_token
from medmesh.telemetry import log

FOLDER = "maintenance"
INTERRUPTED = "maintenance.interrupted"
_NOBODY = 2**32 - 1


@dataclass
class Act:
    """What a command tells of itself while it works; never a secret, never a path."""

    things: list[Thing] = field(default_factory=list)
    detail: dict[str, str | int | bool] = field(default_factory=dict)

    def about(self, kind: str, id: str, digest: str | None = None) -> None:
        """It touched this."""
        self.things.append(Thing(kind=kind, id=id, digest=digest))


@contextmanager
def on_record(folder: Path, verb: MaintenanceVerb) -> Iterator[Act]:
    """Do something on the platform of the data folder `folder`, on the record; what cannot be written down is not done."""
    spool, act, at = files.folder(folder / FOLDER), Act(), datetime.now(UTC)
    path = spool / f"{new_id()}.json"

    def note(code: str, *, over: bool = True) -> None:
        done = RecordMaintenance(
            verb=verb, at=at, account=account(), code=code, things=tuple(act.things), detail=act.detail if over else {}
        )
        process = {} if over else {"pid": os.getpid(), "birth": birth(os.getpid())}
        files.write(path, json.dumps({"process": process, "done": done.model_dump(mode="json")}))

    note(INTERRUPTED, over=False)
    _settle(spool)
    try:
        yield act
    except Problem as problem:
        note(problem.code)
        raise
    except Exception:  # whatever it was, the log learns that the command failed before anybody else does
        note("request.failed")
        raise
    note("")


def account() -> str:
    """Who sits there: the account that signed in to the machine, and the one it became since."""
    now = _name(os.getuid())
    try:
        first = int(Path("/proc/self/loginuid").read_text())
    except (OSError, ValueError):
        first = _NOBODY
    return now if first == _NOBODY or _name(first) == now else f"{_name(first)} as {now}"


def waiting(folder: Path) -> list[Path]:
    """What is not handed in yet, oldest first, without what goes on just now."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        process = json.loads(path.read_bytes())["process"]
        if not process or birth(process["pid"]) != process["birth"]:
            found.append(path)
    return found


async def hand_in(folder: Path) -> bool:
    """Hand over what waits; whether nothing is left. Nothing is lost where the platform does not run: it goes on waiting."""
    paths, run = waiting(folder), running(folder)
    if not paths:
        return True
    seed = folder / "secrets" / f"{OPERATOR}.nk"
    if run is None or not run.ready or not seed.exists():
        return False
    try:
        bus = await NatsBus.connect(run.urls["nats"], name=OPERATOR, seed=seed)
        try:
            for path in paths:
                done = RecordMaintenance.model_validate(json.loads(path.read_bytes())["done"])
                token = service_token(Identity.load(seed), OPERATOR)
                made = envelope(done, source=OPERATOR, actor=token, id=path.stem)
                (failed,) = await bus.publish([BusMessage(made.id, made.type, encode(made))])
                if failed is not None:
                    raise failed
                path.unlink()
        finally:
            await bus.close()
    except Exception as error:  # the command itself is done, and its record is safe
        log("maintenance.waiting", level=30, error=error, count=len(paths))
        return False
    return True


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _settle(spool: Path) -> None:
    """The name of a new file is on the disk too."""
    descriptor = os.open(spool, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

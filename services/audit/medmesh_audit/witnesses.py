"""Asking witnesses (C2SP tlog-witness v1.0.0) to cosign each checkpoint, and which checkpoint is therefore shown."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from medmesh.errors import Problem
from medmesh.ledger import note, witness
from medmesh.ledger.policy import Policy, Witness, parse_policy
from medmesh.service.runtime import Runtime
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh.telemetry.metrics import UNWITNESSED_SECONDS, WITNESS_ASKED, WITNESS_REFUSING
from medmesh_audit.domain import Shown
from medmesh_audit.queries import consistency
from medmesh_audit.tables import checkpoints, cosignatures

WITNESSED, PENDING, UNWITNESSED = "witnessed", "pending", "unwitnessed"


@dataclass
class Witnesses:
    """`policy` names witnesses, their addresses and the quorum; None where nobody is asked. It is the file's, and follows it: hospitals
    join as witnesses while the log runs.
    """

    runtime: Runtime
    vkey: str
    file: Path | None = None
    timeout: float = 5.0
    patience: float = 60.0
    ca: Path | None = None
    policy: Policy | None = None
    text: str = ""
    _known: dict[str, int] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)
    _refusing: set[str] = field(default_factory=set)
    _silent: set[str] = field(default_factory=set)
    _unusable: str = ""
    _late: bool = False
    _http: httpx.AsyncClient | None = None

    async def start(self, every: float) -> None:
        """Raises `Problem` when there is a policy and it is malformed, or not for the log whose key is `vkey`."""
        if self.file is None:
            return
        await self._take(self._read(), every)
        self.runtime.background(lambda: self._follow(every), "witness policy", every=max(every, 1.0))
        self.runtime.background(self.watch, "witnesses", every=every)

    def _read(self) -> str:
        assert self.file is not None
        return self.file.read_text(encoding="utf-8") if self.file.exists() else ""

    async def _follow(self, every: float) -> None:
        """Take the policy when it changed. One that cannot be used, or is gone, changes nothing: fewer witnesses are never an accident."""
        text = self._read()
        if text in (self.text, self._unusable):
            return
        try:
            if not text:
                raise Problem("witness.policy_gone", file=self.file.name if self.file else "")
            await self._take(text, every)
            self._unusable = ""
        except Problem as problem:
            self._unusable = text
            log("audit.witness_policy_unusable", level=40, code=problem.code)

    async def _take(self, text: str, every: float) -> None:
        if not text:
            return
        policy = parse_policy(text.encode())
        if self.vkey not in map(str, policy.logs):
            raise Problem("witness.log_unknown", file=self.file.name if self.file else "")
        async with self.runtime.unit() as uow:
            about = (Entity("witness_policy", "log", digest=hashlib.sha256(text.encode()).hexdigest()),)
            uow.audit(AuditEntry("audit.witness_policy", "U", entities=about, detail={"witnesses": len(policy.witnesses)}))
        self.policy, self.text = policy, text
        # Each witness in a task of its own, so that one that is slow keeps nobody waiting but itself.
        for name, one in policy.witnesses.items():
            if one.url and name not in self._asked:
                self._asked.add(name)
                self.runtime.background(partial(self.ask, name), f"witness {name}", every=every)

    async def ask(self, name: str) -> None:
        """Show the newest checkpoint to a witness that has not seen it."""
        one = self.policy.witnesses.get(name) if self.policy else None
        if one is None or not one.url:
            return
        async with self.runtime.unit() as uow:
            newest = await uow.first(select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1))
        if newest is not None:
            await self._ask(one, newest)

    async def close(self) -> None:
        """Let go of connections."""
        if self._http is not None:
            await self._http.aclose()

    # --- one witness -------------------------------------------------------------------------------------------------

    async def _ask(self, one: Witness, newest: Any) -> None:
        if one.name not in self._known:
            async with self.runtime.unit() as uow:
                seen = select(func.max(cosignatures.c.size)).where(cosignatures.c.witness == one.name)
                self._known[one.name] = (await uow.execute(seen)).scalar_one() or 0
        if self._known[one.name] >= newest.size:
            return
        try:
            status, size = await self._show(one, newest, self._known[one.name])
            if status == httpx.codes.CONFLICT and size is not None and size <= newest.size:
                # It saw more or less than we remember, for instance because an answer was lost on the way.
                status, size = await self._show(one, newest, size)
        except httpx.HTTPError as error:
            self._silence(one, type(error).__name__)
            return
        except Problem as problem:
            WITNESS_ASKED.labels(one.name, "wrong").inc()
            log("audit.witness_wrong", level=40, witness=one.name, code=problem.code)
            return
        if status == httpx.codes.OK:
            self._known[one.name] = newest.size
            self._refusing.discard(one.name)
            self._silent.discard(one.name)
            WITNESS_REFUSING.labels(one.name).set(0)
            WITNESS_ASKED.labels(one.name, "cosigned").inc()
        elif status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
            self._silence(one, f"HTTP {status}")
        else:
            WITNESS_ASKED.labels(one.name, "refused").inc()
            await self._alarm(one, newest.size, status, size)

    async def _show(self, one: Witness, newest: Any, old: int) -> tuple[int, int | None]:
        """Ask once; answers the status and the size that a conflict tells. A cosignature is stored before this returns."""
        async with self.runtime.unit() as uow:
            proof = await consistency(uow, old, newest.size)
        if self._http is None:
            verify: Any = str(self.ca) if self.ca else True
            self._http = httpx.AsyncClient(timeout=self.timeout, verify=verify, trust_env=False)
        body = witness.Request(old, tuple(proof), newest.note).encode()
        answer = await self._http.post(f"{one.url.rstrip('/')}/add-checkpoint", content=body)
        if answer.status_code == httpx.codes.OK:
            line, moment = witness.cosignature_of(answer.content, newest.note, one.key)
            async with self.runtime.unit() as uow:
                row = {"size": newest.size, "witness": one.name, "line": line, "time": moment, "at": uow.now}
                await uow.execute(insert(cosignatures).values(**row).on_conflict_do_nothing())
        elif answer.status_code == httpx.codes.CONFLICT and answer.headers.get("content-type") == witness.SIZE:
            try:
                return answer.status_code, note.decimal(answer.text.removesuffix("\n"))
            except ValueError:
                return answer.status_code, None
        return answer.status_code, None

    def _silence(self, one: Witness, reason: str) -> None:
        """One line when a witness falls silent, not one a second."""
        WITNESS_ASKED.labels(one.name, "unreachable").inc()
        if one.name not in self._silent:
            self._silent.add(one.name)
            log("audit.witness_unreachable", level=30, witness=one.name, reason=reason)

    async def _alarm(self, one: Witness, size: int, status: int, theirs: int | None) -> None:
        """A witness says that this log is not the one it knows: either of the two shows two histories. Once, until it cosigns again."""
        WITNESS_REFUSING.labels(one.name).set(1)
        if one.name in self._refusing:
            return
        self._refusing.add(one.name)
        log("audit.witness_refused", level=50, witness=one.name, status=status, size=size, theirs=-1 if theirs is None else theirs)
        async with self.runtime.unit() as uow:
            about = (Entity("witness", one.name), Entity("checkpoint", str(size)))
            detail: dict[str, str | int | bool] = {"status": status, "theirs": -1 if theirs is None else theirs}
            uow.audit(AuditEntry("audit.witness_refused", "E", outcome=12, why="ledger.quorum", entities=about, detail=detail))

    async def watch(self) -> None:
        """How long the quorum has not seen the newest checkpoints."""
        if self.policy is None:
            return
        async with self.runtime.unit() as uow:
            seconds = await self._waited(uow, (await self._witnessed(uow)) or -1)
        UNWITNESSED_SECONDS.set(seconds)
        late = seconds > self.patience
        if late and not self._late:
            log("audit.witness_pending", level=40, seconds=int(seconds), wanted=self.policy.demand())
        self._late = late

    # --- what is shown -----------------------------------------------------------------------------------------------

    async def newest(self, uow: UnitOfWork[Any], covering: int = -1) -> Shown:
        """The newest checkpoint the quorum has seen, if it holds record `covering`. Otherwise, or once newer ones have waited longer than
        `patience`, the newest of all, `pending`. Raises `Problem` (`request.not_found`) when there is none.
        """
        row = await uow.first(select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1))
        if row is None:
            raise Problem("request.not_found", kind="checkpoint", id="newest")
        if self.policy is None:
            return Shown(row.size, row.note, UNWITNESSED, row.root)
        size = await self._witnessed(uow)
        if size is not None and size > covering and await self._waited(uow, size) <= self.patience:
            found = await uow.first(select(checkpoints).where(checkpoints.c.size == size))
            if found is not None:
                return Shown(size, found.note + await lines(uow, size), WITNESSED, found.root)
        return Shown(row.size, row.note + await lines(uow, row.size), WITNESSED if size == row.size else PENDING, row.root)

    async def _witnessed(self, uow: UnitOfWork[Any]) -> int | None:
        """The newest size that enough witnesses cosigned."""
        assert self.policy is not None
        recent = select(cosignatures.c.size, cosignatures.c.witness).order_by(cosignatures.c.size.desc())
        by_size: dict[int, set[str]] = {}
        for row in await uow.all(recent.limit(64 * max(1, len(self.policy.witnesses)))):
            by_size.setdefault(row.size, set()).add(row.witness)
        if not by_size and self.policy.fulfilled(()):
            return (await uow.execute(select(func.max(checkpoints.c.size)))).scalar_one()
        return next((size for size in sorted(by_size, reverse=True) if self.policy.fulfilled(by_size[size])), None)

    @staticmethod
    async def _waited(uow: UnitOfWork[Any], size: int) -> float:
        oldest = select(checkpoints.c.at).where(checkpoints.c.size > size).order_by(checkpoints.c.size).limit(1)
        at = (await uow.execute(oldest)).scalar_one_or_none()
        return max(0.0, time.time() - at.timestamp()) if at is not None else 0.0


async def lines(uow: UnitOfWork[Any], size: int) -> str:
    """The cosignatures of a checkpoint, as its last lines."""
    rows = await uow.all(select(cosignatures.c.line).where(cosignatures.c.size == size).order_by(cosignatures.c.witness))
    return "".join(row.line for row in rows)

"""An attempt's secrets at the hospital: never in the clear on its disk, and gone for good when its part is over."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, select
from tests.rosters import roster_of
from tests.unit.edge.test_privacy import opened
from tests.unit.federated.test_plan import plan

from medmesh.contracts.federation import SecurePhase
from medmesh.contracts.plan import SecureAggregation
from medmesh.errors import Problem
from medmesh.federated.secure.contributor import Contributor
from medmesh.federated.secure.session import Session
from medmesh.security.signing import Signer
from medmesh_edge import attempts, chain, consent, secure
from medmesh_edge.outgoing import queue
from medmesh_edge.ports import Site, site
from medmesh_edge.rounds import Rounds
from medmesh_edge.settings import Settings
from medmesh_edge.tables import federations, requests, secure_attempts, secure_opened, secure_phases, tasks

PARTY = Contributor(Session("f", "0" * 64, 1, 1, ("a", "b", "c"), 3), "a")
EVENT = SimpleNamespace(federation="f", round=1, attempt=1)
SECURE = plan(secure=SecureAggregation(threshold=3), participants=("a", "b", "c"), min_participants=3)


async def _kept(node: Site, attempt: int = 1) -> Any:
    event = SimpleNamespace(federation="f", round=1, attempt=attempt)
    async with node.unit() as uow:
        values = {"federation": "f", "round": 1, "attempt": attempt, "document": attempts.sealed(node, event, PARTY)}
        await uow.execute(insert(secure_attempts).values(values))
    return event


def _disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture
async def node(private: Path) -> Any:
    Settings(hospital="a", node="node-1", gateway="https://127.0.0.1:1").save(private)
    async with site(private) as opened:
        yield opened


async def test_nothing_of_it_lies_in_the_clear_and_it_comes_back_as_it_was(node: Site) -> None:
    await _kept(node)
    found = _disk(node.layout.folder)
    for secret in (PARTY.cipher, PARTY.mask, PARTY.seed):
        assert secret not in found and secret.hex().encode() not in found
    async with node.unit() as uow:
        row = await uow.first(select(secure_attempts))
    assert row is not None
    assert attempts.restored(node, EVENT, row.document) == PARTY
    with pytest.raises(Problem):
        attempts.restored(node, SimpleNamespace(federation="f", round=1, attempt=2), row.document)


async def test_what_is_forgotten_cannot_be_opened_from_a_copy_and_which_list_was_signed_stays(node: Site) -> None:
    event = await _kept(node)
    async with node.unit() as uow:
        await uow.execute(insert(secure_opened).values(federation="f", round=1, list="1:x"))
        copy = (await uow.first(select(secure_attempts))).document
    async with node.unit() as uow:
        assert await attempts.forget(uow, event)
    with pytest.raises(Problem) as caught:
        attempts.restored(node, EVENT, copy)
    assert caught.value.code in ("keyring.gone", "keyring.unknown")
    async with node.unit() as uow:
        assert await uow.first(select(secure_attempts)) is None
        assert await uow.first(select(secure_opened)) is not None
        assert not await attempts.forget(uow, event)


async def _passed_on(node: Site, messages: dict[str, str]) -> None:
    async with node.unit() as uow:
        values = {"federation": "f", "round": 1, "attempt": 1, "phase": "vectors", "messages": messages, "state": "kept", "at": uow.now}
        await uow.execute(insert(secure_phases).values(values))


async def test_keys_that_are_asked_for_after_a_round_was_prepared_are_new_until_masks_are_made(
    node: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepared with others than came: its shares are sealed for keys that are gone. Where shares were passed on, the same keys are said
    again."""
    monkeypatch.setattr(Site, "roster", lambda self: None)
    monkeypatch.setattr(Site, "organisation", lambda self: Signer.create("hospital:a"))
    monkeypatch.setattr(secure, "session_of", lambda *about: PARTY.session)
    event = SimpleNamespace(federation="f", round=1, attempt=1, plan_hash="0" * 64)
    parties = {name: Contributor(PARTY.session, name) for name in PARTY.session.contributors}

    async def asked_for_keys() -> Contributor:
        async with node.unit() as uow:
            await secure._answer(node, uow, event, None, SecurePhase.KEYS, {})
        found = await attempts.find(node, node.database.look, EVENT)
        assert found is not None
        return found

    sealed = {name: party.share({n: p.public() for n, p in parties.items()}) for name, party in parties.items()}
    async with node.unit() as uow:
        await attempts.keep(uow, EVENT, parties["a"])
    made = await asked_for_keys()
    assert made.public() != parties["a"].public() and not made.peers
    async with node.unit() as uow:
        await attempts.keep(uow, EVENT, parties["a"])
    await _passed_on(node, {name: sealed[name]["a"] for name in parties})
    assert (await asked_for_keys()).public() == parties["a"].public()


async def test_what_is_remembered_of_an_attempt_is_what_the_store_has(node: Site, private: Path) -> None:
    """Neither what a transaction left undone, nor what was only tried; and a node that starts again reads the same."""
    other = Contributor(PARTY.session, "a")
    async with node.unit() as uow:
        await attempts.keep(uow, EVENT, PARTY)
    with suppress(RuntimeError):
        async with node.unit() as uow:
            await attempts.keep(uow, EVENT, other)
            raise RuntimeError
    tried = await attempts.find(node, node.database.look, EVENT)
    assert tried == PARTY
    tried.share({name: (PARTY if name == "a" else Contributor(PARTY.session, name)).public() for name in PARTY.session.contributors})
    assert tried != PARTY and await attempts.find(node, node.database.look, EVENT) == PARTY
    async with site(private) as again:
        assert await attempts.find(again, again.database.look, EVENT) == PARTY
    async with node.unit() as uow:
        await attempts.forget(uow, EVENT)
    assert await attempts.find(node, node.database.look, EVENT) is None


async def test_the_end_of_a_federation_and_a_kill_leave_no_key(node: Site) -> None:
    for attempt in (1, 2):
        await _kept(node, attempt)
    stray = SimpleNamespace(federation="f", round=9, attempt=9)
    attempts.sealed(node, stray, PARTY)  # its row was never committed
    assert len(list(node.layout.keys.glob("attempt-*"))) == 3
    await attempts.sweep(node)
    assert len(list(node.layout.keys.glob("attempt-*"))) == 2
    async with node.unit() as uow:
        await attempts.forget_all(uow, "f")
    assert not list(node.layout.keys.glob("attempt-*"))


async def test_a_platform_that_tries_a_round_twice_is_given_the_shares_of_one_attempt(
    node: Site, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whichever it opens first, also when the node was killed in between; nor does the hospital sign a list of some in another."""
    names = ("a", "b", "c", "d")
    signers = {name: Signer.create(f"hospital:{name}") for name in names}
    monkeypatch.setattr(Site, "roster", lambda self: roster_of(*signers.values()))
    monkeypatch.setattr(Site, "organisation", lambda self: signers["a"])

    async def masked(at: Site, attempt: int, missing: str) -> tuple[Any, dict[str, str], dict[str, str]]:
        """An attempt whose masks are fixed: (it, the lists of everybody, the lists without one)."""
        place, now = attempts.Place("f", 1, attempt), datetime.now(UTC)
        parties = {name: Contributor(Session("f", "0" * 64, 1, attempt, names, 3), name) for name in names}
        sealed = {name: party.share({n: p.public() for n, p in parties.items()}) for name, party in parties.items()}
        for name, party in parties.items():
            party.take({sender: sealed[sender][name] for sender in names})
        async with at.unit() as uow:
            await attempts.keep(uow, place, parties["a"])
        whole = {name: party.whole(signers[name], now) for name, party in parties.items()}
        some = set(names) - {missing}
        return place, whole, {name: parties[name].survive(sorted(some), signers[name], now, lambda *said: said[2]) for name in some}

    async def answered(at: Site, place: Any, phase: SecurePhase, messages: dict[str, str]) -> str:
        event = SimpleNamespace(**vars(place), plan_hash="0" * 64)
        try:
            async with at.unit() as uow:
                values = {"phase": phase.value, "messages": messages, "state": "done", "at": uow.now}
                await uow.execute(insert(secure_phases).values(**vars(place), **values))
                await secure._answer(at, uow, event, None, phase, messages)
        except Problem as problem:
            return problem.code
        return "given"

    first, everybody, _ = await masked(node, 1, "d")
    assert await answered(node, first, SecurePhase.REVEAL, everybody) == "given"
    async with site(private) as again:
        second, everybody, some = await masked(again, 2, "d")
        assert await answered(again, second, SecurePhase.REVEAL, everybody) == "secure.opened"
        assert await answered(again, second, SecurePhase.SURVIVORS, dict.fromkeys(some, "")) == "secure.opened"
        async with again.unit() as uow:
            (claim,) = await uow.all(select(secure_opened))
            bodies = [row.body for row in await uow.all(select(requests).where(requests.c.path.endswith("/secure")))]
    assert claim.list.startswith("1:")
    assert [(body["attempt"], body["phase"]) for body in bodies] == [(1, "reveal")]


async def a_phase_waits(node: Site, state: str = "running") -> None:
    """One that the platform passed on of a round that this hospital works on."""
    event = opened(SECURE, 1)
    values = {"kind": "train", "event": json.loads(chain.written(event)), "samples": 0, "metrics": {}, "trained": 0, "code": ""}
    about = {"plan": SECURE.model_dump(mode="json"), "plan_hash": event.plan_hash, "package": {}, "reviews": [], "reason": ""}
    async with node.unit() as uow:
        await uow.execute(insert(federations).values(federation="f", state=state, at=uow.now, **about))
        await uow.execute(insert(tasks).values(federation="f", round=1, attempt=1, state="received", at=uow.now, **values))
        phase = {"phase": "keys", "messages": {}, "state": "received", "at": uow.now}
        await uow.execute(insert(secure_phases).values(federation="f", round=1, attempt=1, **phase))


async def test_that_a_phase_failed_is_said_also_by_a_node_that_was_killed_before_it_could(node: Site, private: Path) -> None:
    """Else the other hospitals would wait for it until the deadline."""

    async def refused(event: Any) -> Any:
        raise Problem("federation.chain", federation="f", round=1)

    async def killed(event: Any, problem: Problem) -> None:
        raise asyncio.CancelledError

    await a_phase_waits(node)
    with pytest.raises(asyncio.CancelledError):
        await secure.step(node, refused, killed)
    async with site(private) as again:
        rounds = Rounds(again, None)  # type: ignore[arg-type]
        rounds.proofs.plan = refused  # type: ignore[method-assign]
        assert await rounds.phases()
        assert not await rounds.phases()
        async with again.unit() as uow:
            (said,) = await uow.all(select(requests))
            (task,) = await uow.all(select(tasks))
    assert (said.path, said.body["code"]) == ("/v1/federations/f/failures", "federation.chain")
    assert (task.state, task.code) == ("failed", "federation.chain")


@pytest.mark.parametrize("left", [False, True])
async def test_no_phase_is_answered_once_the_hospital_has_left(node: Site, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    """Nor is what was answered before and still waits to be sent; what it held of secure sums is destroyed."""

    async def proven(event: Any) -> Any:
        if left:  # while that is looked at
            await consent.withdraw(node, "f", "")
            async with node.unit() as uow:  # and the platform passes it on once more
                phase = {"phase": "keys", "messages": {}, "state": "received", "at": uow.now}
                await uow.execute(insert(secure_phases).values(federation="f", round=1, attempt=1, **phase))
        return SECURE

    monkeypatch.setattr(Site, "roster", lambda self: None)
    monkeypatch.setattr(Site, "organisation", lambda self: Signer.create("hospital:a"))
    monkeypatch.setattr(secure, "session_of", lambda *about: PARTY.session)
    await a_phase_waits(node)
    async with node.unit() as uow:
        await attempts.keep(uow, SimpleNamespace(federation="f", round=2, attempt=1), PARTY)
        for path in ("answer", "evaluations"):
            await queue(uow, f"/v1/federations/f/{path}", {})
        await queue(uow, "/v1/federations/f2/evaluations", {})
    assert await secure.step(node, proven, _never)
    assert not await secure.step(node, proven, _never)
    async with node.unit() as uow:
        said = [row.path.removeprefix("/v1/federations/") for row in await uow.all(select(requests).order_by(requests.c.seq))]
        kept = await uow.all(select(secure_attempts))
    assert said == (["f/answer", "f2/evaluations", "f/withdrawal"] if left else ["f/answer", "f/evaluations", "f2/evaluations", "f/secure"])
    assert len(kept) == len(list(node.layout.keys.glob("attempt-*"))) == (0 if left else 2)


async def _never(event: Any, problem: Problem) -> None:
    raise AssertionError(problem)

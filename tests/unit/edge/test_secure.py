"""An attempt's secrets at the hospital: never in the clear on its disk, and gone for good when its part is over."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, select

from medmesh.contracts.federation import SecurePhase
from medmesh.errors import Problem
from medmesh.federated.secure.contributor import Contributor
from medmesh.federated.secure.session import Session
from medmesh.security.signing import Signer
from medmesh_edge import attempts, secure
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Settings
from medmesh_edge.tables import secure_attempts, secure_opened, secure_phases

PARTY = Contributor(Session("f", "0" * 64, 1, 1, ("a", "b", "c"), 3), "a")
EVENT = SimpleNamespace(federation="f", round=1, attempt=1)


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

"""A federation of 240 hospitals and 1,000 rounds as people see it: every message within its limit, nothing twice, nothing missing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, select, text
from tests.federations import make_plan
from tests.platform import Platform, platform

from medmesh.client.federation import Federation
from medmesh.client.federation import federations as named
from medmesh.client.results import cross_site, trained
from medmesh.contracts.federation import FederationList, FederationPage, FederationView, GetFederation, GetFederationPage, ListFederations
from medmesh.contracts.message import MAX_MESSAGE_BYTES, Query, Record
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.service.labels import LABELS
from medmesh_federation.service import SERVICE
from medmesh_federation.tables import federations

HOSPITALS = tuple(f"hospital-{number:03d}" for number in range(240))
ROUNDS = 1000
REF = '{"sha256": "%s", "bytes": 104857600, "media_type": "application/octet-stream"}' % ("a" * 64)
MODELS = [{"name": name, "weights": {"sha256": letter * 64, "bytes": 9}} for name, letter in (("federated", "b"), ("renji", "c"))]


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings={"federation": {"tick_seconds": 60}}) as made:
        yield made


class Door:
    """The gateway's: what is asked goes to the service, and is measured."""

    def __init__(self, p: Platform) -> None:
        self.p, self.sizes = p, list[int]()

    async def ask(self, path: str, reply: type[Record], **query: Any) -> Any:
        federation = path.split("/")[3]
        asked: Query = GetFederationPage(federation=federation, **query) if path.endswith("/page") else GetFederation(federation=federation)
        answer = await self.p.ask(asked, reply, self.p.person("li", "researcher"))
        self.sizes.append(len(answer.model_dump_json()))
        return answer


async def written(p: Platform, rounds: int) -> str:
    """A federation of so many training rounds and an evaluation, as its rows have it when it is over."""
    soon = datetime.now(UTC) + timedelta(days=60)
    done = await p.send(await make_plan(p, HOSPITALS, accept_by=soon, start_at=soon, rounds=rounds), p.person("li", "researcher"))
    assert done.succeeded and done.result, done.problem
    federation = str(done.result["federation"])
    async with p.runtimes["federation"].unit() as uow:
        about = {"f": federation, "rounds": rounds, "ref": REF, "models": str(MODELS).replace("'", '"')}
        await uow.execute(text("UPDATE federations SET state = 'completed' WHERE federation = :f"), {"f": federation})
        await uow.execute(
            text(
                "INSERT INTO rounds (federation, round, attempt, kind, state, base, models, assigned, opened_at,"
                " deadline, closed_at, model, stored)"
                " SELECT :f, n, 1, CASE WHEN n > :rounds THEN 'evaluate' ELSE 'train' END, 'committed', CAST(:ref AS jsonb),"
                " CASE WHEN n > :rounds THEN CAST(:models AS jsonb) ELSE '[]' END, '[]', now(), now(), now(), CAST(:ref AS jsonb), true"
                " FROM generate_series(1, :rounds + 1) n"
            ),
            about,
        )
        results = '{"' + "b" * 64 + '": [[30, 5], [5, 25]], "' + "c" * 64 + '": [[20, 15], [10, 20]]}'
        await uow.execute(
            text(
                "INSERT INTO answers (federation, round, attempt, hospital, update, samples, metrics, results, milliseconds, late, at)"
                " SELECT :f, n, 1, 'hospital-' || lpad(h::text, 3, '0'), CASE WHEN n > :rounds THEN NULL ELSE CAST(:ref AS jsonb) END,"
                " 100 + h,"
                " '{\"loss\": 0.123456789}', CASE WHEN n > :rounds THEN CAST(:results AS jsonb) END,"
                ' \'{"fetch": 1234, "train": 56789, "store": 345, "send": 2345}\', false, now()'
                " FROM generate_series(1, :rounds + 1) n, generate_series(0, 239) h"
            ),
            {"f": federation, "rounds": rounds, "ref": REF, "results": results},
        )
    return federation


def whole(view: FederationView) -> None:
    """Everybody is in it, and in every round, once and in order."""
    assert tuple(one.hospital for one in view.participants) == HOSPITALS
    for one in view.rounds:
        assert tuple(answer.hospital for answer in one.answers) == HOSPITALS, one.round
    numbers = [one.round for one in view.rounds]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_every_page_is_a_message_and_all_of_them_are_the_federation(p: Platform) -> None:
    door = Door(p)
    small = Federation(door, await written(p, 12))  # type: ignore[arg-type]
    view = await small.view()
    whole(view)
    assert [one.round for one in view.rounds] == list(range(1, 14)) and not view.more
    assert len(trained(view)) == 12 and view.rounds[-1].kind == "evaluate"
    cells = {(cell.model, cell.hospital): cell for cell in cross_site(view)}
    assert len(cells) == 2 * (240 + 1)
    assert cells["federated", ""].samples == 240 * 65, "every hospital's counts, once"
    assert 9 < len(door.sizes) < 30 and max(door.sizes) < MAX_MESSAGE_BYTES

    door.sizes.clear()
    large = Federation(door, await written(p, ROUNDS))  # type: ignore[arg-type]
    async with p.runtimes["federation"].unit() as uow:
        assert len(await uow.all(select(federations))) == 2
    # Who follows it asks for what is new: what was over is known.
    cut = view.model_copy(update={"rounds": tuple(one.model_copy(update={"round": one.round + ROUNDS - 15}) for one in view.rounds)})
    newest = await large.view(cut)
    whole(newest)
    assert (newest.rounds[0].round, newest.rounds[-1].round) == (ROUNDS - 14, ROUNDS + 1)
    assert len(door.sizes) < 9 and max(door.sizes) < MAX_MESSAGE_BYTES
    # And the pages go down to the first round.
    last, found = FederationPage(participants=(), rounds=(), evaluation=(), more="r:4.1:"), []
    while last.more:
        last = await door.ask(f"/v1/federations/{large.federation}/page", FederationPage, after=last.more)
        found += [(one.round, answer.hospital) for one in last.rounds for answer in one.answers]
    assert sorted(found) == [(number, hospital) for number in (1, 2, 3) for hospital in HOSPITALS]
    assert max(door.sizes) < MAX_MESSAGE_BYTES
    for wrong in ("x", "r:1.1", "p:", "r:1.1:A", "r:-1.1:"):
        assert (
            await p.refused(GetFederationPage(federation=large.federation, after=wrong), p.person("li", "researcher")) == "request.invalid"
        )


class Lists(Door):
    """The door of a person, where lists are asked for."""

    def __init__(self, p: Platform, name: str = "li") -> None:
        super().__init__(p)
        self.name = name

    async def ask(self, path: str, reply: type[Record], **query: Any) -> Any:
        assert path == "/v1/federations"
        asked = ListFederations.model_validate_json(json.dumps(query))  # as the gateway reads a query
        answer = await self.p.ask(asked, reply, self.p.person(self.name, "researcher"))
        self.sizes.append(len(answer.model_dump_json()))
        return answer


def _like(table: Table, **other: str) -> str:
    """A statement that writes copies of the rows of federation `:f`, with `other` in place of these columns."""
    columns = [column.name for column in table.c if column.name not in other]
    names, values = ", ".join([*columns, *other]), ", ".join([*columns, *other.values()])
    key = "id" if "id" in other else "federation"
    return f"INSERT INTO {table.name} ({names}) SELECT {values} FROM {table.name}, generate_series(1, :copies) n WHERE {key} = :f"


async def copied(p: Platform, federation: str, copies: int) -> None:
    """So many like it, two of every moment; each third is running, each fifth somebody else's and of one hospital less."""
    name = "'copy-' || lpad(n::text, 4, '0')"
    changed = {
        "state": "CASE WHEN n % 3 = 0 THEN 'running' ELSE 'completed' END",
        "initiator": "CASE WHEN n % 5 = 0 THEN 'person:wang@platform' ELSE initiator END",
        "created_at": "created_at + (n / 2) * interval '1 second'",
    }
    async with p.runtimes["federation"].unit() as uow:
        for statement in (_like(federations, federation=name, **changed), _like(LABELS, id=name)):
            await uow.execute(text(statement), {"f": federation, "copies": copies})
        await uow.execute(
            text(
                "INSERT INTO participants (federation, hospital, state, drops, reason)"
                " SELECT federation, 'hospital-' || lpad(h::text, 3, '0'), 'ready', 0, '' FROM federations, generate_series(0, 239) h"
                " WHERE federation LIKE 'copy-%' AND NOT (h = 7 AND initiator = 'person:wang@platform')"
            )
        )


async def test_a_list_of_many_large_federations_is_read_in_messages(p: Platform) -> None:
    soon = datetime.now(UTC) + timedelta(days=60)
    done = await p.send(await make_plan(p, HOSPITALS, accept_by=soon, start_at=soon), p.person("li", "researcher"))
    assert done.succeeded and done.result, done.problem
    first = str(done.result["federation"])
    await copied(p, first, 100)
    door = Lists(p)

    async def listed(**narrowed: str) -> list[str]:
        return [one.federation async for one in named(door, **narrowed)]  # type: ignore[arg-type]

    every = await listed()
    assert every == [f"copy-{number:04d}" for number in range(100, 0, -1)] + [first], "each once, the newest first"
    assert max(door.sizes) < MAX_MESSAGE_BYTES and len(door.sizes) > 3
    assert await listed(state="running") == [one for one in every[:-1] if int(one[-4:]) % 3 == 0]
    others = {one for one in every[:-1] if int(one[-4:]) % 5 == 0}
    assert set(await listed(mine="true")) == set(every) - others
    assert set(await listed(hospital="hospital-007", state="completed")) == {
        one for one in every[:-1] if int(one[-4:]) % 3 and one not in others
    }
    assert await listed(hospital="elsewhere") == []
    assert {one.initiator async for one in named(Lists(p, "wang"), mine="true")} == {"person:wang@platform"}  # type: ignore[arg-type]

    # One that is made while it is read shifts nothing.
    reading = named(door)  # type: ignore[arg-type]
    begun = [(await anext(reading)).federation]
    async with p.runtimes["federation"].unit() as uow:
        await uow.execute(text("UPDATE federations SET created_at = now() + interval '1 year' WHERE federation = :f"), {"f": first})
    assert begun + [one.federation async for one in reading] == every[:-1]
    for wrong in ("yesterday", "2026-01-01~x", "~"):
        with pytest.raises(Problem) as refused:
            await door.ask("/v1/federations", FederationList, after=wrong)
        assert refused.value.code == "request.invalid"

"""What a node tries again, and what it takes for an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.unit.edge.test_privacy import SETTINGS

from medmesh.errors import Problem
from medmesh_edge import outgoing
from medmesh_edge.outgoing import is_transient
from medmesh_edge.ports import site
from medmesh_edge.tables import requests


@pytest.mark.parametrize(
    ("problem", "again"),
    [
        (Problem("client.unreachable", url="u", reason="r"), True),
        (Problem("objects.full"), True),
        (Problem("security.certificate_expired", end="2026-01-01"), True),  # until it is renewed
        (Problem("security.token_early"), True),  # until the clock is right
        (Problem("security.request_replayed"), True),  # signed anew
        (Problem("federation.closed", federation="f", state="completed"), False),
        (Problem("access.denied", actor="a", action="b"), False),
    ],
)
def test_only_a_decision_of_the_platform_ends_a_request(problem: Problem, again: bool) -> None:
    assert is_transient(problem) is again


async def test_what_was_done_is_forgotten_and_what_was_refused_is_kept_with_its_reason(private: Path) -> None:
    """Of rounds with many hospitals each command is large, and there is no end to rounds."""
    sent = list[str]()

    class Platform:
        async def command(self, _: str, path: str, body: Any, key: str) -> dict[str, Any]:
            sent.append(body["n"])
            if body["n"] == 2:
                raise Problem("federation.closed", federation="f", state="completed")
            return {}

    SETTINGS.save(private)
    async with site(private) as node:
        for first in (1, 3):
            async with node.unit() as uow:
                for n in (first, first + 1):
                    await outgoing.queue(uow, "/v1/x", {"n": n})
            while await outgoing.send_one(node, Platform()):  # type: ignore[arg-type]
                pass
        async with node.unit() as uow:
            left = await uow.all(select(requests))
    assert sent == [1, 2, 3, 4]
    assert [(row.body["n"], row.state, row.answer["code"]) for row in left] == [(2, "refused", "federation.closed")]

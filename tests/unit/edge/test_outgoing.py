"""What a node tries again, and what it takes for an answer."""

from __future__ import annotations

import pytest

from medmesh.errors import Problem
from medmesh_edge.outgoing import is_transient


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

"""What a decision costs: label, role table and object rule, against the role table alone in the same run.

`fresh` is a decision about objects never asked about before, with the policies parsed once; `remembered` one that was asked a moment ago;
`site` is fresh with twenty further policies. The floor of all is the role table, the peer what one writes first: the policies' text given
to Cedar with each question.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from time import perf_counter

import cedarpy

from medmesh.security import roles
from medmesh.security.access import Object, Rules, _principal, _resource, built_in, decide
from medmesh.security.labels import Label, Level
from medmesh.security.tokens import Actor
from tests.bench.common import Measure, medians, percentile

TIMES = 2_000
NOW = datetime(2026, 11, 26, tzinfo=UTC)
ACTOR = Actor("person", "wang", "renji", frozenset({"researcher"}), "pwd+otp", NOW, clearance=Label(Level.SENSITIVE, frozenset({"renji"})))
THING = Object("dataset", "chest", Label(Level.SENSITIVE, frozenset({"renji"})), True, "renji", frozenset({"renji"}), "person:li@renji")
SITE = "\n".join(
    f'@id("site.{n}") forbid (principal, action == Action::"model.convert", resource) when {{ resource.owner == "hospital-{n}" }};'
    for n in range(20)
)


def _each(call: Callable[[int], bool]) -> Callable[[], Awaitable[float]]:
    """The median of one call, in microseconds."""

    async def run() -> float:
        gc.collect()
        taken = []
        for number in range(TIMES):
            begun = perf_counter()
            allowed = call(number)
            taken.append((perf_counter() - begun) * 1e6)
            assert allowed
        return percentile(taken, 50)

    return run


def measure(names: tuple[str, ...]) -> list[Measure]:
    """Every figure of the area."""
    rules, site, text = Rules(), Rules(SITE), built_in()
    counter = iter(range(10**9))

    def fresh(rules: Rules) -> Callable[[int], bool]:
        return lambda _: decide(ACTOR, "dataset.read", NOW, replace(THING, id=f"chest-{next(counter)}"), rules).allowed

    def parsed_each_time(_: int) -> bool:
        who, what = _principal(ACTOR), _resource(replace(THING, id=f"chest-{next(counter)}"))
        request = {"principal": {"type": "Actor", "id": ACTOR.text}, "action": 'Action::"dataset.read"', "resource": 'Object::"d"'}
        return cedarpy.is_authorized(request, text, f"[{who},{what}]").allowed

    runs = {
        "table": _each(lambda _: roles.allow(ACTOR, "dataset.read", NOW).allowed),
        "fresh": _each(fresh(rules)),
        "site": _each(fresh(site)),
        "remembered": _each(lambda _: decide(ACTOR, "dataset.read", NOW, THING, rules).allowed),
        "parsed": _each(parsed_each_time),
    }
    found = dict(zip(runs, asyncio.run(medians(*runs.values())), strict=True))
    told = {"fresh": 200.0, "site": 200.0, "remembered": None}
    return [
        Measure(
            f"access.decide_{name}",
            found[name],
            "us p50",
            floor=found["table"],
            peer="policies parsed each time",
            peer_value=found["parsed"],
            goal=goal,
        )
        for name, goal in told.items()
        if not names or f"access.decide_{name}".startswith(names)
    ]

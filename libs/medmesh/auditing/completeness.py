"""Whether an export that was narrowed holds everything that fits, and where that cannot be told from it.

Every entry's header is in an export: emitter, counter, hour, organisations, class. What headers exclude is proven not to fit. Of the rest,
what is neither exported nor opened is undecided: it is named by its number, and the export proves nothing about it. An export that was
asked to be complete opens the undecided ones too, so that the filter is applied to each of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from medmesh.auditing.vocabulary import VERBS
from medmesh.ledger.leaf import Leaf

OTHERS = "others.jsonl"
STATEMENT = "completeness.json"


def _verb_fits(wanted: str, verb: str) -> bool:
    return verb.startswith(wanted[:-1]) if wanted.endswith("*") else verb == wanted


def could_fit(wanted: Mapping[str, Any], scope: str, leaf: Leaf) -> bool:
    """Whether the header leaves it open that its record fits; False is a proof that it does not."""
    orgs = leaf.compartment.split(",")
    if any(org and org not in orgs for org in (wanted.get("org"), scope)):
        return False
    # A record is kept in the class of its verb; the log takes no other.
    if wanted.get("verb") and leaf.retention not in {v.retention for name, v in VERBS.items() if _verb_fits(wanted["verb"], name)}:
        return False
    # What was recorded before an instant happened before it; the other way round nothing follows.
    since = wanted.get("since")
    return not since or datetime.fromisoformat(f"{leaf.hour}:00:00Z") + timedelta(hours=1) > datetime.fromisoformat(since)


def fits(wanted: Mapping[str, Any], scope: str, record: Mapping[str, Any]) -> bool:
    """The filter itself, as the log's search applies it."""
    t, agent = datetime.fromisoformat(record["t"]), record["agents"][0] if record["agents"] else {}
    entities = {f"{entity['type']}:{entity['id']}" for entity in record["entities"]}
    asked: dict[str, Callable[[str], bool]] = {
        "since": lambda value: t >= datetime.fromisoformat(value),
        "until": lambda value: t < datetime.fromisoformat(value),
        "actor": lambda value: agent.get("who", "") == value,
        "org": lambda value: value in record["orgs"],
        "patient": lambda value: f"patient:{value}" in entities,
        "entity": lambda value: value in entities,
        "verb": lambda value: _verb_fits(value, record["sub"]),
        "type": lambda value: record["type"]["code"] == value,
        "outcome": lambda value: record["out"] == int(value),
        "purpose": lambda value: record["pou"] == value,
        "correlation": lambda value: record["ctx"].get("correlation", "") == value,
    }
    return (not scope or scope in record["orgs"]) and all(asked[name](value) for name, value in wanted.items() if value)


def undecided(wanted: Mapping[str, Any], scope: str, leaves: Iterable[Leaf], here: frozenset[int]) -> Iterator[int]:
    """Numbers of entries that could fit and are not among those that are `here`."""
    return (seq for seq, leaf in enumerate(leaves) if seq not in here and could_fit(wanted, scope, leaf))


def statement(
    wanted: Mapping[str, Any], scope: str, leaves: list[Leaf], exported: frozenset[int], opened: frozenset[int]
) -> dict[str, Any]:
    """What an export proves, by emitter: entries, how many are exported, excluded by their header, opened and found not to fit, and
    undecided, whose numbers stand in `undecided` as [first, last] pairs."""
    emitters: dict[str, dict[str, int]] = {}
    open_: list[list[int]] = []
    for seq, leaf in enumerate(leaves):
        counted = emitters.setdefault(leaf.emitter, {"last": 0, "entries": 0, "exported": 0, "excluded": 0, "opened": 0, "undecided": 0})
        counted["last"], counted["entries"] = leaf.n, counted["entries"] + 1
        if seq in exported:
            counted["exported"] += 1
        elif not could_fit(wanted, scope, leaf):
            counted["excluded"] += 1
        elif seq in opened:
            counted["opened"] += 1
        else:
            counted["undecided"] += 1
            if open_ and open_[-1][1] == seq - 1:
                open_[-1][1] = seq
            else:
                open_.append([seq, seq])
    return {"complete": not open_, "emitters": emitters, "undecided": open_}

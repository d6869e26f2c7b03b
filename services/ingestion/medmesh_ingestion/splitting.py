"""A version of the same items and rows, split anew: nobody and no picture stands on two sides of it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from medmesh.errors import Problem
from medmesh_ingestion.domain import Facts, Sample


@dataclass(slots=True)
class Unit:
    """What is never torn: an item, or all rows of a patient or group. `ties` are what it shares with others that must stand on its side,
    `labels` counts its items or rows by label, `published` are the splits that it was published in."""

    name: str
    ties: set[str] = field(default_factory=set)
    labels: Counter[str | None] = field(default_factory=Counter)
    published: set[str] = field(default_factory=set)


def split(
    samples: Sequence[Sample],
    groups: Mapping[str, str],
    ratios: Mapping[str, int],
    seed: int,
    *,
    anew: bool,
) -> list[Sample]:
    """The samples, each with a split of `ratios` (name to share), the same for the same arguments.

    As `sides`, of which it raises what that raises."""
    found = sides(units_of(samples, groups), ratios, seed, anew=anew)
    return placed(samples, groups, found)


def units_of(samples: Iterable[Sample], groups: Mapping[str, str]) -> list[Unit]:
    """Each item; `groups` gives the patient or group of one where it is known."""
    made = []
    for sample in samples:
        group, published = groups.get(sample.item), sample.facts.split if sample.facts else None
        ties = {f"item {sample.item}", f"object {sample.object.sha256}", *((f"group {group}",) if group else ())}
        made.append(Unit(sample.item, ties, Counter([sample.label]), {published} if published else set()))
    return made


def placed(samples: Iterable[Sample], groups: Mapping[str, str], sides: Mapping[str, str]) -> list[Sample]:
    """The samples on these sides."""
    return [replace(sample, facts=_in(sample, sides[sample.item], groups.get(sample.item))) for sample in samples]


def sides(units: Sequence[Unit], ratios: Mapping[str, int], seed: int, *, anew: bool) -> dict[str, str]:
    """The side of each unit, by name.

    Units that share a tie form a cluster and share a split. Published splits are kept, and bind their clusters, unless `anew`. Clusters go
    one by one, the largest first, to the split that lacks most of their labels (after Sechidis, Tsoumakas and Vlahavas, ECML 2011), so that
    labels are spread as `ratios` say.

    Raises `Problem`: `ingestion.split_published` when nothing is left to split, `ingestion.split_torn` when a cluster stands in two
    published splits.
    """
    if not anew and all(unit.published for unit in units):
        raise Problem("ingestion.split_published")
    found: dict[str, str] = {}
    open_: list[list[Unit]] = []
    torn = 0
    for cluster in _clusters(units):
        before = set() if anew else {name for unit in cluster for name in unit.published}
        torn += len(before) > 1
        if before:
            found |= dict.fromkeys((unit.name for unit in cluster), min(before))
        else:
            open_.append(cluster)
    if torn:
        raise Problem("ingestion.split_torn", clusters=torn)
    return found | _assigned(open_, ratios, seed)


def _clusters(units: Iterable[Unit]) -> list[list[Unit]]:
    """Connected by a tie."""
    root: dict[str, str] = {}

    def top(node: str) -> str:
        while (parent := root.setdefault(node, node)) != node:
            root[node] = node = root.setdefault(parent, parent)
        return node

    units = list(units)
    for unit in units:
        for tie in unit.ties:
            root[top(tie)] = top(f"unit {unit.name}")
    made: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        made[top(f"unit {unit.name}")].append(unit)
    return list(made.values())


def _assigned(clusters: list[list[Unit]], ratios: Mapping[str, int], seed: int) -> dict[str, str]:
    def order(cluster: list[Unit]) -> tuple[int, str]:
        first = min(unit.name for unit in cluster)
        return -sum(unit.labels.total() for unit in cluster), hashlib.sha256(f"{seed} {first}".encode()).hexdigest()

    whole: Counter[str | None] = Counter()
    for cluster in clusters:
        for unit in cluster:
            whole.update(unit.labels)
    shares = {name: share / sum(ratios.values()) for name, share in ratios.items()}
    lacks = {name: {label: count * share for label, count in whole.items()} for name, share in shares.items()}
    found: dict[str, str] = {}
    for cluster in sorted(clusters, key=order):
        labels: Counter[str | None] = Counter()
        for unit in cluster:
            labels.update(unit.labels)
        best = max(ratios, key=lambda name: (sum(lacks[name][label] * count for label, count in labels.items()), shares[name]))
        for label, count in labels.items():
            lacks[best][label] -= count
        found |= dict.fromkeys((unit.name for unit in cluster), best)
    return found


def _in(sample: Sample, split_: str, group: str | None) -> Facts:
    return replace(sample.facts, split=split_) if sample.facts else Facts("image", split_, group, {})

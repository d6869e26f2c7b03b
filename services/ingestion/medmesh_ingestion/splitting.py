"""A version of the same items, split anew: nobody and no picture stands on two sides of it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from medmesh.errors import Problem
from medmesh_ingestion.domain import Facts, Sample


def split(samples: Sequence[Sample], groups: Mapping[str, str], ratios: Mapping[str, int], seed: int, *, anew: bool) -> list[Sample]:
    """The samples, each with a split of `ratios` (name to share), the same for the same arguments.

    `groups` gives the patient or group of an item where one is known. Items of one group, and items that are one object, form a cluster
    and share a split. Published splits are kept, and bind their clusters, unless `anew`. Clusters go one by one, the largest first, to the
    split that lacks most of their labels (after Sechidis, Tsoumakas and Vlahavas, ECML 2011), so that labels are spread as `ratios` say.

    Raises `Problem`: `ingestion.split_published` when nothing is left to split, `ingestion.split_torn` when a cluster stands in two
    published splits.
    """
    fixed = {} if anew else {sample.item: sample.facts.split for sample in samples if sample.facts and sample.facts.split}
    if len(fixed) == len(samples):
        raise Problem("ingestion.split_published")
    clusters = _clusters(samples, groups)
    found: dict[str, str] = {}
    open_: list[list[Sample]] = []
    torn = 0
    for cluster in clusters:
        before = {fixed[sample.item] for sample in cluster if sample.item in fixed}
        torn += len(before) > 1
        if before:
            found |= dict.fromkeys((sample.item for sample in cluster), min(before))
        else:
            open_.append(cluster)
    if torn:
        raise Problem("ingestion.split_torn", clusters=torn)
    found |= _assigned(open_, ratios, seed)
    return [replace(sample, facts=_in(sample, found[sample.item], groups.get(sample.item))) for sample in samples]


def _clusters(samples: Sequence[Sample], groups: Mapping[str, str]) -> list[list[Sample]]:
    """Connected by a group or an object."""
    root: dict[str, str] = {}

    def top(node: str) -> str:
        while (parent := root.setdefault(node, node)) != node:
            root[node] = node = root.setdefault(parent, parent)
        return node

    for sample in samples:
        group = groups.get(sample.item)
        for other in (f"object {sample.object.sha256}", *((f"group {group}",) if group else ())):
            root[top(other)] = top(f"item {sample.item}")
    made: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        made[top(f"item {sample.item}")].append(sample)
    return list(made.values())


def _assigned(clusters: list[list[Sample]], ratios: Mapping[str, int], seed: int) -> dict[str, str]:
    def order(cluster: list[Sample]) -> tuple[int, str]:
        first = min(sample.item for sample in cluster)
        return -len(cluster), hashlib.sha256(f"{seed} {first}".encode()).hexdigest()

    whole = Counter(sample.label for cluster in clusters for sample in cluster)
    shares = {name: share / sum(ratios.values()) for name, share in ratios.items()}
    lacks = {name: {label: count * share for label, count in whole.items()} for name, share in shares.items()}
    found: dict[str, str] = {}
    for cluster in sorted(clusters, key=order):
        labels = Counter(sample.label for sample in cluster)
        best = max(ratios, key=lambda name: (sum(lacks[name][label] * count for label, count in labels.items()), shares[name]))
        for label, count in labels.items():
            lacks[best][label] -= count
        found |= dict.fromkeys((sample.item for sample in cluster), best)
    return found


def _in(sample: Sample, split_: str, group: str | None) -> Facts:
    return replace(sample.facts, split=split_) if sample.facts else Facts("image", split_, group, {})

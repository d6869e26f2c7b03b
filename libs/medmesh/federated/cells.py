"""The small-cell rule: what a hospital tells of counts so that no single patient can be read from them, nor from two of them.

Its unit is the patient, however many samples one has. Every cell is told as a multiple of `smallest`, rounded up or down at random so
that it is right on average: Statistics New Zealand's fixed random rounding (Microdata Output Guide, 2020), here to any base. The chance is
drawn from a key of the hospital's own and the very samples in the cell (the cell-key method of Fraser and Wooton, UNECE/Eurostat work
session, 2005): asking again answers the same, and two evaluations that differ by one sample are rounded independently, so that
subtracting them tells little. `joined` sees to it that whoever is counted is so together with others, for ever: any two evaluations
differ, in either direction, by nobody or by as many patients as the smaller `smallest` of both.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

Members = Mapping[str, frozenset[str]]
"""Samples by patient."""


class Group(NamedTuple):
    """Samples that are counted all together or not at all: of at least `level` patients, and left out where `smallest` is larger. `broken`:
    one of them was forgotten, and with him the others are gone."""

    level: int
    members: Members
    broken: bool = False


def joined(groups: Sequence[Group], now: Mapping[str, str], smallest: int, key: bytes) -> tuple[Group, ...]:
    """The groups of one class once it is counted by `smallest`, which had `groups` and has the samples `now` (each with its patient).

    Samples in no group wait until they are of so many patients: those then are new groups. Groups are never taken apart, and merged only
    whole, where they are of fewer patients than `smallest`. Groups of a lower level become one of a higher before they go into one of a
    still higher: so whoever was counted at a level in between is joined by as many as that at least."""
    known = {sample for group in groups for samples in group.members.values() for sample in samples}
    fresh = _by_patient({sample: patient for sample, patient in now.items() if sample not in known})
    made, parts = list(groups), len(fresh) // smallest
    order = sorted(fresh, key=lambda patient: _draw(key, [patient]))
    made += (Group(smallest, {patient: fresh[patient] for patient in order[part::parts]}) for part in range(parts))
    lower = {group.level for group in made if group.level < smallest and _there(group, now)}
    for level, target in pairwise([*sorted(lower), smallest]):
        these: list[Group] = []
        others: list[Group] = []
        for group in made:
            (these if group.level == level and _there(group, now) else others).append(group)
        made = [*others, *_merged(these, target)]
    return tuple(made)


def counted(groups: Sequence[Group], now: Mapping[str, str], smallest: int) -> frozenset[str]:
    """The samples that are counted by `smallest`: of whole groups alone. Whoever left leaves with his group, and it comes back with him."""
    return frozenset(
        sample
        for group in groups
        if group.level >= smallest and _there(group, now)
        for samples in group.members.values()
        for sample in samples
    )


def without(groups: Sequence[Group], patients: frozenset[str]) -> tuple[Group, ...]:
    """The groups without the names of patients who were forgotten: what they were in is never counted again, and nobody of it elsewhere."""
    return tuple(
        Group(group.level, {one: samples for one, samples in group.members.items() if one not in patients}, broken=True)
        if patients & group.members.keys()
        else group
        for group in groups
    )


def _there(group: Group, now: Mapping[str, str]) -> bool:
    return not group.broken and all(samples <= now.keys() for samples in group.members.values())


def _merged(groups: Sequence[Group], target: int) -> Iterator[Group]:
    """These groups, together until each is of `target` patients; as they are where all are fewer."""
    made: list[dict[str, frozenset[str]]] = [{}]
    for group in groups:
        if len(made[-1]) >= target:
            made.append({})
        _add(made[-1], group.members)
    if len(made[0]) < target:
        yield from groups
        return
    if len(made[-1]) < target:
        _add(made[-2], made.pop())
    yield from (Group(target, members) for members in made)


def _add(to: dict[str, frozenset[str]], members: Members) -> None:
    for patient, samples in members.items():
        to[patient] = to.get(patient, frozenset()) | samples


def _by_patient(samples: Mapping[str, str]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for sample, patient in samples.items():
        found.setdefault(patient, set()).add(sample)
    return {patient: frozenset(those) for patient, those in found.items()}


def told(
    truth: np.ndarray,
    predicted: np.ndarray,
    items: Sequence[str],
    patients: Sequence[str],
    *,
    classes: int,
    smallest: int = 0,
    key: bytes = b"",
) -> list[list[int]]:
    """`counts[true][predicted]` as they may leave. `truth` and `predicted` are int64 [samples] below `classes`, `items` the samples' names
    and `patients` whose they are. With `smallest` below 2 samples are counted, exactly. Otherwise patients are: each counts once in a
    class, divided among what was predicted for his samples of it."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    if smallest < 2:
        np.add.at(counts, (truth, predicted), 1)
        found: list[list[int]] = counts.tolist()
        return found
    names = np.asarray(items, dtype=object)
    which = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1] * classes + truth
    weights = 1.0 / np.bincount(which)[which] if len(which) else np.empty(0)
    for a in range(classes):
        for b in range(classes):
            cell = (truth == a) & (predicted == b)
            counts[a, b] = int(float(weights[cell].sum()) / smallest + _draw(key, sorted(names[cell])) % 2**32 / 2**32) * smallest
    return counts.tolist()


def rounded(samples: Mapping[str, int], smallest: int, key: bytes) -> int:
    """How many samples patients have together, each so many, as it may be told: a multiple of what `smallest` patients bring, rounded up or
    down at random by the very patients. That is a power of two for each, of which so many have more than half; beyond it nobody's are
    counted."""
    if smallest < 2 or not samples:
        return sum(samples.values())
    usual = sorted(samples.values(), reverse=True)[: max(1, smallest)][-1]
    most = 1 << (usual - 1).bit_length()
    total, base = sum(min(many, most) for many in samples.values()), smallest * most
    drawn = _draw(key, sorted(f"{patient} {many}" for patient, many in samples.items())) % base
    return max(base, (total + drawn) // base * base)


def _draw(key: bytes, items: Sequence[str]) -> int:
    return int.from_bytes(hmac.digest(key, "\n".join(items).encode(), hashlib.sha256)[:8], "big")

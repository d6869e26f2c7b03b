"""Which updates of a round look wrong: by length, by direction, as copies of each other, or as the round's model itself.

One pass over all of them, a piece at a time, gives their Gram matrix, from which everything else follows; memory is the same
whatever the model's size and however many hospitals there are. What cannot be told: an update that was made to look like the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmesh.contracts.screening import Flag, Screening
from medmesh.federated.aggregation.distances import cosines, squared_distances
from medmesh.federated.streams import FLOATS, Reader, elements
from medmesh.learning.weights import header

ELEMENTS = 1 << 17
"""Numbers of all updates together that are in memory at once, roughly."""
LEAST_ELEMENTS = 1 << 12
BLOCK, STRIDE = 1 << 12, 1 << 16
FEWEST = 3
"""Among fewer nobody can say who is the odd one."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with one update, its length over the median and its cosine to the others' mean direction; nan where it has none."""

    flags: tuple[Flag, ...]
    ratio: float
    cosine: float


def fingerprint(path: Path) -> str:
    """SHA-256 over the tensors of a safetensors file by name, dtype, shape and the first 4 KiB of each 64 KiB of theirs: the same for the
    same tensors, in whatever order and under whatever header they are written. A sixteenth of the bytes tells trainings apart as surely as
    all of them, and who wants another value gets one by changing a bit in either case."""
    layout, made = header(path), hashlib.sha256()
    with Reader(path) as file:
        for name in sorted(layout):
            entry = layout[name]
            made.update(f"{name}\n{entry['dtype']}\n{entry['shape']}\n".encode())
            size = file.bytes_of(name)
            for start in range(0, size, STRIDE):
                made.update(file.raw(name, start, min(BLOCK, size - start)))
    return made.hexdigest()


def products(origin: Path, updates: Sequence[Path], without: Set[str] = frozenset()) -> np.ndarray:
    """float64 [n, n]: inner products of what each update changes in the model `origin`, over the tensors of floats that both have."""
    total = np.zeros((len(updates), len(updates)))
    step = max(LEAST_ELEMENTS, ELEMENTS // max(1, len(updates)))
    with ExitStack() as stack:
        base = stack.enter_context(Reader(origin))
        files = [stack.enter_context(Reader(path)) for path in updates]
        shared = {name: tensor for name, tensor in base.signature().items() if tensor.dtype in FLOATS and name not in without}
        for name in sorted(shared):
            for start in range(0, count := elements(shared[name]), step):
                size = min(step, count - start)
                before = _numbers(base, name, start, size)
                change = np.empty((len(files), size), before.dtype)
                for row, file in zip(change, files, strict=True):
                    np.subtract(_numbers(file, name, start, size), before, out=row)
                with np.errstate(over="ignore", invalid="ignore"):
                    part: np.ndarray = change @ change.T
                    if not np.isfinite(part).all():  # float32 has no squares beyond 1e38
                        wide = change.astype(np.float64)
                        part = wide @ wide.T
                    total += part
    return total


def _numbers(file: Reader, name: str, start: int, count: int) -> np.ndarray:
    """float32 where that is what the file has: this is about how updates lie to each other, not about their last digits."""
    if file.layout[name]["dtype"] == "F32":
        return np.frombuffer(file.raw(name, 4 * start, 4 * count), np.float32)
    return file.read(name, start, count)


def judge(
    rules: Screening,
    parties: Sequence[str],
    gram: np.ndarray,
    *,
    arrivals: Sequence[str],
    marks: Mapping[str, str],
    replayed: Set[str] = frozenset(),
) -> dict[str, Finding]:
    """Each of `parties` (in the order of `gram`) to what is wrong with its update. `arrivals` are the same parties as they came: of copies
    the first is not flagged, because whoever was copied cannot help it. `marks` are fingerprints, `replayed` whose was seen before."""
    flags: dict[str, set[Flag]] = {party: set() for party in parties}
    place = {party: at for at, party in enumerate(parties)}
    gram = np.nan_to_num(gram, nan=np.inf, posinf=1e300, neginf=-1e300)
    lengths = np.sqrt(np.maximum(np.diag(gram), 0))
    apart = np.sqrt(squared_distances(gram))
    genuine: list[str] = []
    for party in arrivals:
        own = place[party]
        if lengths[own] == 0:
            flags[party].add(Flag.UNCHANGED)
        elif party in replayed:
            flags[party].add(Flag.REPLAYED)
        elif any(_same(rules, own, place[other], lengths, apart) or marks[party] == marks[other] for other in genuine):
            flags[party].add(Flag.COPIED)
        else:
            genuine.append(party)
    measures = _against(parties, [place[party] for party in parties if party in set(genuine)], gram, lengths)
    if len(genuine) >= FEWEST:
        _odd(rules, flags, [party for party in parties if party in set(genuine)], measures)
    return {party: Finding(tuple(sorted(flags[party])), *measures[party]) for party in parties}


def _same(rules: Screening, one: int, other: int, lengths: np.ndarray, apart: np.ndarray) -> bool:
    return bool(apart[one, other] <= float(rules.alike) * max(lengths[one], lengths[other]))


def _against(parties: Sequence[str], genuine: Sequence[int], gram: np.ndarray, lengths: np.ndarray) -> dict[str, tuple[float, float]]:
    """(length over the median, cosine to the mean of the other genuine updates' directions) of each. Directions, so that a single long
    one does not decide where the others point."""
    angles, found = cosines(gram), {}
    median = float(np.median(lengths[list(genuine)])) if genuine else 0.0
    for own, party in enumerate(parties):
        others = [at for at in genuine if at != own]
        across = float(np.sqrt(max(0.0, angles[np.ix_(others, others)].sum())))
        cosine = float(angles[own, others].sum()) / across if across > 0 and lengths[own] > 0 else float("nan")
        found[party] = (float(lengths[own]) / median if median > 0 else float("nan"), cosine)
    return found


def _odd(rules: Screening, flags: dict[str, set[Flag]], genuine: Sequence[str], measures: Mapping[str, tuple[float, float]]) -> None:
    ratios, angles = (np.array([measures[party][which] for party in genuine]) for which in (0, 1))
    for party, ratio, cosine in zip(genuine, ratios, angles, strict=True):
        if ratio > float(rules.longer) and _away(ratio, ratios, rules):
            flags[party].add(Flag.LONG)
        if ratio < float(rules.shorter):
            flags[party].add(Flag.SHORT)
        if cosine < float(rules.opposed) and _away(cosine, angles, rules):
            flags[party].add(Flag.OPPOSED)


def _away(value: float, values: np.ndarray, rules: Screening) -> bool:
    """Whether it lies so many robust standard deviations from the median."""
    median = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - median))
    return bool(abs(value - median) > float(rules.deviations) * spread)

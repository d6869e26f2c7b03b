"""All importers, and which of them a source is for."""

from __future__ import annotations

import importlib
from functools import cache

from medmesh.errors import Problem
from medmesh.importing.port import Importer, Source

IMPORTERS: tuple[str, ...] = (
    "medmesh.importing.formats.files:Files",
    "medmesh.importing.sets.ctpelvic1k:CTPelvic1K",
    "medmesh.importing.sets.ctspine1k:CTSpine1K",
    "medmesh.importing.sets.decathlon:Decathlon",
    "medmesh.importing.sets.medmd:MedMD",
    "medmesh.importing.sets.medmnist:MedMNIST",
    "medmesh.importing.sets.mimic3:MIMIC3",
    "medmesh.importing.sets.mura:MURA",
    "medmesh.importing.sets.pmcvqa:PMCVQA",
    "medmesh.importing.sets.ribseg:RibSeg",
    "medmesh.importing.sets.sammed3d:SAMMed3D",
)
"""`module:class`, imported when first asked for. Order decides nothing."""
SURE = 0.2
"""A score below it recognises nothing."""


@cache
def importers() -> tuple[Importer, ...]:
    """One of each."""
    return tuple(_load(where) for where in IMPORTERS)


def named(name: str) -> Importer:
    """Raises `Problem` (`importing.no_importer`)."""
    for one in importers():
        if one.name == name:
            return one
    raise Problem("importing.no_importer", name=name, known=", ".join(sorted(one.name for one in importers())))


def recognised(source: Source) -> Importer:
    """The importer that is surest. Raises `Problem`: `importing.unrecognised` with what was looked for, `importing.ambiguous` for a tie."""
    scores = sorted(((one.sniff(source), one) for one in importers()), key=lambda found: (-found[0], found[1].name))
    best = [one for score, one in scores if score == scores[0][0]]
    if not scores or scores[0][0] < SURE:
        looked_for = "; ".join(f"{one.name}: {one.looked_for}" for one in sorted(importers(), key=lambda one: one.name))
        raise Problem("importing.unrecognised", place=source.name, files=len(source.names), looked_for=looked_for)
    if len(best) > 1:
        raise Problem("importing.ambiguous", place=source.name, names=", ".join(one.name for one in best))
    return best[0]


def _load(where: str) -> Importer:
    module, _, name = where.partition(":")
    made: Importer = getattr(importlib.import_module(module), name)()
    return made

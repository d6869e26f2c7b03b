"""Where a model or a data set comes from and where it went, in the terms of YY/T 1833.4-2023, answered from the log alone.

The matrix has the standard's three parts, design and development, use, and update; each cell names the records that prove it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB

from medmesh.store.unit import UnitOfWork
from medmesh_audit import search
from medmesh_audit.tables import entries, facts

MOST_RECORDS = 20_000
SHOWN = 200
"""Records listed in one cell; `count` tells of all, and `first` and `last` bound them."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One question of the matrix, and the verbs of the records that answer it."""

    part: str
    name: str
    en: str
    zh: str
    verbs: tuple[str, ...]


PARTS = {
    "development": ("Design and development", "设计开发"),
    "use": ("Use", "使用"),
    "update": ("Update", "更新"),
}
CELLS = (
    Cell("development", "plan", "Plan and its approval", "研发方案与审批", ("federation.create", "federation.approved", "training.submit")),
    Cell("development", "data", "Data sets", "数据集", ("dataset.create", "dataset.release", "catalogue.publish", "edge.ingest")),
    Cell("development", "labels", "Annotation", "数据标注", ("annotation.create", "annotation.export")),
    Cell("development", "hospitals", "Hospitals and their consent", "参与机构及其同意", ("federation.respond", "federation.consent")),
    Cell("development", "code", "Training code by its hash", "训练代码（哈希）", ("package.approve",)),
    Cell(
        "development",
        "training",
        "Training and rounds",
        "训练与轮次",
        ("federation.train", "federation.update", "federation.round", "training.finish"),
    ),
    Cell(
        "development",
        "undone",
        "Rounds undone, updates left out",
        "回退的轮次与剔除的更新",
        ("federation.rollback", "federation.flag", "federation.quarantine", "federation.release"),
    ),
    Cell("development", "evaluation", "Evaluation", "性能评估", ("federation.evaluate", "federation.evaluation")),
    Cell("development", "registration", "Version and weights", "模型版本与权重", ("model.register",)),
    Cell("development", "conversion", "Conversion and parity", "格式转换与一致性", ("model.convert", "model.artefact")),
    Cell("use", "release", "Release and its approval", "发布与审批", ("model.prepare-release", "approval.decide", "model.release")),
    Cell("use", "installation", "Installation", "安装部署", ("model.install", "model.serve", "model.reject")),
    Cell("use", "inference", "Inference", "推理使用", ("inference.infer",)),
    Cell("update", "withdrawal", "Withdrawal and removal", "撤回与移除", ("model.withdraw", "model.remove")),
)
FOLLOWED = {
    "model": ("federation", "job", "dataset", "release", "package"),
    "federation": ("dataset", "package"),
    "job": ("dataset", "package", "weights"),
    "dataset": ("project", "archive"),
    "release": (),
}
"""From an entity to the kinds of entities beside it in the same record that belong to its history."""
_LINKS = {"federation": "federation.start", "release": "model.release"}
"""How an approval names what it is for."""


async def trace(uow: UnitOfWork[Any], kind: str, id_: str, scope: str | None) -> dict[str, Any]:
    """The matrix of a model or a data set, following the log from it to what made it and what became of it."""
    known: dict[int, dict[str, Any]] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(kind, id_)]
    if kind == "dataset":
        waiting += await _made_of(uow, id_, scope)
    while waiting and len(known) < MOST_RECORDS:
        asked, waiting = waiting[:200], waiting[200:]
        seen.update(asked)
        found = await _records(uow, [name for one in asked for name in names(*one)], scope)
        known.update(found)
        for one in asked:
            waiting += [next_ for next_ in neighbours(one, found.values()) if next_ not in seen and next_ not in waiting]
    return matrix(kind, id_, sorted(known.items()), complete=not waiting)


def names(kind: str, id_: str) -> list[str]:
    """How records name an entity: itself, and in approvals what was approved of it."""
    return [f"{kind}:{id_}", *([f"{_LINKS[kind]}:{id_}"] if kind in _LINKS else [])]


def neighbours(of: tuple[str, str], records: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Entities named beside `of` that belong to its history, in order and once."""
    found: dict[tuple[str, str], None] = {}
    wanted = FOLLOWED.get(of[0], ())
    for record in records:
        beside = [(entity["type"], entity["id"]) for entity in record["entities"]]
        if of in beside:
            found |= dict.fromkeys(one for one in beside if one[0] in wanted and one != of)
    return list(found)


async def _made_of(uow: UnitOfWork[Any], dataset: str, scope: str | None) -> list[tuple[str, str]]:
    """The models a data set went into: by the federations and jobs that trained on it."""
    used = await _records(uow, [f"dataset:{dataset}"], scope)
    through = [(e["type"], e["id"]) for r in used.values() for e in r["entities"] if e["type"] in ("federation", "job", "model")]
    makers = [f"{kind}:{id_}" for kind, id_ in dict.fromkeys(through) if kind != "model"]
    made = await _records(uow, makers, scope) if makers else {}
    models = [(e["type"], e["id"]) for r in made.values() for e in r["entities"] if e["type"] == "model"]
    return list(dict.fromkeys([*through, *models]))


async def _records(uow: UnitOfWork[Any], about: Sequence[str], scope: str | None) -> dict[int, dict[str, Any]]:
    column = type_coerce(facts.c.entities, JSONB)
    wanted = select(facts.c.seq, entries.c.body).join(entries, entries.c.seq == facts.c.seq)
    wanted = wanted.where(or_(*(column.contains([name]) for name in about))).order_by(facts.c.seq).limit(MOST_RECORDS)
    rows = await uow.all(search.restrict(wanted, scope))
    return {row.seq: json.loads(row.body) for row in rows}


def matrix(kind: str, id_: str, records: Sequence[tuple[int, Mapping[str, Any]]], *, complete: bool = True) -> dict[str, Any]:
    """The three parts with their cells; a cell without a record is empty and says so, it is never left out."""
    parts: list[dict[str, Any]] = []
    gone = undone(records)
    for part, (en, zh) in PARTS.items():
        cells = [_cell(cell, [(seq, r) for seq, r in records if r["sub"] in cell.verbs], gone) for cell in CELLS if cell.part == part]
        if part == "update":
            cells.insert(0, _versions(kind, id_, records))
        parts.append({"part": part, "en": en, "zh": zh, "cells": cells})
    return {"standard": "YY/T 1833.4-2023", "kind": kind, "id": id_, "records": len(records), "complete": complete, "parts": parts}


Gone = Mapping[tuple[str, str], int]
"""(federation, round) to the number of the record that it was undone by."""


def undone(records: Iterable[tuple[int, Mapping[str, Any]]]) -> Gone:
    """The rounds that the coordinator's records of roll-backs name; a hospital's own records of them say where it went back to alone."""
    found: dict[tuple[str, str], int] = {}
    for seq, record in records:
        if record["sub"] == "federation.rollback" and "undone" in record["detail"]:
            found |= {(_federation(record), number): seq for number in str(record["detail"]["undone"]).split()}
    return found


def _federation(record: Mapping[str, Any]) -> str:
    return next((str(entity["id"]) for entity in record["entities"] if entity["type"] == "federation"), "")


def _round(record: Mapping[str, Any]) -> str:
    """The training round that a record is of: `federation.update` names it in the update's id, others in their detail."""
    if record["sub"] not in ("federation.round", "federation.train", "federation.update"):
        return ""
    update = next((str(entity["id"]).split(".")[0] for entity in record["entities"] if entity["type"] == "update"), "")
    return update or str(record["detail"].get("round", ""))


def _cell(cell: Cell, found: Sequence[tuple[int, Mapping[str, Any]]], gone: Gone | None = None) -> dict[str, Any]:
    proofs = [_proof(seq, record, gone or {}) for seq, record in found[:SHOWN]]
    bounds = {"first": found[0][0], "last": found[-1][0]} if found else {}
    return {"cell": cell.name, "en": cell.en, "zh": cell.zh, "count": len(found), **bounds, "proofs": proofs}


def _versions(kind: str, id_: str, records: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Every version after the first: what an update is in this standard."""
    verb = "model.register" if kind == "model" else "dataset.create"
    made = [
        (seq, r)
        for seq, r in records
        if r["sub"] == verb and any(e["type"] == kind and e["id"] == id_ and e["ver"] not in ("", "1") for e in r["entities"])
    ]
    return _cell(Cell("update", "versions", "Later versions", "后续版本", (verb,)), made)


def _proof(seq: int, record: Mapping[str, Any], gone: Gone) -> dict[str, Any]:
    """What a reader needs of a record, and its number, under which `/v1/events/{seq}/proof` proves it; `undone` is the number of the record
    of the roll-back after which nothing of it is in the model."""
    after = gone.get((_federation(record), _round(record)))
    return {
        "seq": seq,
        "verb": record["sub"],
        "when": record["t"],
        "who": record["agents"][0]["who"],
        "orgs": record["orgs"],
        "outcome": record["out"],
        "entities": [{name: value for name, value in entity.items() if value} for entity in record["entities"]],
        **({"undone": after} if after is not None and after > seq else {}),
        **({"detail": record["detail"]} if record["detail"] else {}),
        **({"approval": record["approval"]["id"]} if record["approval"].get("id") else {}),
    }

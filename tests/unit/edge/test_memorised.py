"""What the node does with a model that memorised its patients, by the hospital's policy; the worker's answers are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.contracts.data import DataSchema
from medmesh.errors import Problem
from medmesh.federated.aggregation import Local
from medmesh.learning import weights
from medmesh_edge import memorised, samples
from medmesh_edge.ports import Site, site
from medmesh_edge.tables import items, patients

WANTED = plan()


class Worker:
    """Knows what it was shown in training to `depth`, and guesses the rest."""

    def __init__(self, folder: Path, depth: float, value: float = 0.0) -> None:
        self.folder, self.depth, self.value, self.calls = folder, depth, value, 0

    def give(self, source: Path, name: str) -> str:
        return str(source)

    async def call(self, op: str, *, data: str, weights: str, out: str) -> dict[str, Any]:
        assert op == "predict"
        self.calls += 1
        stored = _load(data)
        logits = np.random.default_rng(self.calls).standard_normal((len(stored["y"]), len(WANTED.data.classes))).astype(np.float32)
        if stored["x"].max() > 0:  # of the training patients, as they are made here
            logits[np.arange(len(logits)), stored["y"]] += np.float32(self.depth)
        _save({"logits": logits + np.float32(self.value)}, Path(out))
        return {}


def _load(path: str) -> dict[str, np.ndarray]:
    return weights.load(Path(path))


def _save(tensors: dict[str, np.ndarray], path: Path) -> None:
    weights.save(tensors, path)


async def filled(node: Site, monkeypatch: pytest.MonkeyPatch, held_out: int) -> None:
    """90 patients who are trained on, with two samples each, and others who are not."""
    async with node.unit() as uow:
        for number in range(90 + held_out):
            patient = f"p{number:03d}"
            await uow.execute(insert(patients).values(patient=patient, key="", at=uow.now))
            about = {"dataset": "d", "patient": patient, "modality": WANTED.data.modality, "held_out": number >= 90, "at": uow.now}
            for sample in range(2):
                label = WANTED.data.classes[(number + sample) % 2]
                item = f"{number:03d}{sample}"
                await uow.execute(insert(items).values(item=item, object="0" * 64, label=label, **about))

    def sample(_: Site, row: Any, schema: DataSchema) -> np.ndarray:
        return np.full(schema.shape, int(row.item[:3]) < 90, dtype=np.uint8)

    monkeypatch.setattr(samples, "sample", sample)


def ruled(private: Path, memorised: str, limit: str = "0.2") -> None:
    (private / "policy.toml").write_text(f'[federation]\nmemorised = "{memorised}"\nmax_memorised = "{limit}"\n')


def local(private: Path) -> Local:
    weights.save({"w": np.zeros(3, np.float32)}, private / "trained")
    return Local(WANTED, private / "base", private, 180)


async def test_what_memorised_its_patients_is_noted_or_refused_and_what_did_not_passes(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SETTINGS.save(private)
    ruled(private, "off")
    async with site(private) as node:
        await filled(node, monkeypatch, held_out=40)

        async def scanned(worker: Worker, number: int) -> str:
            try:
                await memorised.scan(node, worker, WANTED, opened(WANTED, number), local(private))  # type: ignore[arg-type]
            except Problem as problem:
                return problem.code
            return ""

        heart, rule = Worker(private, depth=9.0), Worker(private, depth=0.0)
        assert await scanned(heart, 1) == ""
        assert heart.calls == 0, "off is off"
        ruled(private, "note")
        assert [await scanned(worker, n) for n, worker in ((2, heart), (3, rule))] == ["", ""]
        ruled(private, "refuse")
        assert [await scanned(worker, n) for n, worker in ((4, heart), (5, rule))] == ["policy.memorised", ""]
        ruled(private, "refuse", "0.9")
        assert await scanned(heart, 6) == "", "the hospital's own limit counts"

        found = {one["round"]: one for one in await memorised.listed(node)}
        assert {number: one["refused"] for number, one in found.items()} == {2: False, 3: False, 4: True, 5: False, 6: False}
        assert (found[4]["trained"], found[4]["held_out"]) == (90, 40), "patients, not samples"
        assert float(found[4]["advantage"]) > 0.8
        assert float(found[5]["advantage"]) < float(found[5]["margin"])
        assert not [body for _, _, body in await node.database.unreceipted(10) if b"advantage" in body], "nobody else's business"

        broken = Worker(private, 0.0, float("nan"))
        with pytest.raises(Problem) as caught:
            await memorised.scan(node, broken, WANTED, opened(WANTED, 7), local(private))  # type: ignore[arg-type]
        assert caught.value.code.startswith("weights."), "answers that are no numbers hide nothing"


async def test_where_nobody_is_held_out_nothing_can_be_said_and_nothing_is(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SETTINGS.save(private)
    ruled(private, "refuse", "0")
    async with site(private) as node:
        await filled(node, monkeypatch, held_out=0)
        worker = Worker(private, depth=9.0)
        await memorised.scan(node, worker, WANTED, opened(WANTED, 1), local(private))  # type: ignore[arg-type]
        assert worker.calls == 0
        assert await memorised.listed(node) == []

"""The hospital's own ledger: written before anything trains, once an attempt, and an end to what the platform may ask for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, select
from tests.unit.federated.test_plan import plan

from medmesh.contracts.federation import RoundKind, RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan, plan_hash
from medmesh.contracts.privacy import Privacy
from medmesh.errors import Problem
from medmesh.federated.privacy.clipping import WITHIN
from medmesh.learning import weights
from medmesh_edge import privacy
from medmesh_edge.ports import site
from medmesh_edge.settings import Settings
from medmesh_edge.tables import federations, privacy_spent

SETTINGS = Settings(hospital="a", node="node-1", gateway="https://127.0.0.1:1")
HOSPITAL: dict[str, Any] = {"unit": "hospital", "epsilon": "1.6", "delta": "0.00001", "clip": "3", "noise": "4"}


def opened(wanted: Plan, number: int, attempt: int = 1, kind: RoundKind = RoundKind.TRAIN, clip: str = "") -> RoundOpened:
    about = {"federation": "f", "plan_hash": plan_hash(wanted), "base": ObjectRef(sha256="0" * 64, bytes=1), "clip": clip}
    when = {"steps": 1, "seed": 1, "deadline": datetime.now(UTC) + timedelta(minutes=1), "hospitals": ("a",)}
    return RoundOpened(round=number, attempt=attempt, kind=kind, **about, **when)


async def test_an_attempt_is_spent_once_and_before_it_trains_and_the_budget_is_the_hospitals_own(private: Path) -> None:
    SETTINGS.save(private)
    wanted = plan(privacy=Privacy(**HOSPITAL))
    for again in range(2):  # a node that was killed after it wrote begins the same attempt anew
        async with site(private) as node:
            if not again:
                values = {"federation": "f", "plan": wanted.model_dump(mode="json"), "plan_hash": plan_hash(wanted), "package": {}}
                async with node.unit() as uow:
                    await uow.execute(insert(federations).values(**values, state="running", reason="", at=uow.now))
            for number, attempt in ((1, 1), (1, 2)):  # an attempt that was void trained, too
                await privacy.charge(node, wanted, opened(wanted, number, attempt))
            await privacy.charge(node, wanted, opened(wanted, 2, kind=RoundKind.EVALUATE))
            with pytest.raises(Problem) as caught:
                await privacy.charge(node, wanted, opened(wanted, 2))
            assert caught.value.code == "privacy.budget"
            async with node.unit() as uow:
                rows = await uow.all(select(privacy_spent))
            assert [(row.round, row.attempt) for row in rows] == [(1, 1), (1, 2)]
            line = (await privacy.ledger(node))[0]
            assert (line["attempts"], line["epsilon"], line["budget"]) == (2, rows[-1].epsilon, "1.6")
            records = [body for _, _, body in await node.database.unreceipted(10)]
            assert sum(b"federation.privacy" in body for body in records) == 2


async def test_a_plan_without_privacy_has_no_ledger(private: Path) -> None:
    SETTINGS.save(private)
    async with site(private) as node:
        await privacy.charge(node, plan(), opened(plan(), 1))
        assert await privacy.ledger(node) == []


def _files(folder: Path) -> tuple[Path, Path]:
    weights.save({"w": np.zeros(40_000, np.float32)}, folder / "base")
    weights.save({"w": np.full(40_000, 0.05, np.float32)}, folder / "model")  # a difference of norm 10
    return folder / "base", folder / "model"


@pytest.mark.parametrize(
    ("changed", "secure", "clip", "norm", "deviation", "within"),
    [
        ({}, None, "", 3.0, 0.0, False),  # the platform adds the noise
        ({}, {"threshold": 3}, "", 3.0, 4 * 3 / 3**0.5, False),
        ({"quantile": "0.5"}, None, "12", 10.0, 0.0, True),
        ({"quantile": "0.5"}, {"threshold": 3}, "5", 5.0, 4 * 5 / 3**0.5 * (16 / 15) ** 0.5, True),
    ],
)
async def test_what_leaves_is_clipped_and_has_its_share_of_the_noise_where_sums_are_secure(
    private: Path, changed: dict[str, str], secure: dict[str, int] | None, clip: str, norm: float, deviation: float, within: bool
) -> None:
    wanted = plan(privacy=Privacy(**{**HOSPITAL, **changed}), secure=secure, min_participants=3)
    base, model = _files(private)
    out = await privacy.protect(wanted, opened(wanted, 1, clip=clip), base, model, private / "out")
    made = weights.load(out)
    assert (WITHIN.name in made) == within
    if deviation:
        assert np.std(made["w"]) == pytest.approx(deviation, rel=0.05)
        if within:
            assert abs(made[WITHIN.name][0] + 0.5) > 1e-9, "the count has noise of its own"
    else:
        assert np.linalg.norm(made["w"]) == pytest.approx(norm, rel=1e-4)
        if within:
            assert made[WITHIN.name][0] == 0.5


@pytest.mark.parametrize("clip", ["", "nan", "inf", "-1", "0", "much"])
async def test_a_norm_that_is_none_is_not_followed(private: Path, clip: str) -> None:
    wanted = plan(privacy=Privacy(**HOSPITAL, quantile="0.5"))
    base, model = _files(private)
    with pytest.raises(Problem) as caught:
        await privacy.protect(wanted, opened(wanted, 1, clip=clip), base, model, private / "out")
    assert caught.value.code == "federation.plan_changed"


async def test_what_hides_patients_is_left_to_the_worker(private: Path) -> None:
    wanted = plan(privacy=Privacy(**{**HOSPITAL, "unit": "patient", "rate": "0.25", "epsilon": "900"}))
    base, model = _files(private)
    assert await privacy.protect(wanted, opened(wanted, 1), base, model, private / "out") == model
    assert privacy.of_worker(wanted) == {"private": {"rate": 0.25, "clip": 3.0, "noise": 4.0}}
    assert privacy.of_worker(plan()) == {} == privacy.of_worker(plan(privacy=Privacy(**HOSPITAL)))

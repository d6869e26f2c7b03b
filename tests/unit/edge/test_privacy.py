"""The hospital's own ledger: written before anything trains, once an attempt, and an end to what the platform may ask for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import insert, select, update
from tests.unit.federated.test_plan import plan

from medmesh.cli.edge.privacy import ledger
from medmesh.contracts.data import Feature, TableSchema
from medmesh.contracts.federation import RoundKind, RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan, plan_hash
from medmesh.contracts.privacy import Privacy
from medmesh.errors import Problem
from medmesh.federated.privacy.accountant import epsilon
from medmesh.federated.privacy.clipping import WITHIN
from medmesh.federated.trainer import protected
from medmesh.learning import weights
from medmesh_edge import privacy
from medmesh_edge.policy import DEFAULT, refusals
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Layout, Settings
from medmesh_edge.tables import federations, items, privacy_spent

SETTINGS = Settings(hospital="a", node="node-1", gateway="https://127.0.0.1:1")
HOSPITAL: dict[str, Any] = {"unit": "hospital", "epsilon": "1.6", "delta": "0.00001", "clip": "3", "noise": "4"}


def opened(wanted: Plan, number: int, attempt: int = 1, kind: RoundKind = RoundKind.TRAIN, clip: str = "") -> RoundOpened:
    about = {"federation": "f", "plan_hash": plan_hash(wanted), "base": ObjectRef(sha256="0" * 64, bytes=1), "clip": clip}
    when = {"steps": 1, "seed": 1, "deadline": datetime.now(UTC) + timedelta(minutes=1), "hospitals": ("a",)}
    return RoundOpened(round=number, attempt=attempt, kind=kind, **about, **when)


async def test_an_attempt_is_spent_once_and_before_it_trains_and_the_budget_is_the_hospitals_own(private: Path) -> None:
    SETTINGS.save(private)
    _rule(private)
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
    assert protected(wanted) == {"private": {"rate": 0.25, "clip": 3.0, "noise": 4.0}}
    assert protected(plan()) == {} == protected(plan(privacy=Privacy(**HOSPITAL)))


PATIENT: dict[str, Any] = {"unit": "patient", "epsilon": "900", "delta": "0.00001", "clip": "1", "noise": "2", "rate": "1"}


def _table(name: str) -> TableSchema:
    return TableSchema(kind="table", table=name, features=(Feature(name="age", kind="number", low="0", high="100"),), classes=("a", "b"))


async def _knows(node: Site, federation: str, wanted: Plan, state: str) -> None:
    values = {"federation": federation, "plan": wanted.model_dump(mode="json"), "plan_hash": plan_hash(wanted), "package": {}}
    async with node.unit() as uow:
        await uow.execute(insert(federations).values(**values, state=state, reason="", start={}, at=uow.now))


async def _holds(node: Site, **modalities: str) -> None:
    """A hospital with items of these modalities, each of some patient."""
    async with node.unit() as uow:
        for name, patient in modalities.items():
            modality = name if name in ("MR", "CT") else f"table:{name}"
            about = {"dataset": "d", "object": "0" * 64, "label": "a", "held_out": False, "at": uow.now}
            await uow.execute(insert(items).values(item=f"{name}-{patient}", patient=patient, modality=modality, **about))


def _rule(folder: Path, **rules: Any) -> None:
    lines = [
        next((f"{name} = {value!r}" for name, value in rules.items() if line.startswith(f"{name} ")), line) for line in DEFAULT.splitlines()
    ]
    Layout(folder).policy.write_text("\n".join(lines), "utf-8")


async def _refusal(node: Site, wanted: Plan, federation: str) -> Problem | None:
    return refusals(node.policy(), wanted, await privacy.cohort(node, wanted, federation)).get("total_epsilon")


async def test_federations_over_the_same_patients_are_one_account_that_the_policy_bounds(private: Path) -> None:
    SETTINGS.save(private)
    first = plan(rounds=3, local_steps=1, privacy=Privacy(**PATIENT))
    second = plan(rounds=2, local_steps=1, privacy=Privacy(**{**PATIENT, "noise": "3"}))
    other = plan(rounds=2, local_steps=1, privacy=Privacy(**PATIENT), data=_table("heart"))
    # Of Gaussian mechanisms 1 / noise^2 add up: three at 2 and two at 3 are one at this.
    both = epsilon(1.0, (3 / 4 + 2 / 9) ** -0.5, 1, 1e-5)
    alone = epsilon(1.0, 2.0, 3, 1e-5)
    async with site(private) as node:
        await _holds(node, MR="p1", heart="p2", lung="p1")
        await _knows(node, "f1", first, "accepted")
        _rule(private, total_epsilon=f"{both - 1e-6:.6f}")
        refused = await _refusal(node, second, "f2")
        assert refused is not None and refused.code == "policy.total", "what was signed counts before it is spent"
        assert refused.params["before"] == f"{alone:.3f}" and refused.params["after"] == f"{both:.3f}"
        assert await _refusal(node, first, "f1") is None, "its own is not counted twice"
        assert await _refusal(node, other, "f2") is None, "of other patients"
        shared = other.model_copy(update={"data": _table("lung")})
        assert await _refusal(node, shared, "f2") is not None, "the same patient's, in a table"
        whole = plan(privacy=Privacy(**{**HOSPITAL, "noise": "2", "epsilon": "900"}))
        assert await _refusal(node, whole, "f2") is None, "a hospital's account is another"
        _rule(private, total_epsilon=f"{both + 1e-6:.6f}")
        assert await _refusal(node, second, "f2") is None
        for number in (1, 2, 3):
            await privacy.charge(node, first, opened(first, number).model_copy(update={"federation": "f1"}))
        async with node.unit() as uow:
            await uow.execute(update(federations).values(state="completed"))
    async with site(private) as node:  # what was spent is known after a restart, whatever became of the federation
        _rule(private, total_epsilon=f"{both - 1e-6:.6f}")
        assert await _refusal(node, second, "f2") is not None
        await _knows(node, "f2", second, "running")
        await privacy.charge(node, second, opened(second, 1).model_copy(update={"federation": "f2"}))
        with pytest.raises(Problem) as caught:  # signed under a wider policy: the next attempt would be too much
            await privacy.charge(node, second, opened(second, 2).model_copy(update={"federation": "f2"}))
        assert caught.value.code == "policy.total"
        line = next(one for one in await privacy.totals(node) if one["modality"] == "MR")
        assert (line["federations"], line["without"]) == (2, 0)
        assert float(line["epsilon"]) == pytest.approx(epsilon(1.0, (3 / 4 + 1 / 9) ** -0.5, 1, 1e-5), abs=1e-6)
        assert float(line["reserved"]) == pytest.approx(both, abs=1e-6)
        await _knows(node, "f3", plan(), "running")
        assert next(one for one in await privacy.totals(node) if one["modality"] == "MR")["without"] == 1, "which nothing bounds"


async def test_a_total_may_be_of_a_period(private: Path) -> None:
    SETTINGS.save(private)
    _rule(private)
    wanted = plan(rounds=3, local_steps=1, privacy=Privacy(**PATIENT))
    async with site(private) as node:
        await _holds(node, MR="p1")
        await _knows(node, "f1", wanted, "completed")
        async with node.unit() as uow:
            for number, days in ((1, 40), (2, 20), (3, 1)):
                place = {"federation": "f1", "round": number, "attempt": 1, "epsilon": "1"}
                await uow.execute(insert(privacy_spent).values(**place, at=uow.now - timedelta(days=days)))
        for days, counted in ((0, 3), (30, 2), (10, 1)):
            _rule(private, total_days=days)
            (line,) = await privacy.totals(node)
            assert float(line["epsilon"]) == pytest.approx(epsilon(1.0, 2.0, counted, 1e-5), abs=1e-6)


def test_what_an_account_says_is_readable_in_both_languages(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SETTINGS.save(private)
    _rule(private)
    wanted = plan(rounds=3, local_steps=1, privacy=Privacy(**PATIENT))

    async def prepare() -> None:
        async with site(private) as node:
            await _holds(node, MR="p1")
            await _knows(node, "f1", wanted, "running")
            await privacy.charge(node, wanted, opened(wanted, 1).model_copy(update={"federation": "f1"}))

    asyncio.run(prepare())
    for language, says in (("en", "together, a patient (MR): epsilon 2."), ("zh", "合计，单个患者（MR）：ε=2.")):
        monkeypatch.setenv("MEDMESH_LANG", language)
        shown = CliRunner().invoke(ledger, ["--folder", str(private)])
        assert shown.exit_code == 0 and says in shown.output, shown.output

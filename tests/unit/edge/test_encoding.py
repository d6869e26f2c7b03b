"""What a codec left out of an update is kept for the next round, and no longer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert as upsert
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.federated import codecs
from medmesh.federated.aggregation import upload_signature
from medmesh.learning import weights
from medmesh.security.keys import write_secret
from medmesh_edge import encoding
from medmesh_edge.ports import site
from medmesh_edge.tables import federations, residuals


async def test_a_round_is_rounded_by_the_hospitals_secret_and_once_more_as_before(private: Path) -> None:
    """What was trained again after a kill is encoded to the same bytes; another attempt, round, federation or hospital has others."""
    SETTINGS.save(private)
    wanted = plan(codec="int8")
    event = opened(wanted, 1)
    dice = np.random.default_rng(1)
    for name in ("base", "update"):
        # An integer tensor travels as it is.
        floats = {tensor.name: dice.normal(0, 1, tensor.shape).astype(np.float32) for tensor in wanted.signature if tensor.dtype == "F32"}
        weights.save({**floats, "bn.count": np.zeros((), np.int64)}, private / name)
    async with site(private) as node:
        write_secret(node.layout.site_key, b"1" * 64)
        other = event.model_copy(update={"attempt": 2})
        made = []
        for one in (event, event):
            (folder := private / f"round-{len(made)}").mkdir()
            encoded, _ = await encoding.encode(node, wanted, one, private / "base", private / "update", folder)
            made.append(encoded.read_bytes())
        assert made[0] == made[1]
        keys = [encoding.rounding(node, event), encoding.rounding(node, other)]
        keys += [encoding.rounding(node, event.model_copy(update=changed)) for changed in ({"round": 2}, {"federation": "g"})]
        node.layout.site_key.write_bytes(b"2" * 64)
        keys.append(encoding.rounding(node, event))
        assert len(set(keys)) == 5 and {len(key) for key in keys} == {32}
        written = node.settings.model_copy(update={"hospital": "elsewhere"})
        node.layout.site_key.write_bytes(b"1" * 64)
        with_name = encoding.rounding(replace(node, settings=written), event)
        assert with_name not in keys


@pytest.mark.parametrize("end", ["completed", "failed", "withdrawn"])
async def test_what_the_next_round_goes_on_from_stays_though_an_earlier_one_left_the_same(private: Path, end: str) -> None:
    """Equal bytes are one object: an update that lost nothing leaves the same as the one before."""
    SETTINGS.save(private)
    async with site(private) as node:
        same, other = await node.objects.put(b"nothing"), await node.objects.put(b"something")
        for number, ref in enumerate((same, other, same), 1):
            async with node.unit() as uow:
                await encoding.keep(uow, opened(plan(), number), ref.sha256)
        await encoding.forget(node, opened(plan(), 3))
        assert [await node.objects.size(ref.sha256) for ref in (same, other)] == [len(b"nothing"), None]
        async with node.unit() as uow:
            values = {"federation": "f", "plan": {}, "plan_hash": "", "package": {}, "state": end, "reason": "", "at": uow.now}
            await uow.execute(upsert(federations).values(**values))
        await encoding.sweep(node)
        assert await node.objects.size(same.sha256) is None


async def test_an_update_goes_on_from_what_the_last_one_left_out_that_is_in_a_model(private: Path, tmp_path: Path) -> None:
    """Round 2 was set aside: what it said came to nothing, and what it left out belongs to what it said."""
    SETTINGS.save(private)
    wanted = plan(codec="int8")
    base, trained = tmp_path / "base", tmp_path / "trained"
    kinds = {"F32": np.float32, "I64": np.int64}
    zeros, rng = {t.name: np.zeros(t.shape, kinds[t.dtype]) for t in wanted.signature}, np.random.default_rng(1)
    weights.save(zeros, base)
    async with site(private) as node:
        write_secret(node.layout.site_key, b"1" * 64)
        lefts = dict[int, Path]()
        for number in (1, 2):
            (folder := tmp_path / str(number)).mkdir()
            weights.save({name: rng.normal(size=array.shape).astype(array.dtype) for name, array in zeros.items()}, trained)
            event = opened(wanted, number).model_copy(update={"continues": {}})
            _, residual = await encoding.encode(node, wanted, event, base, trained, folder)
            lefts[number] = folder / "left"
            async with node.unit() as uow:
                await encoding.keep(uow, event, residual)
        third = opened(wanted, 3).model_copy(update={"continues": {SETTINGS.hospital: "1.1"}})
        (folder := tmp_path / "3").mkdir()
        weights.save(zeros, trained)
        encoded, _ = await encoding.encode(node, wanted, third, base, trained, folder)
        codecs.decode("int8", upload_signature(wanted), base, encoded, tmp_path / "said", share="0.01")
        said, first, second = weights.load(tmp_path / "said"), weights.load(lefts[1]), weights.load(lefts[2])
        for name in first:  # whole numbers travel as they are
            values = said[name]
            np.testing.assert_allclose(values, first[name], atol=np.abs(first[name]).max() / 100)
            assert np.abs(values - second[name]).max() > np.abs(first[name]).max() / 10
        await encoding.forget(node, third)
        async with node.unit() as uow:
            left = await uow.all(select(residuals.c.round))
        assert {row.round for row in left} == {1}, "of round 2 there is nothing to go on from; the third's is kept by who sends it"

"""A plan's hash and its words."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from medmesh.canonical import canonical as canonical_json
from medmesh.contracts.data import Feature, ImageSchema, TableSchema
from medmesh.contracts.plan import EarlyStopping, Plan, TensorSignature, plan_hash
from medmesh.federated.aggregation import download_signature, upload_signature
from medmesh.federated.plan import after_training, evaluates, explain
from medmesh.pipelines.pipeline import declared


def plan(**changed: Any) -> Plan:
    values = {
        "name": "tiny",
        "purpose": "a test of plans",
        "initiator": "person:li@platform",
        "package": "0" * 64,
        "initial": "1" * 64,
        "framework": "numpy",
        "data": ImageSchema(modality="MR", image_size=8, classes=("none", "tumour")),
        "signature": (
            TensorSignature(name="bias", shape=(2,), dtype="F32"),
            TensorSignature(name="bn.mean", shape=(3,), dtype="F32"),
            TensorSignature(name="bn.count", shape=(), dtype="I64"),
        ),
        "rounds": 3,
        "local_steps": 5,
        "batch_size": 8,
        "learning_rate": "0.1",
        "seed": 1,
        "participants": ("a", "b", "c"),
        "min_participants": 2,
        "accept_by": datetime(2026, 1, 1, tzinfo=UTC),
        "start_at": datetime(2026, 1, 1, tzinfo=UTC),
        "round_deadline_seconds": 60,
        **changed,
    }
    return Plan(**values)


def test_a_plan_that_says_nothing_new_has_the_hash_that_the_first_release_finds() -> None:
    old = plan().model_dump(mode="json")
    for name in set(old) - {*FIRST_RELEASE}:
        del old[name]
    del old["data"]["kind"], old["data"]["pipeline"]
    assert set(old) == set(FIRST_RELEASE)
    assert plan_hash(plan()) == hashlib.sha256(canonical_json(old)).hexdigest()
    hashes = {plan_hash(p) for p in (plan(), plan(local=("bn.mean",)), plan(algorithm="fedprox"), plan(parameters={"mu": "1"}))}
    assert len(hashes) == 4


FIRST_RELEASE = (
    *("name", "purpose", "initiator", "package", "initial", "framework", "data", "signature", "algorithm", "rounds", "local_steps"),
    *("batch_size", "learning_rate", "seed", "participants", "min_participants", "accept_by", "start_at", "round_deadline_seconds"),
    *("lease_seconds", "baseline"),
)


def test_what_travels_is_what_the_algorithm_says() -> None:
    assert [t.name for t in upload_signature(plan())] == ["bias", "bn.mean", "bn.count"]
    assert download_signature(plan()) == ()
    kept = plan(algorithm="fedbn", local=("bn.mean", "bn.count"))
    assert [t.name for t in upload_signature(kept)] == ["bias"]
    corrected = plan(algorithm="scaffold")
    assert [t.name for t in upload_signature(corrected)][3:] == ["scaffold.dc/bias", "scaffold.dc/bn.mean"]
    assert [t.name for t in download_signature(corrected)] == ["scaffold.c/bias", "scaffold.c/bn.mean"]
    assert upload_signature(plan(algorithm="fednova"))[-1] == TensorSignature(name="fednova.steps", shape=(1,), dtype="F64")


def test_tensors_that_stay_are_tensors_of_the_plan_and_not_all() -> None:
    for local, says in (
        (("other",), "plan.local_unknown"),
        (("bias", "bias"), "plan.twice"),
        (("bias", "bn.mean", "bn.count"), "plan.local_all"),
    ):
        with pytest.raises(ValidationError, match=says):
            plan(local=local)


def test_a_hospital_reads_what_the_algorithm_does() -> None:
    wanted = plan(algorithm="fedbn", local=("bn.mean",))
    english, chinese = "\n".join(explain(wanted)), "\n".join(explain(wanted, "zh"))
    assert "never leave your hospital: bn.mean" in english
    assert "始终留在贵院的张量：bn.mean" in chinese
    assert "a model of its own" in english
    assert "scaffold.dc" in "\n".join(explain(plan(algorithm="scaffold")))
    assert "mu = 0.5" in "\n".join(explain(plan(algorithm="fedprox", parameters={"mu": "0.5"})))


def test_a_hospital_reads_which_columns_of_which_table_are_used() -> None:
    age = Feature(name="age", kind="number", low="18", high="90")
    wanted = plan(data=TableSchema(kind="table", table="heart", features=(age,), classes=("well", "ill")))
    assert "the columns age of the table heart" in "\n".join(explain(wanted))
    assert "表格 heart 的字段 age" in "\n".join(explain(wanted, "zh"))
    assert "MR images scaled to 8×8" in "\n".join(explain(plan()))
    other = plan(data=TableSchema(kind="table", table="heart", features=(age.model_copy(update={"scale": "10"}),), classes=("well", "ill")))
    assert plan_hash(wanted) != plan_hash(other), "the constants are signed"


def test_a_hospital_reads_what_is_done_with_its_data_and_signs_its_hash() -> None:
    def prepared(high: float) -> Plan:
        steps = [{"step": "scale", "shape": [8, 8]}, {"step": "normalise", "how": "percentile", "high": high}]
        stated = declared({"name": "mri-8", "steps": steps}).stated()
        return plan(data=ImageSchema(modality="MR", image_size=8, classes=("none", "tumour"), pipeline=stated))

    wanted = prepared(99.5)
    english, chinese = "\n".join(explain(wanted)), "\n".join(explain(wanted, "zh"))
    assert "by the pipeline mri-8 (hash " in english and "scaled to 8×8 (scale v1)" in english
    assert "0 to 1 between the percentiles 1 and 99.5) (normalise v1)" in english
    assert "处理流程 mri-8（哈希 " in chinese and "缩放至 8×8（scale v1）；数值归一化（第 1 至第 99.5 百分位映射为 0-1）" in chinese
    assert "pipeline" not in "\n".join(explain(plan()))
    assert len({plan_hash(wanted), plan_hash(prepared(99)), plan_hash(plan())}) == 3, "it is part of what is signed"
    again = Plan.model_validate_json(wanted.model_dump_json())
    assert again == wanted and plan_hash(again) == plan_hash(wanted)


def test_a_hospital_reads_what_an_evaluation_tells() -> None:
    assert "and the loss; nothing else" in "\n".join(explain(plan()))
    told = "\n".join(explain(plan(evaluate_every=2, small_cell=5, stop=EarlyStopping(patience=4))))
    assert (
        "every 2 rounds and at the end, counts of a confusion matrix over held-out samples, of patients as multiples of 5, none below it."
        in told
    )
    assert "ends early when balanced accuracy has not risen by more than 0 for 4 evaluations" in told
    assert "exactly as they are, however small" in "\n".join(explain(plan(baseline=True)))
    sums = plan(evaluate_every=1, small_cell=5, secure={"threshold": 3}, min_participants=3)
    assert "none below it; they leave masked, and the platform learns their sum over the hospitals only." in "\n".join(explain(sums))
    assert "计数加掩码后离开，平台只能得到各院之和" in "\n".join(explain(sums, "zh"))
    chinese = "\n".join(explain(plan(evaluate_every=1, small_cell=5, stop=EarlyStopping()), "zh"))
    assert "每轮及结束时另有留出样本的混淆矩阵计数，按患者计，均为 5 的倍数" in chinese
    assert "提前结束，并保留评估最好的模型" in chinese


def test_what_cannot_be_evaluated_is_refused_with_the_reason() -> None:
    secure = {"secure": {"threshold": 3}, "min_participants": 3}
    for changed, says in (({"stop": {}}, "plan.stop_unevaluated"), ({"baseline": True, **secure}, "plan.secure_baseline")):
        with pytest.raises(ValidationError, match=says):
            plan(**changed)
    for wrong in ("-1", "1", "x", "NaN"):
        with pytest.raises(ValidationError, match=r"plan\.number"):
            EarlyStopping(min_delta=wrong)


def test_evaluations_are_in_the_first_round_and_every_so_many_after_it() -> None:
    wanted = plan(rounds=7, evaluate_every=3)
    assert [n for n in range(10) if evaluates(wanted, n)] == [1, 4, 7]
    assert after_training(wanted) == ("evaluate",)
    assert not [n for n in range(10) if evaluates(plan(), n)]

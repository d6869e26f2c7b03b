"""A plan's hash and its words."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from medmesh.canonical import canonical as canonical_json
from medmesh.contracts.data import Feature, ImageSchema, TableSchema
from medmesh.contracts.federation import RoundKind
from medmesh.contracts.plan import EarlyStopping, Plan, TensorSignature, plan_hash
from medmesh.federated.aggregation import download_signature, upload_signature
from medmesh.federated.plan import after_training, evaluates, explain, fixed, least, steps_of, update_bytes
from medmesh.federated.secure import counts, vectors
from medmesh.learning import weights
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


MASKED = {"secure": {"threshold": 3}, "min_participants": 3}
BIG = (TensorSignature(name="w", shape=(100 * 2**18,), dtype="F32"),)


def test_a_masked_update_has_the_bytes_of_its_ring(private: Path) -> None:
    weights.save({"w": np.ones(1000, np.float32), "steps": np.ones((), np.int64)}, private / "model")
    small = (TensorSignature(name="w", shape=(1000,), dtype="F32"), TensorSignature(name="steps", shape=(), dtype="I64"))
    for ring in (64, 32):
        wanted = plan(signature=small, evaluate_every=1, min_participants=3, secure={"threshold": 3, "ring": ring, "bits": 12})
        beside = [0] * counts.width(wanted, RoundKind.TRAIN, 1, 0)
        made = vectors.encode(private / "model", 10, private / "vector", bits=12, parties=3, ring=ring, beside=beside)
        header = 8 + int.from_bytes((private / "vector").read_bytes()[:8], "little")
        assert update_bytes(wanted) == made.bytes - header, "what really travels"
    assert update_bytes(plan(signature=BIG)) == 100 * 2**20
    assert update_bytes(plan(signature=BIG, **MASKED)) == 200 * 2**20 + 8
    assert update_bytes(plan(signature=BIG, secure={"threshold": 3, "ring": 32}, min_participants=3)) == 100 * 2**20 + 4


def _left(language: str = "en", **changed: Any) -> str:
    (line,) = [line for line in explain(plan(**changed), language) if line.startswith(("What leaves", "离开医院的内容"))]
    return line


def test_a_hospital_reads_what_leaves_it_under_a_secure_sum() -> None:
    assert _left(signature=BIG) == "What leaves: 1 tensor a round (100.0 MiB), the number of samples and the loss; nothing else."
    assert _left(signature=(*BIG, plan().signature[0])).startswith("What leaves: 2 tensors a round")
    masked = {"signature": BIG, **MASKED}
    assert _left(**masked) == "What leaves: one masked vector a round (200.0 MiB), in it the model and the number of samples; nothing else."
    assert _left("zh", **masked) == "离开医院的内容：每轮一个加掩码的向量（200.0 MiB），内含模型与样本数；别无其他。"
    evaluated = {**masked, "evaluate_every": 1}
    assert "in it the model, the number of samples and the loss of rounds that evaluate; every round and" in _left(**evaluated)
    assert "内含模型、样本数及评估轮的损失；每轮及结束时" in _left("zh", **evaluated)
    private = {**masked, "privacy": {"unit": "hospital", "epsilon": "8", "delta": "0.00001", "clip": "1", "noise": "2"}}
    assert _left(**private).endswith("in it the model; nothing else.") and _left("zh", **private).endswith("内含模型；别无其他。")


def test_words_agree_with_their_numbers() -> None:
    few = "\n".join(explain(plan(rounds=1, local_steps=1, participants=("a",), min_participants=1, batch_size=1, max_drops=1)))
    assert "invites 1 hospital to" in few and "1 round of 1 local step on 1 sample each, " in few and "drops out 1 time is" in few
    many = "\n".join(explain(plan(max_drops=2)))
    assert "invites 3 hospitals to" in many and "3 rounds of 5 local steps on 8 samples each, " in many and "drops out 2 times is" in many


def test_the_least_that_a_round_may_ask_for_is_at_the_lower_ends_of_the_ranges() -> None:
    ranges = {"local_steps": {"low": "1.5", "high": "9"}, "batch_size": {"low": "0.5", "high": "64"}}
    wanted = plan(ranges=ranges)
    assert (least(wanted).local_steps, least(wanted).batch_size) == (2, 1), "whole numbers that the range holds"
    assert least(fixed(wanted)) == fixed(wanted) == plan() and fixed(plan()) == plan()
    assert steps_of(wanted, 1000) == 5
    assert steps_of(plan(algorithm="fednova", parameters={"epochs": "0.1"}), 1000) == 13, "of a tenth of a pass, whatever the plan's steps"


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

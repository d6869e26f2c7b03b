"""What hospitals trained on, held against what the coordinator wrote down that it committed."""

from __future__ import annotations

from tests.unit.auditing.test_signatures import PLAN, body, look, moved, started

from medmesh.store.unit import AuditEntry, Entity

Detail = dict[str, str | int | bool]
ABOUT = (Entity("federation", "f", digest=PLAN),)


def committed(number: int, value: str, model: str) -> bytes:
    detail: Detail = {"round": number, "parties": 2, "model": model, "chain": value}
    return body("federation", AuditEntry("federation.round", "E", entities=ABOUT, detail=detail))


def went_back(number: int, value: str, model: str) -> bytes:
    detail: Detail = {"round": number, "undone": "2", "model": model, "chain": value}
    return body("federation", AuditEntry("federation.rollback", "E", entities=ABOUT, detail=detail))


def trained(number: int, value: str, base: str, kind: str = "train") -> bytes:
    detail: Detail = {"round": number, "steps": 5, "chain": "0" * 64, "kind": kind, "base": base, "committed": value}
    return body("edge:renji", AuditEntry("federation.train", "E", entities=ABOUT, detail=detail))


V1, V2, V3, VB = "v1", "v2", "v3", "vb"
A, B, C = "a" * 64, "b" * 64, "c" * 64
HONEST = [trained(1, PLAN, C), committed(1, V1, A), trained(2, V1, A), committed(2, V2, B), trained(3, V2, B), committed(3, V3, C)]


def test_trainings_begin_with_what_the_coordinator_wrote_down() -> None:
    def found(*bodies: bytes, whole: bool = True) -> list[tuple[str, int | None]]:
        return [(f.problem.code, f.seq) for f in look(started(), *bodies, whole=whole).faults]

    assert found(*HONEST, moved("completed")) == []
    late = [HONEST[1], HONEST[3], HONEST[0], HONEST[5], HONEST[4], HONEST[2]]
    assert found(*late, moved("completed")) == [], "records of hospitals come when they come"
    # Round 3 begins again after a way back; somebody trained at it before.
    back = [*HONEST[:5], went_back(1, VB, A), trained(3, VB, A), committed(3, V3, C), moved("completed")]
    assert found(*back) == []
    alone = [*HONEST, trained(4, V3, C, "baseline"), moved("completed")]
    assert found(*alone) == []

    lies = {
        "another model under the same chain": [*HONEST[:2], trained(2, V1, B), *HONEST[3:]],
        "another chain": [*HONEST[:2], trained(2, "v9", B), *HONEST[3:]],
        "what stood before": [*HONEST[:4], trained(3, V1, A), HONEST[5], moved("completed")],
        "the plan's hash again": [*HONEST[:4], trained(3, PLAN, A), HONEST[5], moved("completed")],
    }
    for what, bodies in lies.items():
        assert [code for code, _ in found(*bodies)] == ["audit.uncommitted"], what
    assert found(*lies["another chain"]) == [("audit.uncommitted", 3)]

    # A hospital's own copy, without some of the coordinator's records: only what contradicts is found.
    assert found(*lies["another chain"], whole=False) == []
    assert found(*lies["another model under the same chain"], whole=False) == [("audit.uncommitted", 3)]
    assert found(committed(3, V3, C), trained(2, V1, A), whole=False) == []

"""The traceability matrix: what belongs to a history, and that an empty cell is shown as empty."""

from __future__ import annotations

from typing import Any

from tests.unit.auditing.records import made

from medmesh.auditing.vocabulary import VERBS
from medmesh.store.unit import AuditEntry, Entity
from medmesh_audit.lineage import CELLS, PARTS, SHOWN, matrix, names, neighbours


def record(verb: str, *entities: Entity, **detail: Any) -> dict[str, Any]:
    return made(AuditEntry(verb, "C", entities=entities, detail=detail))


def cells(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["cell"]: cell for part in document["parts"] for cell in part["cells"]}


def test_every_verb_of_a_cell_exists_and_the_parts_are_those_of_the_standard() -> None:
    assert {verb for cell in CELLS for verb in cell.verbs} <= set(VERBS)
    assert [part["part"] for part in matrix("model", "mri", [])["parts"]] == list(PARTS) == ["development", "use", "update"]


def test_an_empty_cell_says_so() -> None:
    found = cells(matrix("model", "mri", []))
    assert set(found) == {cell.name for cell in CELLS} | {"versions"}
    assert all(cell["count"] == 0 and cell["proofs"] == [] for cell in found.values())


def test_a_cell_names_its_records_and_counts_all_of_them() -> None:
    many = [(n, record("inference.infer", Entity("model", "mri", "1"))) for n in range(SHOWN + 5)]
    converted = (900, record("model.convert", Entity("model", "mri", "1"), parity="2.000e-06"))
    found = cells(matrix("model", "mri", [*many, converted]))
    assert (found["inference"]["count"], len(found["inference"]["proofs"])) == (SHOWN + 5, SHOWN)
    assert (found["inference"]["first"], found["inference"]["last"]) == (0, SHOWN + 4)
    (proof,) = found["conversion"]["proofs"]
    assert (proof["seq"], proof["detail"]) == (900, {"parity": "2.000e-06"})


def test_a_later_version_is_an_update() -> None:
    records = [(n, record("model.register", Entity("model", "mri", str(n)))) for n in (1, 2, 3)]
    records.append((4, record("model.register", Entity("model", "other", "7"))))
    assert [proof["seq"] for proof in cells(matrix("model", "mri", records))["versions"]["proofs"]] == [2, 3]


def test_a_history_follows_what_stands_beside_and_nothing_else() -> None:
    beside = (Entity("model", "mri", "1"), Entity("federation", "f1"), Entity("job", "j1"), Entity("hospital", "renji"))
    records = [record("model.register", *beside), record("model.register", Entity("model", "other"), Entity("federation", "f2"))]
    assert neighbours(("model", "mri"), records) == [("federation", "f1"), ("job", "j1")]
    # A federation does not lead on to other models that came out of it.
    assert neighbours(("federation", "f1"), records) == []
    assert names("federation", "f1") == ["federation:f1", "federation.start:f1"]


def test_rounds_that_were_rolled_back_are_told_as_undone_and_those_trained_after_it_are_not() -> None:
    one, other = Entity("federation", "f1"), Entity("federation", "f2")
    records = [
        (1, record("federation.round", one, round=1)),
        (2, record("federation.update", one, Entity("update", "2.1"))),
        (3, record("federation.round", one, round=2)),
        (4, record("federation.round", other, round=2)),
        (5, record("federation.train", one, round=3)),
        (6, record("federation.flag", one, Entity("hospital", "renji"), round=3)),
        (7, record("federation.rollback", one, round=1, undone="2 3")),
        (8, record("federation.rollback", one, round=4)),  # as a hospital records that it followed
        (9, record("federation.round", one, round=4)),
        (10, record("federation.rollback", one, round=1, undone="4")),
    ]
    found = cells(matrix("model", "mri", records))
    undone = {proof["seq"]: proof.get("undone") for proof in found["training"]["proofs"]}
    assert undone == {1: None, 2: 7, 3: 7, 4: None, 5: 7, 9: 10}
    assert [proof["seq"] for proof in found["undone"]["proofs"]] == [6, 7, 8, 10]

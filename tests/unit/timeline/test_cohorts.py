"""Who is in a cohort, from when on, and that no label tells what could not have been known."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.unit.timeline.test_export import event

from medmesh.errors import Problem
from medmesh.timeline.cohorts import Answer, CodeSet, Definition, Member, judged, read
from medmesh.timeline.events import BIRTH, DEATH, Event, order

DAY = datetime(2024, 3, 1)
MI = {"systems": ["ICD10", "ICD10CN", "ICD9CM"], "codes": ["I21", "410"], "without": ["I21.4"]}
ASKED: dict[str, Any] = {
    "name": "mi-death",
    "index": MI,
    "outcome": {"codes": {"events": [DEATH]}, "within_days": 30},
}


def told(day: float, code: str, precision: str = "second") -> Event:
    return event(1, 0, time=DAY + timedelta(days=day), code=code, time_precision=precision, event_id=f"{day}{code}")


def ask(*events: Event, **changes: Any) -> tuple[list[Member], Counter[str]]:
    left_out: Counter[str] = Counter()
    definition = read(json.dumps(ASKED | changes))
    return list(judged(definition, 1, sorted(events, key=order), left_out)), left_out


INDEX = told(0, "DIAGNOSIS//ICD10//I21.9")
LATER = told(60, "LAB//LOINC//2160-0")


@pytest.mark.parametrize(
    ("code", "member"),
    [
        ("DIAGNOSIS//ICD10//I21", True),
        ("DIAGNOSIS//ICD10CN//I21.900X001", True),
        ("DIAGNOSIS//ICD9CM//410.71", True),
        ("DIAGNOSIS//ICD10//I21.4", False),
        ("DIAGNOSIS//ICD10//I20.0", False),
        ("DIAGNOSIS//ICD10CM//I21.9", False),
        ("PROCEDURE//ICD10//I21.9", False),
    ],
)
def test_a_code_set_has_everything_below_its_codes_and_nothing_else(code: str, member: bool) -> None:
    assert CodeSet.model_validate(MI).has(code) is member


def test_codes_are_asked_for_with_or_without_their_point() -> None:
    assert CodeSet(systems=("ICD9CM",), codes=("4107",)).prefixes() == ["DIAGNOSIS//ICD9CM//410.7"]


def test_a_label_is_of_after_the_prediction_and_within_its_window() -> None:
    (died,), _ = ask(INDEX, told(10, DEATH))
    assert (died.index_time, died.prediction_time, died.label, died.label_time) == (DAY, DAY, True, DAY + timedelta(days=10))
    (lived,), _ = ask(INDEX, LATER, told(61, DEATH))
    assert lived.label is False
    (edge,), _ = ask(INDEX, told(30, DEATH))
    assert edge.label is True, "the last moment counts"
    again = {"codes": {"events": [DEATH]}, "within_days": 30, "prior": "ignore"}
    assert ask(INDEX, told(0, DEATH), LATER, outcome=again)[0][0].label is False, "at the very time of prediction is not after it"


def test_whoever_is_not_seen_to_the_end_is_not_without_the_outcome() -> None:
    assert ask(INDEX, told(20, "LAB//LOINC//2160-0")) == ([], {"follow-up": 1})


def test_what_is_known_to_the_day_alone_counts_from_the_days_end() -> None:
    vague = told(0, "DIAGNOSIS//ICD10//I21.9", "day")
    (sample,), _ = ask(vague, LATER)
    assert sample.prediction_time == datetime(2024, 3, 1, 23, 59, 59, 999_999)
    assert ask(vague, told(0.5, DEATH), LATER) == ([], {"prior outcome": 1}), "on the same day: nobody knows whether before"
    assert ask(INDEX, told(0.5, "X//Y"), told(0.25, DEATH))[0][0].label is True, "to the second it is known"
    month = told(0, "DIAGNOSIS//ICD10//I21.9", "month")
    assert ask(month, told(70, "X//Y"))[0][0].prediction_time.date() == datetime(2024, 3, 31).date()


def test_the_prediction_may_be_later_and_looks_back_so_far() -> None:
    (sample,), _ = ask(INDEX, LATER, predict_after_hours=24, observation_days=7)
    assert sample.prediction_time == DAY + timedelta(days=1)
    assert sample.start == sample.prediction_time - timedelta(days=7)
    assert ask(INDEX, told(0.5, DEATH), predict_after_hours=24) == ([], {"prior outcome": 1}), "died before anybody predicts"


def test_history_age_inclusion_and_exclusion() -> None:
    before, born = told(-200, "LAB//LOINC//2160-0"), told(-365.25 * 60, BIRTH)
    assert ask(INDEX, LATER, history_days=180)[1] == {"history": 1}
    assert len(ask(before, INDEX, LATER, history_days=180)[0]) == 1
    assert ask(born, INDEX, LATER, history_days=180)[1] == {"history": 1}, "being born is no history"
    assert ask(INDEX, LATER, minimum_age=18)[1] == {"age": 1}, "of unknown age"
    assert len(ask(born, INDEX, LATER, minimum_age=60, maximum_age=60)[0]) == 1
    assert ask(born, INDEX, LATER, minimum_age=61)[1] == {"age": 1}
    diabetes = {"systems": ["ICD10"], "codes": ["E11"]}
    had, got = told(-10, "DIAGNOSIS//ICD10//E11.9"), told(10, "DIAGNOSIS//ICD10//E11.9")
    assert len(ask(had, INDEX, LATER, include=[diabetes])[0]) == 1
    assert ask(INDEX, got, LATER, include=[diabetes])[1] == {"inclusion": 1}, "what comes later is not known yet"
    assert ask(had, INDEX, LATER, exclude=[diabetes])[1] == {"exclusion": 1}
    assert len(ask(INDEX, got, LATER, exclude=[diabetes])[0]) == 1


def test_each_occurrence_may_be_a_sample() -> None:
    second = told(40, "DIAGNOSIS//ICD10//I21.0")
    assert len(ask(INDEX, second, told(90, "X//Y"))[0]) == 1
    assert [one.index_time for one in ask(INDEX, second, told(90, "X//Y"), occurrence="all")[0]] == [DAY, DAY + timedelta(days=40)]


def test_a_question_has_one_hash_and_a_wrong_one_is_named() -> None:
    one, other = read(json.dumps(ASKED)), read(json.dumps(dict(reversed(ASKED.items())), indent=3))
    assert one.digest == other.digest
    assert read(json.dumps(ASKED | {"history_days": 1})).digest != one.digest
    for wrong, where in (({"history_days": 1.5}, "history_days"), ({"indx": {}}, "indx"), ({"index": {"codes": ["I21"]}}, "index")):
        with pytest.raises(Problem) as caught:
            read(json.dumps(ASKED | wrong))
        assert caught.value.code == "timeline.cohort_invalid" and where in str(caught.value)
    with pytest.raises(Problem):
        read("{")


def answer(positive: int, negative: int, left_out: int) -> dict[str, Any]:
    members = [Member(n, DAY, None, DAY, n < positive, None) for n in range(positive + negative)]
    return Answer(Definition.model_validate(ASKED), 1, tuple(members), Counter({"age": left_out} if left_out else {})).told()


def test_a_small_count_hides_what_would_tell_it() -> None:
    whole = answer(6, 10, 0)
    assert (whole["patients"], whole["positive"], whole["negative"]) == (16, 6, 10)
    small = answer(3, 10, 0)
    assert (small["patients"], small["positive"], small["negative"]) == (13, None, None), "13 - 10 would tell"
    assert answer(3, 1, 0)["patients"] is None
    assert answer(6, 10, 2)["without age"] is None
    assert answer(0, 10, 0)["positive"] == 0, "nobody is no small group"

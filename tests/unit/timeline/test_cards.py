"""A card tells what is in the records, in both languages, and of few people nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from tests.unit.timeline.test_export import START, event

from medmesh.timeline.cards import Facts, _count, markdown, page, sections, told
from medmesh.timeline.events import BIRTH, DEATH, order


def facts() -> Facts:
    found = Facts("heart<script>", datetime(2026, 1, 1, tzinfo=UTC))
    for subject in range(12):
        born = START - timedelta(days=365.25 * (70 if subject < 6 else 30))
        events = [event(subject, 0, code="GENDER//F" if subject < 9 else "GENDER//M", time=None, modality="", code_system="")]
        events += [
            event(subject, 1, code=BIRTH, time=born, modality="", code_system=""),
            event(subject, 2),
            event(subject, 48, numeric_value=1.0),
        ]
        events += [event(subject, 3, code="DIAGNOSIS//TEXT//X", code_system="TEXT", time=born - timedelta(days=9))] if not subject else []
        events += [event(subject, 0, code=DEATH, modality="", code_system=""), event(subject, 24 * 90)] if subject == 1 else []
        _count(found, sorted(events, key=order))
    return found


def test_what_is_counted_is_what_is_there() -> None:
    found = facts()
    assert (found.patients, found.events, found.kinds["DIAGNOSIS"]) == (12, 51, 26)
    assert found.patients_sex == {"F": 9, "M": 3}
    assert found.patients_age == {"65-79": 5, "18-44": 6, "?": 1}, "who has something from before birth has no age"
    assert (found.before_birth, found.after_death, found.uncoded, found.without_unit) == (1, 1, 1, 12)
    assert found.patients_code["DIAGNOSIS//ICD10//I21.9"] == 12


def test_few_people_are_not_told_and_nobody_can_reckon_them() -> None:
    assert told({"F": 9, "M": 3}) == {"F": "—", "M": "—"}, "12 - 9 would tell"
    assert told({"a": 20, "b": 9, "c": 3}) == {"a": "20", "b": "—", "c": "—"}
    assert told({"a": 20, "b": 0}) == {"a": "20", "b": "0"}
    assert told({"patients": 3}) == {"patients": "—"}


def test_both_languages_and_both_forms_say_the_same_numbers() -> None:
    found = facts()
    numbers = []
    for language in ("en", "zh"):
        text, made = markdown(found, language), page(found, language)
        assert "<script>" not in made and "&lt;script&gt;" in made
        for heading, tables in sections(found, language):
            assert f"## {heading}" in text and f"<h2>{heading}</h2>" in made
            assert all(f"| {label} | {value} |" in text for _, rows in tables for label, value in rows)
        numbers.append(re.findall(r"\| ([\d—]+) \|", text))
    assert numbers[0] == numbers[1]
    assert "数据均衡性" in markdown(found, "zh") and not re.search("[\u4e00-\u9fff]", markdown(found, "en"))

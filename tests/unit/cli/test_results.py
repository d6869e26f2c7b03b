"""What came of a federation, as it is told: its table, its picture, its curves, and how long it takes."""

from __future__ import annotations

import csv
import io
import re
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.unit.cli.test_federation import PLAN, REF, answer, round_, view
from tests.unit.federation.test_domain import NOW

from medmesh.cli.views import document, draw, show_result
from medmesh.client import plot
from medmesh.client.plot import chinese_font, figure, table
from medmesh.client.results import PARTIAL, cross_site, curve, gains, kept_round, last_round, remaining, split
from medmesh.contracts.federation import (
    EvaluationView,
    FederationView,
    RoundView,
)
from medmesh.contracts.message import ObjectRef


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_and_the_picture_show_every_hospital_and_round(language: str) -> None:
    def answered(number: int) -> RoundView:
        times, counts = {"fetch": 100, "train": 2000}, ((6 + number, 4 - number), (4 - number, 6 + number))
        about = {"metrics": {"loss": number / 2}, "milliseconds": times, "counts": counts}
        given = tuple(answer(hospital, **about) for hospital in ("a", "b"))
        return round_(number, 5.0 * number).model_copy(update={"answers": given, "aggregate_milliseconds": 400})

    cell = EvaluationView(hospital="a", name="federated", counts=((9, 1), (1, 9)))
    shown = view("completed", rounds=(answered(1), answered(2), round_(3, None, "open")), evaluation=(cell,))
    lines = list(csv.DictReader(io.StringIO(table(shown))))
    assert [(x["round"], x["hospital"], x["metric"], x["model_of_round"], x["value"]) for x in lines][:4] == [
        ("1", "a", "loss", "1", "0.5"),
        ("1", "a", "balanced_accuracy", "0", "0.7"),
        ("1", "b", "loss", "1", "0.5"),
        ("1", "b", "balanced_accuracy", "0", "0.7"),
    ]
    assert {(x["seconds"], x["train"], x["aggregate"], x["send"]) for x in lines[:4]} == {("5.0", "2.0", "0.4", "")}
    accuracy, loss, size, took, usual, matrix = figure(shown, language).axes
    assert [list(line.get_ydata()) for line in accuracy.lines[:3]] == [[0.7, 0.8]] * 3, "each of two hospitals, and both together"
    assert [(line.get_label(), list(line.get_ydata())) for line in loss.lines] == [("a", [0.5, 1.0]), ("b", [0.5, 1.0])]
    assert [bar.get_height() for bar in size.patches] == [2.0] * 4
    by_round = [sum(bar.get_height() for bar in took.patches if round(bar.get_x() + 0.4) == number) for number in (1, 2)]
    assert by_round == [pytest.approx(5.0), pytest.approx(10.0)], "all of a round's time is told"
    assert {bar.get_width() for bar in usual.patches} == {0.1, 0.0, 2.0}
    assert [text.get_text().splitlines()[0] for text in matrix.texts] == ["0.90", "0.90"]


@pytest.mark.parametrize("hospitals", [0, 1, 40])
def test_there_is_a_picture_of_nothing_and_of_many(hospitals: int) -> None:
    names = [f"h{n}" for n in range(hospitals)]
    one = round_(1, 2).model_copy(update={"answers": tuple(answer(name, metrics={"loss": 1.0}) for name in names)})
    cells = tuple(EvaluationView(hospital=name, name="federated", counts=((9, 1), (1, 9))) for name in names)
    drawn = figure(view(rounds=(one,) if names else (), evaluation=cells))
    assert len(drawn.axes) == 6
    assert len(drawn.axes[1].lines) == hospitals


def test_time_left_is_the_median_round_times_those_to_come_and_training_alone_is_all_of_them_at_once() -> None:
    assert remaining(view()) is None
    took = (round_(1, 10), round_(2, 2, "void"), round_(2, 20), round_(3, 90))
    assert remaining(view(rounds=took)) == 20 * 2 + (20 + 4 * 20) + 20
    running = (*took, round_(4, None, "open"))
    assert remaining(view(rounds=running), NOW + timedelta(seconds=15)) == 160 - 15
    assert remaining(view(rounds=running), NOW + timedelta(seconds=500)) == 160 - 20, "late, but no sooner over"
    measured = tuple(r.model_copy(update={"answers": (answer("a", milliseconds={"train": 5000}),)}) for r in took)
    assert remaining(view(rounds=measured)) == 20 * 2 + (20 + 4 * 5) + 20
    assert remaining(view("completed", rounds=took)) is None
    assert last_round(PLAN) == 7
    over = PLAN.model_copy(update={"baseline": False, "evaluate_every": 1})
    stopped = (*took, round_(6, 1).model_copy(update={"kind": "evaluate"}))
    assert remaining(view(rounds=stopped).model_copy(update={"plan": over})) == 0, "early stopping left rounds out"


def test_the_curve_tells_each_model_by_the_round_that_made_it_and_which_was_kept() -> None:
    good, bad, late = ((9, 1), (0, 10)), ((5, 5), (5, 5)), answer("c", late=True, counts=((0, 50), (50, 0)))
    first = round_(1, 5).model_copy(update={"answers": (answer("a", counts=bad), answer("b", counts=bad))})
    second = round_(2, 5).model_copy(update={"answers": (answer("a", counts=good), answer("b"), late)})
    models = [ObjectRef(sha256=str(n) * 64, bytes=8) for n in (4, 5, 6)]
    rounds = (first.model_copy(update={"model": models[1]}), second.model_copy(update={"model": models[2]}))
    shown = view("completed", rounds=rounds)
    assert [(p.round, p.value, p.samples) for p in curve(shown)] == [(0, 0.5, 40), (1, 0.95, 20)]
    assert kept_round(shown.model_copy(update={"model": models[1]})) == 1
    assert kept_round(shown.model_copy(update={"model": REF})) == 0, "the first weights were never beaten"
    assert kept_round(view()) is None


def test_a_round_is_as_long_as_its_slowest_hospital_and_what_is_left_is_the_rest() -> None:
    one = round_(1, 10).model_copy(
        update={
            "answers": (answer("a", milliseconds={"fetch": 100, "train": 4000}), answer("b", milliseconds={"train": 2000, "send": 900})),
            "aggregate_milliseconds": 500,
        }
    )
    assert split(one) == (0.1, 0.0, 4.0, 0.0, 0.9, 0.5, 4.5)
    assert split(round_(1, 10)) is None
    assert split(round_(1, None, "open")) is None


def test_a_personal_model_is_held_against_the_global_one_where_it_is_used() -> None:
    counts = {("federated", "a"): ((60, 40), (40, 60)), ("personal", "a"): ((90, 10), (10, 90)), ("federated", "b"): ((9, 1), (1, 9))}
    counts |= dict.fromkeys((("federated", "c"), ("personal", "c")), ((0, 0), (0, 0)))
    given = tuple(EvaluationView(hospital=hospital, name=name, counts=table) for (name, hospital), table in counts.items())
    (one,) = gains(view(evaluation=given))
    assert (one.hospital, one.federated, one.personal) == ("a", 0.6, 0.9)
    assert one.difference == pytest.approx(0.3)
    assert one.low < one.difference < one.high
    assert one.low > 0.2, "far more than chance"


def test_the_matrix_has_every_model_at_every_hospital_and_over_all() -> None:
    counts = {("federated", "a"): ((8, 2), (1, 9)), ("federated", "b"): ((10, 0), (0, 10)), ("a", "a"): ((5, 5), (5, 5))}
    given = tuple(EvaluationView(hospital=hospital, name=name, counts=table) for (name, hospital), table in counts.items())
    cells = {(c.model, c.hospital): c for c in cross_site(view(evaluation=given))}
    assert [c.model for c in cross_site(view(evaluation=given))][:3] == ["federated"] * 3
    assert cells["federated", "a"].value == (0.8 + 0.9) / 2
    assert cells["federated", ""].value == (0.9 + 0.95) / 2
    assert cells["federated", ""].samples == 40
    assert all(c.low <= c.value <= c.high or c.value in (0, 1) for c in cells.values())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_hospital_where_a_class_is_missing_is_marked_and_it_is_said_what_that_means(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that calls everybody ill has 100 % where only the ill were held out."""
    monkeypatch.setenv("MEDMESH_LANG", language)
    counts = {(name, "a"): ((0, 0), (0, 30)) for name in ("federated", "personal")}
    counts |= {(name, "b"): ((9, 1), (1, 9)) for name in ("federated", "personal")}
    given = tuple(EvaluationView(hospital=hospital, name=name, counts=table) for (name, hospital), table in counts.items())
    answers = tuple(answer(hospital, counts=counts["federated", hospital]) for hospital in ("a", "b"))
    shown = view("completed", (round_(1, 5).model_copy(update={"answers": answers}),), evaluation=given)
    shown = shown.model_copy(update={"model": REF})
    assert {(c.hospital, c.missing) for c in cross_site(shown)} == {("a", 1), ("b", 0), ("", 0)}
    lines = result_of(shown)
    table_ = [line for line in lines if re.match(r"  (federated|personal) ", line)]
    assert len(table_) == 2 and all(line.count("]*") == 1 and "1.000 [" in line.partition("]*")[0] for line in table_)
    assert sum(line.endswith("]*") for line in lines) == 1, "what a model of its own gains there, too"
    assert lines[-1] == f"  * {PARTIAL[language == 'zh']}"
    found = {row["hospital"]: row["missing"] for row in csv.DictReader(io.StringIO(table(shown))) if row["metric"] == "balanced_accuracy"}
    assert found == {"a": "1", "b": "0"}
    drawn = figure(shown, language)
    curves, *_, matrix = drawn.axes
    assert [line.get_linestyle() for line in curves.lines[:2]] == [":", "-"]
    assert sum("*" in text.get_text() for text in matrix.texts) == 2
    words = "".join(matrix.get_xlabel().split())
    assert "".join(PARTIAL[language == "zh" and chinese_font() is not None].split()) in words

    whole = shown.model_copy(update={"evaluation": tuple(one for one in given if one.hospital == "b")})
    assert not any("*" in line for line in result_of(whole)) and not figure(whole).axes[-1].get_xlabel()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_where_nobody_was_counted_there_is_no_number(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hospital with fewer held-out patients than are counted together."""
    monkeypatch.setenv("MEDMESH_LANG", language)
    counts = {"a": ((9, 1), (1, 9)), "b": ((0, 0), (0, 0))}
    given = tuple(EvaluationView(hospital=hospital, name="federated", counts=table) for hospital, table in counts.items())
    shown = view("completed", evaluation=given).model_copy(update={"model": REF})
    nobody = {"en": "nobody counted", "zh": "无计数"}[language]
    (line,) = [line for line in result_of(shown) if line.startswith("  federated")]
    assert line.count(nobody) == 1 and "0.000" not in line and "*" not in line
    assert "small_cell" in result_of(shown)[-1]
    matrix = figure(shown, language).axes[-1]
    assert len(matrix.texts) == 2 and not matrix.get_xlabel()
    everybody = shown.model_copy(update={"evaluation": given[:1]})
    assert not any(nobody in line for line in result_of(everybody))


def result_of(view_: FederationView) -> list[str]:
    @click.command()
    def told() -> None:
        show_result(view_, None)

    return CliRunner().invoke(told).output.splitlines()


def test_a_chinese_picture_has_chinese_signs_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDMESH_LANG", "zh")
    cell = EvaluationView(hospital="a", name="federated", counts=((9, 1), (1, 9)))
    shown = view("completed", rounds=(round_(1, 5.0),), evaluation=(cell,))
    if chinese_font() is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a sign that no font has is a warning, and a box
            assert draw(shown, tmp_path / "chinese") == 0
        assert "字体" not in capsys.readouterr().err
        assert "已完成" in figure(shown, "zh").get_suptitle()
    monkeypatch.setattr(plot, "CHINESE", ())
    monkeypatch.setattr(plot, "FONT", "no_such_wheel")
    assert draw(shown, tmp_path / "english") == 0
    assert "pip install --no-deps" in capsys.readouterr().err
    assert "completed" in figure(shown, "zh").get_suptitle()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_that_is_shown_claims_a_round_that_was_rolled_back(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 2 is undone; the one that was open then is void, and its next attempt began with the model of round 1."""
    monkeypatch.setenv("MEDMESH_LANG", language)
    first, *made = [ObjectRef(sha256=digit * 64, bytes=8) for digit in "1456"]

    def trained(number: int, base: ObjectRef, right: int, attempt: int = 1, **changed: Any) -> RoundView:
        given = (answer("a", counts=((right, 10 - right), (10 - right, right))),)
        values = {"attempt": attempt, "base": base, "model": made[number - 1], "answers": given, **changed}
        return round_(number, 5).model_copy(update=values)

    rounds = (
        trained(1, first, 5),
        trained(2, made[0], 9, undone=True),
        trained(3, made[1], 8, state="void", model=None, answers=()),
        trained(3, made[0], 7, attempt=2),
    )
    shown = view("completed", rounds).model_copy(update={"model": made[2]})
    assert [(point.round, point.value) for point in curve(shown)] == [(0, 0.5), (1, 0.7)]
    assert (document(shown)["round"], document(shown)["undone"]) == (3, [2])
    lines = list(csv.DictReader(io.StringIO(table(shown))))
    said = [(x["round"], x["attempt"], x["state"], x["model_of_round"], x["value"]) for x in lines]
    assert said == [("1", "1", "committed", "0", "0.5"), ("2", "1", "undone", "1", "0.9"), ("3", "2", "committed", "1", "0.7")]
    accuracy, *_ = figure(shown, language).axes
    assert [list(line.get_ydata()) for line in accuracy.lines[:2]] == [[0.5, 0.7]] * 2, "of one hospital and of all: not what was undone"

    @click.command()
    def told() -> None:
        show_result(shown, None)

    output = CliRunner().invoke(told).output
    assert {"en": "rounds undone: 2; it went on from round 1", "zh": "已撤销轮次：2；其后自第 1 轮继续"}[language] in output

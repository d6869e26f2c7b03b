"""What people are told about a federation: time left and the cross-site matrix, from values."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast, get_args

import click
import pytest
from click.testing import CliRunner
from tests.packages import TINY
from tests.unit.federation.test_domain import NOW
from tests.unit.federation.test_domain import PLAN as SMALL

from medmesh.cli import _root
from medmesh.cli.federation import federation
from medmesh.cli.tongue import spoken
from medmesh.cli.views import document, draw, now, show_result, state, waits
from medmesh.client import plot
from medmesh.client.federation import Federation, create_federation
from medmesh.client.gateway import Gateway
from medmesh.client.plot import chinese_font, figure, table
from medmesh.client.results import PARTIAL, cross_site, curve, gains, kept_round, last_round, remaining, split
from medmesh.contracts.federation import (
    AnswerView,
    EvaluationView,
    FederationState,
    FederationView,
    ParticipantView,
    RoundKind,
    RoundView,
)
from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem

REF = ObjectRef(sha256="2" * 64, bytes=8)
PLAN = SMALL.model_copy(update={"rounds": 5, "participants": ("a", "b")})


def round_(number: int, seconds: float | None, state: str = "committed") -> RoundView:
    closed = None if seconds is None else NOW + timedelta(seconds=seconds)
    values = {"attempt": 1, "kind": "train", "state": state, "opened": NOW, "deadline": NOW, "base": REF, "model": None, "chain": None}
    return RoundView(round=number, closed=closed, answers=(), **values)  # type: ignore[arg-type]


def view(state: str = "running", rounds: tuple[RoundView, ...] = (), evaluation: tuple[EvaluationView, ...] = ()) -> FederationView:
    return FederationView(
        federation="f",
        state=state,
        plan=PLAN,
        plan_hash="3" * 64,
        chain="3" * 64,
        participants=(),
        rounds=rounds,
        evaluation=evaluation,
        model=REF,
        failure=None,
    )


class Door:
    """A gateway that shows one view after another and keeps what it was told."""

    def __init__(self, *views: FederationView) -> None:
        self.views, self.told = list(views), list[tuple[str, Any]]()

    async def ask(self, path: str, reply: type[FederationView]) -> FederationView:
        assert (path, reply) == ("/v1/federations/f", FederationView)
        return self.views.pop(0) if len(self.views) > 1 else self.views[0]

    async def command(self, method: str, path: str, body: Any) -> Any:
        self.told.append((f"{method} {path}", body))
        return {}


async def test_watching_tells_changes_once_and_ends_with_the_federation() -> None:
    door = Door(view(), view(), view(rounds=(round_(1, 1),)), view("failed"), view("failed"))
    seen = [v async for v in Federation(cast(Gateway, door), "f").watch(seconds=0)]
    assert [(v.state, len(v.rounds)) for v in seen] == [("running", 0), ("running", 1), ("failed", 0)]


async def test_there_is_no_model_before_the_end(tmp_path: Path) -> None:
    with pytest.raises(Problem) as refused:
        await Federation(cast(Gateway, Door(view())), "f").model(tmp_path / "model")
    assert refused.value.code == "federation.closed"
    assert not (tmp_path / "model").exists()


async def test_what_people_decide_goes_to_its_route() -> None:
    door = Door(view())
    await Federation(cast(Gateway, door), "f").cancel("enough")
    assert door.told == [("POST /v1/federations/f/cancel", {"reason": "enough"})]


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


@pytest.mark.parametrize("language", ["en", "zh"])
def test_watching_says_how_long_it_takes_and_where_time_went(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMESH_LANG", language)
    times = {"fetch": 250, "evaluate": 100, "train": 4000, "store": 50, "send": 750}
    given = (answer("a", milliseconds=times, counts=((9, 1), (1, 9))),)
    one = round_(1, 6).model_copy(update={"answers": given, "aggregate_milliseconds": 300})
    person = ParticipantView(hospital="a", state="accepted", online=True, drops=0)
    shown = view(rounds=(one,)).model_copy(update={"participants": (person,)})

    @click.command()
    def told() -> None:
        now(shown)

    said = CliRunner().invoke(told).output
    wanted = {
        "en": (
            "about 52 s left",
            "(fetch 0.2, evaluate 0.1, train 4.0, store 0.1, send 0.8 s)",
            "train 4.0 s, move 1.0 s, aggregate 0.3 s",
        ),
        "zh": ("约剩 52 秒", "(下载 0.2, 评估 0.1, 训练 4.0, 存盘 0.1, 上传 0.8 秒)", "训练 4.0 秒，传输 1.0 秒，聚合 0.3 秒"),
    }
    for text in wanted[language]:
        assert text in said, said
    assert "0.900  [" in said


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


def answer(hospital: str, **given: Any) -> AnswerView:
    values = {"samples": 9, "late": False, "bytes": 2_000_000, "metrics": {}, **given}
    return AnswerView(hospital=hospital, **values)


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


def result_of(view_: FederationView) -> list[str]:
    @click.command()
    def told() -> None:
        show_result(view_, None)

    return CliRunner().invoke(told).output.splitlines()


def test_every_command_of_the_group_is_there() -> None:
    assert {"create", "list", "show", "watch", "result", "plot"} <= federation.commands.keys()


def test_a_parameter_without_a_value_is_named(tmp_path: Path) -> None:
    given = ["create", str(tmp_path), "--name", "m", "--purpose", "test", "--initiator", "person:li@platform", "--hospital", "renji"]
    said = CliRunner().invoke(federation, [*given, "--algorithm", "fedprox", "--parameter", "mu"])
    assert said.exit_code == 2
    assert "'mu': NAME=VALUE" in said.output


async def test_a_plan_that_contradicts_itself_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def taken(*_: object, **__: object) -> ObjectRef:
        raise AssertionError

    monkeypatch.setattr("medmesh.client.federation.upload", taken)
    rules = {"rounds": 0, "local_steps": 1, "batch_size": 1, "learning_rate": "much", "seed": 1, "min_participants": 1}
    about = {
        "name": "m",
        "purpose": "test",
        "initiator": "person:li@platform",
        "hospitals": ("renji",),
        "accept_seconds": 5,
        "rehearsal": False,
    }
    with pytest.raises(Problem) as caught:
        await create_federation(cast(Gateway, None), TINY, **about, **rules)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.params["field"]) == ("plan.number", "learning_rate")


async def test_three_answer_a_round_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    async def taken(*_: object, **__: object) -> ObjectRef:
        return REF

    class Door:
        async def command(self, _method: str, _path: str, body: dict[str, Any]) -> dict[str, str]:
            asked.append(body["plan"])
            return {"federation": "f", "plan_hash": ""}

    monkeypatch.setattr("medmesh.client.federation.upload", taken)
    rules = {"rounds": 1, "local_steps": 1, "batch_size": 1, "learning_rate": "0.1", "seed": 1, "rehearsal": False}
    about = {"name": "m", "purpose": "test", "initiator": "person:li@platform", "accept_seconds": 5, "round_deadline_seconds": 60, **rules}
    await create_federation(cast(Gateway, Door()), TINY, **about, hospitals=("a", "b", "c", "d"))  # type: ignore[arg-type]
    await create_federation(cast(Gateway, Door()), TINY, **about, hospitals=("a", "b"), min_participants=2)  # type: ignore[arg-type]
    assert [plan["min_participants"] for plan in asked] == [3, 2]
    with pytest.raises(Problem) as caught:
        await create_federation(cast(Gateway, Door()), TINY, **about, hospitals=("a", "b"))  # type: ignore[arg-type]
    assert caught.value.code == "plan.min_participants"
    typed: dict[str, Any] = {}

    async def made(_: Any, folder: Path, **values: Any) -> dict[str, str]:
        typed.update(values)
        return {"federation": "f", "plan_hash": ""}

    monkeypatch.setattr("medmesh.client.federation.create_federation", made)
    monkeypatch.setattr("medmesh.cli.federation.with_gateway", lambda run: asyncio.run(run(None)))
    given = ["create", str(tmp_path), "--name", "m", "--purpose", "test", "--initiator", "person:li@platform", "--hospital", "renji"]
    assert (await asyncio.to_thread(CliRunner().invoke, federation, given)).exit_code == 0
    assert typed["min_participants"] == 3


def within(group: click.Group) -> list[click.Command]:
    return [one for command in group.commands.values() for one in (within(command) if isinstance(command, click.Group) else [command])]


CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_help_speaks_the_language_of_the_terminal(tongue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMESH_LANG", tongue)
    made = spoken(federation, tongue)
    assert isinstance(made, click.Group)
    for command in (made, *within(made)):
        helps = [one.help for one in command.params if isinstance(one, click.Option) and one.help]
        for text in (command.get_short_help_str(), *helps):
            assert bool(CHINESE.search(text)) == (tongue == "zh"), (command.name, text)
    listed = CliRunner().invoke(_root, ["federation", "--help"]).output
    assert ("跟踪联邦直至结束" in listed) == (tongue == "zh") and ("Follow a federation" in listed) == (tongue == "en")
    told = CliRunner().invoke(_root, ["federation", "result", "--help"]).output
    assert ("置信区间" in told, "95 % intervals" in told) == (tongue == "zh", tongue == "en")


def test_states_are_told_in_chinese_and_columns_stay_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMESH_LANG", "zh")
    for words in (get_args(FederationState), [one.value for one in RoundKind], ("accepted", "dropped", "quarantined", "withdrawn")):
        assert all(CHINESE.search(state(word)) for word in words)
    assert state("running", 10) == "进行中    " and state("elsewhere", 10) == "elsewhere "
    monkeypatch.setenv("MEDMESH_LANG", "en")
    assert state("running", 10) == "running   "


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


def test_words_that_people_look_for_lead_to_what_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmesh.cli.federation.say", lambda english, chinese: chinese)
    runner = CliRunner()
    shown = runner.invoke(federation, ["status", "--help"])
    assert shown.exit_code == 0 and shown.output == runner.invoke(federation, ["show", "--help"]).output.replace("show [", "status [")
    for word, there in (("accept", "approve"), ("decline", "decline"), ("withdraw", "withdraw")):
        told = runner.invoke(federation, [word, "x"])
        assert told.exit_code == 2 and f"由医院在本院节点上执行：medmesh edge {there} FEDERATION" in told.output


WHAT_IT_WAITS_FOR = {
    "en": [
        "running: maintenance",
        "too few hospitals are there for a round; it goes on by itself when enough are",
        "renji is not there",
        "since 2026-11-26 08:00:00 UTC",
        "it fails at 2026-11-26 09:00:00 UTC unless enough are back",
    ],
    "zh": [
        "进行中：maintenance",
        "在线医院不足一轮所需；足够后自动继续",
        "renji 未在线",
        "自 2026-11-26 08:00:00 UTC 起",
        "若届时仍不足，将于 2026-11-26 09:00:00 UTC 失败",
    ],
}


@pytest.mark.parametrize("tongue", WHAT_IT_WAITS_FOR)
def test_a_lost_quorum_is_shown_with_who_is_missing_since_when_and_until_when(monkeypatch: pytest.MonkeyPatch, tongue: str) -> None:
    monkeypatch.setenv("MEDMESH_LANG", tongue)
    since = datetime(2026, 11, 26, 8, tzinfo=UTC)
    about = {"waiting": ("quorum", "quorum:renji"), "waiting_since": since, "fails_at": since + timedelta(hours=1), "reason": "maintenance"}
    assert waits(view("running").model_copy(update=about)) == WHAT_IT_WAITS_FOR[tongue]

"""What people type about a federation, and what they are told while it goes on, from values."""

from __future__ import annotations

import asyncio
import json
import re
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
from medmesh.cli.doing import Speeds, doing
from medmesh.cli.federation import federation
from medmesh.cli.simulate import _news
from medmesh.cli.tongue import spoken
from medmesh.cli.views import now, state, waits
from medmesh.client.federation import Federation, create_federation
from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import (
    AnswerView,
    EvaluationView,
    FederationState,
    FederationView,
    ParticipantView,
    ProgressView,
    RoundKind,
    RoundView,
)
from medmesh.contracts.governance import Approvals
from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.figures import size

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


def moving(done: int, *, total: int = 100 * 2**20, phase: str = "fetch", number: int = 3) -> FederationView:
    told = ProgressView(round=number, phase=phase, done=done, total=total)
    one = ParticipantView(hospital="a", state="accepted", online=True, drops=0, progress=told)
    return view().model_copy(update={"participants": (one,)})


@pytest.mark.parametrize(
    ("language", "first", "rate", "over", "tenths", "steps"),
    [
        ("en", "3 fetch 5 % of 100.0 MiB", ", 5.0 MiB/s, about 15 s left", "100 % of 100.0 MiB", "3 prepare 30 %", "3 train 12/50"),
        ("zh", "3 下载 5 %（共 100.0 MiB）", "，5.0 MiB/s，约剩 15 秒", "100 %（共 100.0 MiB）", "3 预处理 30 %", "3 训练 12/50"),
    ],
)
def test_bytes_on_their_way_are_a_share_with_a_rate_and_the_time_left(
    language: str, first: str, rate: str, over: str, tenths: str, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMESH_LANG", language)
    speeds, then = Speeds(), first.replace(" 5 %", " 25 %") + rate

    def told(shown: FederationView, at: float) -> str:
        return doing(shown, shown.participants[0], speeds.seen(shown, at))

    assert told(moving(5 * 2**20), 100.0) == first  # seen once: how fast it is nobody knows
    assert told(moving(25 * 2**20), 104.0) == then
    assert told(moving(100 * 2**20), 120.0).endswith(over)
    # The same once more from its beginning, and another transfer: what was seen before says nothing of them.
    assert told(moving(5 * 2**20), 121.0) == first
    assert told(moving(25 * 2**20), 125.0) == then
    assert "/s" not in told(moving(30 * 2**20, phase="send"), 126.0)
    assert "/s" not in told(moving(40 * 2**20, phase="send", number=4), 127.0)
    # Of a round that it has answered, in its newest attempt, there is nothing more to say.
    for rounds, done in (((3, 1, True),), True), (((3, 1, True), (3, 2, False)), False), (((2, 1, True),), False):
        given = {True: (answer("a"),), False: ()}
        answered = tuple(round_(n, None).model_copy(update={"attempt": attempt, "answers": given[by]}) for n, attempt, by in rounds)
        assert (told(moving(50 * 2**20).model_copy(update={"rounds": answered}), 127.5) == "") == done
    # A pipeline's tenths, and steps.
    assert told(moving(3, total=10, phase="prepare"), 128.0) == tenths
    assert told(moving(12, total=50, phase="train"), 129.0) == steps


class Asked(Door):
    """A door at which no approvals are open."""

    async def ask(self, path: str, reply: Any, **narrowed: str) -> Any:
        return Approvals(approvals=()) if path == "/v1/approvals" else await super().ask(path, reply)


def test_who_watches_is_told_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Asked(moving(5 * 2**20), moving(25 * 2**20), view("completed"))
    monkeypatch.setattr("medmesh.cli.federation.with_gateway", lambda run: asyncio.run(run(door)))
    said = CliRunner().invoke(federation, ["watch", "f"])
    assert re.search(r"fetch 25 % of 100\.0 MiB, [\d.]+ MiB/s, about \d+ s left", said.output), said.output
    assert said.exit_code == 0


@pytest.mark.parametrize("command", ["show", "status"])
@pytest.mark.parametrize(("language", "sent"), [("en", "4 send 30 % of 50.0 KiB"), ("zh", "4 上传 30 %（共 50.0 KiB）")])
def test_a_federation_is_shown_to_people_with_sizes_and_to_programs_with_numbers(
    command: str, language: str, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMESH_LANG", language)

    door = Asked(moving(15 * 1024, total=50 * 1024, phase="send", number=4))
    monkeypatch.setattr("medmesh.cli.federation.with_gateway", lambda run: asyncio.run(run(door)))
    said = CliRunner().invoke(federation, [command, "f"]).output
    assert sent in said and "51200" not in said, said
    document = json.loads(CliRunner().invoke(federation, [command, "f", "--json"]).output)
    assert document["participants"][0]["progress"] == {"round": 4, "phase": "send", "done": 15 * 1024, "total": 50 * 1024}
    assert document["model"]["bytes"] == 8


@pytest.mark.parametrize(("language", "line"), [("en", "round 2 baseline: 3 hospitals"), ("zh", "第 2 轮 单独训练：3 家医院")])
def test_a_simulation_says_its_rounds_in_one_language(
    language: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDMESH_LANG", language)
    _news("federation.round.committed.v1", {"round": 2, "kind": "baseline", "participants": ["a", "b", "c"]})
    assert capsys.readouterr().out.strip() == line


def test_the_result_says_how_large_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done = view("completed").model_copy(update={"model": ObjectRef(sha256="2" * 64, bytes=3 * 2**20)})
    monkeypatch.setattr("medmesh.cli.federation.with_gateway", lambda run: asyncio.run(run(Door(done))))
    assert f"{'2' * 64}  3.0 MiB\n" in CliRunner().invoke(federation, ["result", "f"]).output
    assert json.loads(CliRunner().invoke(federation, ["result", "f", "--json"]).output)["model"]["bytes"] == 3 * 2**20


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_bytes_as_people_read_them(count: int, said: str) -> None:
    assert size(count) == said


def answer(hospital: str, **given: Any) -> AnswerView:
    values = {"samples": 9, "late": False, "bytes": 2 * 2**20, "metrics": {}, **given}
    return AnswerView(hospital=hospital, **values)


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

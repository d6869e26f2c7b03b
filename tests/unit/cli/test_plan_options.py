"""An option of a plan does something, or is refused: nobody takes a run for private, or secure, that is not."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.packages import TINY

from medmesh.cli.federation import create, rehearse, simulate
from medmesh.cli.switches import Under

GIVEN = {
    "--parameter": "mu=0.01",
    "--range": "steps=1:9",
    "--local": "bias",
    "--algorithm": "fedprox",
    "--review": __file__,
    "--rehearsal": None,
}
"""What an option is given that is no number and no choice: None for nothing."""
LATER = ("--links", "--json", "--help")
"""What is done with the answer, and nothing of the plan."""
NEEDED = {
    "create": ("--name", "m", "--purpose", "test", "--initiator", "person:li@platform", "--hospital", "renji"),
    "simulate": ("--data", str(TINY), "--out", "out"),
    "rehearse": (),
}


class _Begun(Exception):
    """All was read: what is asked of the platform, or of the simulation."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a command as far as what it asks for. Answers that, or what was printed where it was refused."""
    monkeypatch.chdir(tmp_path)

    async def begun(*given: Any, **how: Any) -> None:
        raise _Begun(repr(given[1:]) + repr(sorted(how.items(), key=lambda one: one[0])))

    async def uploaded(*_: Any) -> None: ...

    dealt: list[Any] = []
    monkeypatch.setattr("medmesh.client.transfer.upload", uploaded)
    monkeypatch.setattr("medmesh.client.federation.create_federation", begun)
    monkeypatch.setattr("medmesh.client.federation.rehearse", begun)
    monkeypatch.setattr("medmesh.simulation.run.simulate", begun)
    monkeypatch.setattr("medmesh.simulation.data.read", lambda *given: dealt.clear() or dealt.append(repr(given[2:])) or {})
    monkeypatch.setattr("medmesh.simulation.data.share", lambda *given, **how: dealt.append(repr((given, how))) or {})
    for module in ("federation", "rehearse"):
        monkeypatch.setattr(f"medmesh.cli.{module}.with_gateway", lambda run: asyncio.run(run(None)))

    def run(command: click.Command, *further: str) -> str:
        assert command.name is not None
        done = CliRunner().invoke(command, [str(TINY), *NEEDED[command.name], *further])
        if isinstance(done.exception, _Begun):
            return f"{done.exception} {dealt}"
        assert done.exit_code == 2, (further, done.output, done.exception)
        return f"refused: {done.output}"

    return run


def one_of(option: click.Option) -> list[str]:
    """The option with something that is not its default."""
    name = option.opts[0]
    if name in GIVEN:
        return [name] if (value := GIVEN[name]) is None else [name, value]
    if option.is_flag:
        return [name]
    if isinstance(option.type, click.Choice):
        return [name, next(one for one in option.type.choices if one != option.default)]
    if option.type.name == "text":
        assert isinstance(option.default, str), f"{name}: say in GIVEN what it is given"
        return [name, str(float(option.default) / 2 + 0.125)]
    return [name, "9"]


def options(command: click.Command) -> list[click.Option]:
    assert command.name is not None
    skipped = (*NEEDED[command.name], *LATER)
    return [one for one in command.params if isinstance(one, click.Option) and one.opts[0] not in skipped]


@pytest.mark.parametrize("command", [create, simulate], ids=lambda one: one.name)
def test_no_option_is_passed_over(command: click.Command, asked: Any) -> None:
    plain = asked(command)
    assert not plain.startswith("refused")
    silent = [one.opts[0] for one in options(command) if asked(command, *one_of(one)) == plain]
    assert silent == []


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("command", [create, simulate, rehearse], ids=lambda one: one.name)
def test_what_belongs_to_a_switch_is_refused_without_it_and_counts_with_it(
    command: click.Command, asked: Any, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMESH_LANG", language)
    belonging = [one for one in options(command) if isinstance(one, Under)]
    assert len(belonging) >= 10
    for one in belonging:
        switch = next(other for other in command.params if other.name == one.under)
        off = ["--partition", "natural"] if switch.name == "partition" else []
        refused, words = asked(command, *off, *one_of(one)), {"en": "and does nothing without it", "zh": "同用，否则不起作用"}[language]
        assert refused.startswith("refused") and words in refused and one.opts[0] in refused and switch.opts[0] in refused
        on = [switch.opts[0], one.of[0] if one.of else one_of(switch)[1]]  # type: ignore[arg-type]
        with_it, default = asked(command, *on, *one_of(one)), asked(command, *on)
        assert not with_it.startswith("refused"), with_it
        assert with_it != default or command is rehearse


def test_of_a_switch_only_the_values_that_it_belongs_to_count(asked: Any) -> None:
    for given in (
        ("--privacy", "patient", "--quantile", "0.5"),
        ("--privacy", "hospital", "--rate", "0.1"),
        ("--codec", "int8", "--codec-share", "0.1"),
    ):
        assert asked(create, *given).startswith("refused")
        assert asked(simulate, *given).startswith("refused")
    assert asked(simulate, "--partition", "pathological", "--alpha", "0.1").startswith("refused")


def test_what_is_tried_is_what_would_be_asked(asked: Any) -> None:
    """Simulated and asked for with the same options, it is the same plan."""
    paced = ("--pace", "2", "--pace-staleness", "5", "--pace-decay", "1")
    for given in ((), paced, ("--secure", "3"), ("--small-cell", "0"), ("--max-drops", "2"), ("--codec", "topk", "--codec-share", "0.1")):
        tried, wanted = (asked(command, *given) for command in (simulate, create))
        for field in ("small_cell", "max_drops", "min_participants", "codec_share", "codec", "secure", "pace"):
            (one,) = {part[: part.index(")")] for found in (tried, wanted) for part in found.split(f"('{field}', ")[1:]}
            assert one, field
    assert "('small_cell', 5)" in asked(simulate) and "('min_participants', 3)" in asked(create)
    assert "('min_participants', 3)" in asked(simulate, "--secure", "3")
    assert "('pace', {'quorum': 2, 'staleness': 5, 'decay': '1'})" in asked(create, *paced)
    assert "('pace', {'quorum': 2, 'staleness': 3, 'decay': '0.5'})" in asked(create, "--pace", "2")
    assert asked(create, "--pace", "2", "--pace-staleness", "0").startswith("refused")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_where_the_results_go_is_looked_at_first(asked: Any, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMESH_LANG", language)
    told = asked(simulate, "--out", "nowhere/out")
    assert told.startswith("refused") and {"en": "there is no folder nowhere", "zh": "文件夹 nowhere 不存在"}[language] in told
    assert asked(simulate, "--out", ".").startswith("refused")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # whoever is root may write anywhere
    told = asked(simulate, "--out", "out")
    assert told.startswith("refused") and {"en": "nothing can be written into the folder .", "zh": "文件夹 . 不可写"}[language] in told

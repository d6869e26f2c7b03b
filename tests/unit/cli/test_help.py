"""Help in Chinese says what the English one says: every command of federations and of the hospital's node."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from medmesh.cli import _root
from medmesh.cli.edge import edge
from medmesh.cli.federation import federation
from medmesh.cli.tongue import helped, said, spoken

CHINESE = re.compile(r"[\u4e00-\u9fff]")
SENTENCE = re.compile(r"[A-Za-z]+(?:[;:,]? [a-z]{2,}){3,}")
"""Four words of English in a row."""
DENSE = 0.2
"""Chinese says the same in a third of the letters; what has fewer than this share has left something out."""


def within(command: click.Command, *path: str) -> list[tuple[str, click.Command]]:
    below = command.commands.items() if isinstance(command, click.Group) else ()
    return [(" ".join(path), command), *(one for name, child in below for one in within(child, *path, name))]


COMMANDS = [*within(federation, "federation"), *within(edge, "edge")]


def paragraphs(text: str | None) -> list[str]:
    return [one.strip() for one in re.split(r"\n[ \t]*\n", text or "") if one.strip()]


def letters(text: str) -> int:
    return len(re.sub(r"\s", "", text))


def left_out(english: str, chinese: str) -> bool:
    """Whether the Chinese is no Chinese, has English in it, or is too short to say the same."""
    chinese = re.sub(r"`[^`]*`|medmesh [\x20-\x7e]*?(?=  |\n|$|[^\x00-\x7f])", "", chinese)  # a command is one in both
    if "\b" in english:  # lines as they are
        return bool(SENTENCE.search(chinese))
    if not re.search(r"[a-z]{3}", english):
        return False
    return not CHINESE.search(chinese) or bool(SENTENCE.search(chinese)) or letters(chinese) < DENSE * letters(english)


def test_the_check_sees_what_is_left_out() -> None:
    english = "Approve the code of FEDERATION by its hash; the node then signs the plan, if the policy allows."
    assert left_out(english, "批准代码。") and left_out(english, english) and left_out(english, f"批准代码。{english}")
    assert not left_out(english, "按哈希批准 FEDERATION 的代码；策略允许时，节点随即签署方案。")
    assert len(COMMANDS) > 80


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_lines_as_they_are_begin_where_the_text_does(tongue: str) -> None:
    told = CliRunner().invoke(spoken(federation, tongue), ["quarantine", "--help"]).output
    assert re.search(r"\n\n  medmesh federation quarantine FEDERATION renji [^\n]*\n\n\S", told), told


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_chinese_help_leaves_nothing_out(path: str, command: click.Command) -> None:
    english, chinese = paragraphs(helped(command.help, "en")), paragraphs(helped(command.help, "zh"))
    assert english and len(english) == len(chinese)
    assert not CHINESE.search(re.sub(r"\"[^\"]*\"", "", " ".join(english)))
    assert [pair for pair in zip(english, chinese, strict=True) if left_out(*pair)] == []
    helps = [one.help for one in command.params if isinstance(one, click.Option) and one.help]
    assert [text for text in helps if text != CONFIRMS and left_out(said(text, "en"), said(text, "zh"))] == []


CONFIRMS = "Confirm the action without prompting."
"""click's own."""


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_what_is_understood_is_listed(tongue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMESH_LANG", tongue)
    listed = CliRunner().invoke(_root, ["federation", "--help"]).output
    for word in ("create", "invite", "status", "watch", "cancel", "result"):
        assert re.search(rf"^  {word} ", listed, re.MULTILINE), word
    assert isinstance(spoken(federation, tongue), click.Group)

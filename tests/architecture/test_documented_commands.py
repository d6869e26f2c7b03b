"""Every `medmesh …` command that a page names is there, with the options it is shown with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tests.architecture.sources import ROOT

from medmesh.cli import _root

PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md", "services/*/README.md") for path in ROOT.glob(pattern))
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.S | re.M)
_SPAN = re.compile(r"`([^`]+)`")
_WORD = re.compile(r"[a-z][a-z0-9-]*(\|[a-z][a-z0-9-]*)*")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*|(?<![\w-])-[a-zA-Z](?![\w-])")


def commands(text: str) -> Iterator[str]:
    """The commands of a page: what begins with `medmesh` in a fenced line, continued ones put together, or in a code span."""
    for block in _FENCE.findall(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            yield from (part for part in [line.split(" #")[0].strip().removeprefix("$ ")] if part.startswith("medmesh "))
    for span in _SPAN.findall(_FENCE.sub("", text)):
        yield from (part for part in [" ".join(span.split())] if part.startswith("medmesh "))


def faults(command: str) -> list[str]:
    """What a command names that is not there; `a|b` stands for both."""
    before, *words = re.split(r"\s(?:[>|;]|&&|<<)\s?", command)[0].split()
    found: list[click.Command] = [_root]
    assert before == "medmesh"
    place = 0
    while place < len(words) and any(isinstance(one, click.Group) for one in found) and _WORD.fullmatch(words[place]):
        names = words[place].split("|")
        groups = [one for one in found if isinstance(one, click.Group)]
        inside = {name: [one for group in groups if (one := group.get_command(click.Context(group), name))] for name in names}
        if missing := [name for name, ones in inside.items() if not ones]:
            return [f"no command {' '.join(words[: place + 1])} ({', '.join(missing)})"]
        found = [one for ones in inside.values() for one in ones]
        place += 1
    if words[place : place + 1] == ["…"]:  # any command of the group
        found += [one for group in found if isinstance(group, click.Group) for one in group.commands.values()]
    known = {option for one in found for parameter in one.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {option for parameter in _root.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
    rest = re.sub(r"'[^']*'|\"[^\"]*\"", "", " ".join(words[place:]))
    return [f"no option {option} of {' '.join(words[:place])}" for option in _OPTION.findall(rest) if option not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_page_is_there(page: Path) -> None:
    wrong = {command: found for command in commands(page.read_text(encoding="utf-8")) if (found := faults(command))}
    assert wrong == {}


@pytest.mark.parametrize(
    "command", ["medmesh audit verfy export", "medmesh audit prune --below-all 3", "medmesh policy show [--built] [--schema]"]
)
def test_one_that_is_not_there_is_found(command: str) -> None:
    assert faults(command)

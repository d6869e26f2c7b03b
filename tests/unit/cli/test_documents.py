"""Every `medmesh` command that a document shows is one: its words, its options, and as many arguments as it takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from medmesh.cli import _root

REPO = Path(__file__).parents[3]
DOCUMENTS = sorted([*REPO.glob("README*.md"), *REPO.glob("docs/**/*.md"), *REPO.glob("services/*/README.md")])
_FENCED = re.compile(r"^ *```(?:bash|sh|console)?(?: [a-z ]+)?\n(.*?)^ *```$", re.M | re.S)
_INLINE = re.compile(r"`(medmesh [^`]*)`")


def shown(text: str) -> list[tuple[str, bool]]:
    """(a command, whether it is shown whole) of a document, each alternative by itself."""
    found = []
    for block in _FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s)#.*$", "", line)
            line = re.sub(r"\$\(([^()]*)\)", lambda inner: f"X && {inner[1]} &&", line)
            for part in re.split(r"&&|;|\|(?= )|\(|\)", line):
                part = re.sub(r"^(?:\s*[A-Z_]+=\S*)*\s*", "", part)
                if part.startswith("medmesh "):
                    found.append((part, not any(sign in part for sign in ("…", "...", "["))))
    inline = [" ".join(one.split()) for one in _INLINE.findall(_FENCED.sub("", text))]
    found += [(one.replace("\\|", "|"), False) for one in inline]
    return [(f"medmesh {words}", whole) for one, whole in found for words in _alternatives(one.removeprefix("medmesh "))]


def _alternatives(command: str) -> list[str]:
    """`watch|result X` is two commands."""
    words = command.split()
    for place, word in enumerate(words):
        if "|" in word and not word.startswith("-"):
            return [found for one in word.split("|") for found in _alternatives(" ".join([*words[:place], one, *words[place + 1 :]]))]
    return [command]


def fault(command: str, whole: bool) -> str:
    """What is wrong with it; empty where nothing is."""
    words = [word.strip("[]") for word in shlex.split(command)[1:] if word not in ("...", ">") and "…" not in word]
    found: click.Command = _root
    context = click.Context(found, info_name="medmesh")
    while isinstance(found, click.Group):
        if not words or words[0].startswith("-"):
            return ""
        name = words.pop(0)
        if (inner := found.get_command(context, name)) is None:
            return f"no command {name}"
        found, context = inner, click.Context(inner, parent=context, info_name=name)
    options = {
        name: option for option in found.params if isinstance(option, click.Option) for name in (*option.opts, *option.secondary_opts)
    }
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    if unknown := [name for name in given if name not in options and name != "--help"]:
        return f"no option {unknown[0]}"
    if not whole:
        return ""
    left, place = 0, 0
    while place < len(words):
        word = words[place]
        if word.startswith("-") and len(word) > 1:
            option = options.get(word.partition("=")[0])
            place += 1 if option is None or option.is_flag or option.count or "=" in word else 1 + option.nargs
        else:
            left, place = left + 1, place + 1
    arguments = [one for one in found.params if isinstance(one, click.Argument)]
    least = sum(max(1, one.nargs) for one in arguments if one.required)
    most = None if any(one.nargs < 0 for one in arguments) else sum(one.nargs for one in arguments)
    if left < least or (most is not None and left > most):
        return f"{left} arguments, it takes {least}"
    asked = [one for one in found.params if isinstance(one, click.Option) and one.required and one.envvar is None]
    missing = [one for one in asked if not set(one.opts) & set(given)]
    return f"without {missing[0].opts[0]}" if missing else ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(one.relative_to(REPO)) for one in DOCUMENTS])
def test_what_a_document_shows_can_be_typed(document: Path) -> None:
    wrong = [(command, why) for command, whole in shown(document.read_text("utf-8")) if (why := fault(command, whole))]
    assert wrong == []


def test_what_could_not_be_typed_is_found() -> None:
    text = "`medmesh federation watch|look X`\n```\nA=b medmesh federation result F --into x\n```\n```\nmedmesh edge show\n```\n"
    assert [fault(*one) for one in shown(text)] == ["no option --into", "0 arguments, it takes 1", "", "no command look"]
    assert [whole for _, whole in shown("```\nmedmesh federation create P … --steps 3\n```")] == [False]

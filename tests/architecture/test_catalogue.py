"""Every problem has its words in both languages, and gives them exactly what they name."""

from __future__ import annotations

import ast
import importlib
import re
import string
from http import HTTPStatus

import click
import pytest
from tests.architecture.sources import calls, python_files, relative, tree

from medmesh.cli import GROUPS
from medmesh.errors import Text, catalogue

HAN = re.compile(r"[\u4e00-\u9fff]")


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def wanted(text: Text) -> set[str]:
    return placeholders(text.en) | placeholders(text.zh) | placeholders(text.hint_en) | placeholders(text.hint_zh)


def raised() -> list[tuple[str, str, set[str] | None]]:
    """Every `Problem("code", name=...)`, and `refusal` of a message's own rules: where, the code, and the names; None where they are
    not written out."""
    found = []
    for path in python_files("libs", "services"):
        for name, call in calls(path):
            if (name == "Problem" or (name == "refusal" and "contracts" in path.parts)) and call.args:
                where = f"{relative(path)}:{call.lineno}"
                code = call.args[0]
                if isinstance(code, ast.Attribute) and code.attr == "code":
                    continue  # another problem's, said again
                assert isinstance(code, ast.Constant), f"{where}: the code is not written out, so nobody can look it up"
                given = None if any(k.arg is None for k in call.keywords) else {k.arg for k in call.keywords if k.arg}
                found.append((where, str(code.value), given))
            elif name in ("error", "warning", "note") and _reported(call):
                where = f"{relative(path)}:{call.lineno}"  # a finding of an importer; its place is not written out
                given = None if any(k.arg is None for k in call.keywords) else {k.arg for k in call.keywords if k.arg} - {"line", "key"}
                code = call.args[0 if _at(call) == "report" else 1]
                if isinstance(code, ast.Attribute) and code.attr == "code":
                    continue
                assert isinstance(code, ast.Constant), f"{where}: the code is not written out, so nobody can look it up"
                found.append((where, str(code.value), None if given is None else given | {"place"}))
    return found


def _reported(call: ast.Call) -> bool:
    """`report.error(code, ...)`, and `place.error(report, code, ...)` of a reader that knows where it is."""
    return _at(call) in ("report", "place")


def _at(call: ast.Call) -> str:
    at = call.func.value if isinstance(call.func, ast.Attribute) else None
    return at.id if isinstance(at, ast.Name) else at.attr if isinstance(at, ast.Attribute) else ""


RAISED = raised()


def test_the_scan_sees_the_code() -> None:
    assert len(RAISED) > 100


def test_every_problem_has_its_text_and_gives_what_it_names() -> None:
    wrong = []
    for where, code, given in RAISED:
        if code not in catalogue():
            wrong.append(f"{where}: {code} has no text")
        elif given is not None and given != wanted(catalogue()[code]):
            wrong.append(f"{where}: {code} gives {sorted(given)}, its text names {sorted(wanted(catalogue()[code]))}")
    assert wrong == []


def test_no_text_is_left_over() -> None:
    """A code is used where it is raised, or stands as a text: stored in a row, sent as the code of a refusal."""
    named = {
        str(node.value)
        for path in python_files("libs", "services")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert sorted(catalogue().keys() - named) == []


@pytest.mark.parametrize("code", sorted(catalogue()))
def test_both_languages_say_the_same(code: str) -> None:
    text = catalogue()[code]
    assert text.en
    assert placeholders(text.en) == placeholders(text.zh)
    assert placeholders(text.hint_en) == placeholders(text.hint_zh)
    assert bool(text.hint_en) == bool(text.hint_zh)
    assert HAN.search(text.zh) or text.zh == text.en == "{title}"  # another party's own words
    assert not HAN.search(text.en + text.hint_en)
    assert not text.hint_zh or HAN.search(text.hint_zh)


@pytest.mark.parametrize("code", sorted(catalogue()))
def test_the_status_is_an_error_of_http(code: str) -> None:
    status = HTTPStatus(catalogue()[code].status)
    assert status >= 400


def test_hints_name_commands_that_exist() -> None:
    wrong = []
    for code, text in catalogue().items():
        for group, command in re.findall(r"medmesh ([a-z]+)(?: ([a-z]+))?", f"{text.en} {text.hint_en} {text.zh} {text.hint_zh}"):
            found = getattr(importlib.import_module(GROUPS[group]), group) if group in GROUPS else None
            if found is None or (command and isinstance(found, click.Group) and command not in found.commands):
                wrong.append(f"{code}: medmesh {group} {command}")
    assert wrong == []

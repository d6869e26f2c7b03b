"""Tokens of hospital systems, by the command that makes them."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner
from tests.unit.edge.test_privacy import SETTINGS

from medmesh.cli.edge import edge
from medmesh.errors import Problem


def run(*words: str) -> tuple[str, str]:
    done = CliRunner().invoke(edge, ["dicomweb", *words])
    return done.stdout, done.exception.code if isinstance(done.exception, Problem) else "" if done.exit_code == 0 else str(done.exception)


def test_a_token_is_shown_once_listed_by_name_and_revoked(private: Path) -> None:
    SETTINGS.save(private)
    folder = f"--folder={private}"
    token, fault = run("create", folder, "viewer", "--project", "brain")
    assert (fault, bool(re.fullmatch(r"[\w-]{43}\n", token))) == ("", True)
    assert run("create", folder, "viewer", "--project", "brain")[1] == "dicomweb.client"
    assert run("create", folder, "Bad Name", "--project", "brain")[1] == "dicomweb.client"
    assert run("create", folder, "ris", "--project", "brain", "--write", "--clean")[1] == "dicomweb.client"
    listed, _ = run("list", folder)
    assert "viewer" in listed
    assert token.strip() not in listed
    assert run("revoke", folder, "viewer")[1] == ""
    assert run("revoke", folder, "viewer")[1] == "dicomweb.client"
    assert "viewer" not in run("list", folder)[0]

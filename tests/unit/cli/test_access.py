"""What the security administrator can try at a terminal without a platform."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from medmesh.cli.access import label, policy
from medmesh.errors import Problem

GOOD = '@id("site.none") forbid (principal, action == Action::"model.convert", resource) when { resource.level >= 3 };'


def test_a_policy_is_checked_before_anybody_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "site.cedar"
    file.write_text(GOOD)
    done = CliRunner(env={"MEDMESH_LANG": "en"}).invoke(policy, ["check", str(file)])
    assert (done.exit_code, done.output) == (0, "valid: site.none\n")
    file.write_text(GOOD.replace("model.convert", "model.covert"))
    failed = CliRunner().invoke(policy, ["check", str(file)])
    assert isinstance(failed.exception, Problem)
    assert failed.exception.code == "access.policy_invalid"
    assert "model.covert" in failed.exception.detail("zh")


def test_what_a_policy_may_speak_of_and_the_platforms_own_rules_are_shown() -> None:
    assert '"label.change"' in CliRunner().invoke(policy, ["show", "--schema"]).output
    assert '@id("object.maker-is-not-checker")' in CliRunner().invoke(policy, ["show", "--built-in"]).output


@pytest.mark.parametrize("words", [["set", "dataset", "chest", "secret"], ["set", "patient", "p-1", "core"]])
def test_a_level_or_a_kind_nobody_knows_is_refused_with_those_there_are(words: list[str]) -> None:
    done = CliRunner().invoke(label, words)
    assert done.exit_code == 2
    assert "is not one of" in done.output

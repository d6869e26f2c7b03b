"""Lists of programs: what counts is who signed, and any other file is named."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.rosters import roster_of

from medmesh.errors import Problem
from medmesh.security import programs
from medmesh.security.roster import Roster
from medmesh.security.signing import Signer
from medmesh.service.programs import Verification

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
WU, SMITH = Signer.create("person:wu@platform"), Signer.create("person:smith@platform")
FILES = {"medmesh/errors.py": "a" * 64, "site-packages/x.so": "b" * 64, "bin/nats-server": "c" * 64}


@pytest.fixture
def laid(tmp_path: Path) -> Path:
    path = tmp_path / programs.NAME
    programs.save(path, FILES, programs.sign(FILES, "0.1.0", NOW, WU))
    return path


def test_files_that_differ_are_named(laid: Path) -> None:
    verdict = programs.verify(laid, roster_of(WU), NOW, FILES, whole=True)
    assert (verdict.signer, verdict.version, verdict.changed) == ("person:wu@platform", "0.1.0", ())
    found = {"medmesh/errors.py": "d" * 64, "site-packages/y.py": "e" * 64, "site-packages/x.so": "b" * 64}
    loaded = programs.verify(laid, roster_of(WU), NOW, found)
    assert loaded.changed == ("~medmesh/errors.py", "+site-packages/y.py")
    whole = programs.verify(laid, roster_of(WU), NOW, found, whole=True)
    assert whole.changed == ("-bin/nats-server", "~medmesh/errors.py", "+site-packages/y.py")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda document: document["files"].update({"medmesh/errors.py": "d" * 64}), "program.form"),
        (lambda document: document["files"].pop("bin/nats-server"), "program.form"),
        (lambda document: document.update(note=programs.sign(FILES, "0.1.0", NOW, SMITH)), "roster.unknown"),
        (lambda document: document.update(files=7), "program.form"),
    ],
    ids=["digest", "entry", "signer", "kind"],
)
def test_a_list_that_nobody_of_the_roster_signed_as_it_is(laid: Path, spoil: object, code: str) -> None:
    document = json.loads(laid.read_bytes())
    spoil(document)  # type: ignore[operator]
    laid.write_text(json.dumps(document))
    with pytest.raises(Problem) as caught:
        programs.verify(laid, roster_of(WU), NOW, FILES)
    assert caught.value.code == code


def test_who_has_another_role_signs_for_nothing(laid: Path) -> None:
    with pytest.raises(Problem) as caught:
        programs.verify(laid, roster_of(WU, role="researcher"), NOW, FILES)
    assert caught.value.code == "roster.role"


def test_no_list_is_said(tmp_path: Path) -> None:
    with pytest.raises(Problem) as caught:
        programs.read(tmp_path / programs.NAME)
    assert caught.value.code == "program.none"


async def test_where_nobody_signed_a_list_nothing_is_told_and_only_who_must_have_one_does_not_start(tmp_path: Path) -> None:
    def nobody() -> Roster:
        raise Problem("roster.none")

    def unused() -> None:
        raise AssertionError("a record was left")

    await Verification(tmp_path / "trust.json", nobody, unused, required=False).look()
    with pytest.raises(Problem) as caught:
        await Verification(tmp_path / "trust.json", nobody, unused, required=True).admit()
    assert caught.value.code == "program.none"


def test_what_is_loaded_is_among_what_is_installed() -> None:
    found, loaded = programs.measured(), programs.loaded()
    assert loaded["medmesh/security/programs.py"] == found["medmesh/security/programs.py"]
    assert "site-packages/cryptography/__init__.py" in loaded
    assert programs.differences(found, loaded, whole=False) == ()

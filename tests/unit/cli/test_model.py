"""What people are told of a version of a model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from click.testing import CliRunner
from tests.unit.cli.test_federation import Door, view

from medmesh.cli.federation import federation
from medmesh.cli.model import model
from medmesh.contracts.federation import FederationView, ParticipantView
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.registry import Artefact, InstallView, Lineage, ReleaseView, VersionView

REF = ObjectRef(sha256="a" * 64, bytes=3 * 2**20)
INSTALLS = (InstallView(hospital="xiehe", installed=True, code=""), InstallView(hospital="renji", installed=False, code="serving.old"))
VERSION = VersionView(
    model="mri",
    version=2,
    state="released",
    artefacts=(Artefact(format="safetensors", object=REF), Artefact(format="onnx", object=REF, parity_max_abs=6.6e-7)),
    package=ObjectRef(sha256="b" * 64, bytes=9),
    lineage=Lineage(federation="fed-1", hospitals=("renji", "xiehe"), undone=(3,)),
    releases=(ReleaseView(release="r-1", digest="c" * 64, state="released", approval="approval-1", installs=INSTALLS),),
    withdrawn=("renji",),
)
LEFT = {"en": "of the model mri, version 2: renji. What", "zh": "模型 mri 版本 2 所属联邦的医院：renji。"}


class Registry:
    """A gateway that has one version."""

    def __init__(self, version: VersionView) -> None:
        self.version = version

    async def ask(self, path: str, reply: type[VersionView]) -> VersionView:
        assert (path, reply) == ("/v1/models/mri/versions/2", VersionView)
        return self.version

    async def command(self, method: str, path: str, body: Any) -> Any:
        return {"release": "r-2", "digest": "d" * 64, "manifest": {}, "approval": "approval-2"}


@pytest.fixture(params=["en", "zh"])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MEDMESH_LANG", request.param)
    return str(request.param)


def typed(monkeypatch: pytest.MonkeyPatch, version: VersionView, *arguments: str) -> Any:
    monkeypatch.setattr("medmesh.cli.model.with_gateway", lambda run: asyncio.run(run(Registry(version))))
    done = CliRunner().invoke(model, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def test_a_version_is_shown_with_where_it_is_from_where_it_went_and_who_left(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = typed(monkeypatch, VERSION, "show", "mri", "2")
    words = {
        "en": (
            "mri 2  released",
            "federation fed-1",
            "hospitals renji, xiehe",
            "rounds undone 3",
            "differs by 6.6e-07",
            "xiehe  installed",
        ),
        "zh": ("mri 2  已发布", "联邦 fed-1", "医院 renji, xiehe", "已撤销轮次 3", "最大偏差 6.6e-07", "xiehe  已安装"),
    }
    for text in (*words[language], f"onnx 3.0 MiB  {'a' * 64}", "renji  serving.old"):
        assert text in said.stdout, said.stdout
    assert LEFT[language] in said.stderr
    nobody = typed(monkeypatch, VERSION.model_copy(update={"withdrawn": ()}), "show", "mri", "2")
    assert nobody.stderr == ""


def test_programs_get_the_version_as_the_platform_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(typed(monkeypatch, VERSION, "show", "mri", "2", "--json").stdout)
    assert VersionView.model_validate(document) == VERSION


def test_who_releases_a_version_is_told_who_left(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = typed(monkeypatch, VERSION, "release", "mri", "2", "--hospital", "tongji")
    assert LEFT[language] in said.stderr and json.loads(said.stdout)["release"] == "r-2"


def test_a_result_says_which_hospitals_left(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(shown: FederationView) -> str:
        monkeypatch.setattr("medmesh.cli.federation.with_gateway", lambda run: asyncio.run(run(Door(shown))))
        return CliRunner().invoke(federation, ["result", "f"]).output

    states = {"renji": "withdrawn", "xiehe": "accepted"}
    those = tuple(ParticipantView(hospital=name, state=state, online=True, drops=0) for name, state in states.items())
    done = view("completed")
    said = {"en": "withdrawn: ", "zh": "已退出："}[language]
    assert f"{said}renji" in result(done.model_copy(update={"participants": those}))
    assert said not in result(done.model_copy(update={"participants": those[1:]}))

"""Models: versions with lineage, artefacts, evaluation, release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Command, Event, HospitalEvent, Identifier, Names, ObjectRef, Query, Record, Sha256
from medmesh.errors import Problem


class Lineage(Record):
    """Where a model comes from: enough to answer, for YY/T 1833.4, which data, code and rounds made it."""

    federation: str | None = None
    job: str | None = None
    plan_hash: Sha256 | None = None
    chain: Sha256 | None = None
    package: Sha256 | None = None
    hospitals: tuple[Identifier, ...] = ()
    """Of a federation: those whose updates are in the model."""
    datasets: tuple[str, ...] = ()
    undone: tuple[int, ...] = ()
    """Of a federation: training rounds that were committed and rolled back; nothing of them is in the model."""
    pipeline: Sha256 | None = None
    """The hash of the pipeline that the data went through (`medmesh.contracts.pipeline`)."""


class Artefact(Record):
    """One file of a model version: `format` is `safetensors` or `onnx`."""

    format: Literal["safetensors", "onnx"]
    object: ObjectRef
    parity_max_abs: float | None = None


class Manifest(Record):
    """What a release signs, canonical JSON without floats: the exact bytes that are digested, approved and signed."""

    model: Identifier
    version: int
    onnx: ObjectRef
    package: ObjectRef
    preprocess: dict[str, Any]
    classes: tuple[str, ...]
    lineage: Lineage
    hospitals: tuple[Identifier, ...]


class RegisterModel(Command):
    """Register a version by hand (a trained job); federations register their final model themselves.

    The version gets at least the labels of the job and the data sets of its lineage, and of whoever registers it; `label` may raise it.
    """

    TYPE: ClassVar[str] = "registry.register.v1"
    ACTION: ClassVar[str] = "model.register"
    OBJECTS: ClassVar[tuple[Names, ...]] = (
        Names("job", "{lineage.job}", "training.read"),
        Names("dataset", "{lineage.datasets}", "dataset.read", new=True),
        Names("file", "{weights.sha256}", "object.read"),
    )
    MAKES: ClassVar[str] = "model"

    model: Identifier
    weights: ObjectRef
    package: ObjectRef
    lineage: Lineage = Lineage()
    label: SecurityLabel | None = None


class PrepareRelease(Command):
    """Fix what would be released. Result: `{"release": id, "digest": sha256, "manifest": {...}}`; the digest is what gets approved
    under the action `model.release` with the release's id as subject."""

    TYPE: ClassVar[str] = "registry.prepare-release.v1"
    ACTION: ClassVar[str] = "model.release"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("model", "{model}/{version}"),)
    MAKES: ClassVar[str] = "release"

    model: Identifier
    version: int
    hospitals: tuple[Identifier, ...]


class WithdrawModel(Command):
    TYPE: ClassVar[str] = "registry.withdraw.v1"
    ACTION: ClassVar[str] = "model.release"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("model", "{model}/{version}"),)

    model: Identifier
    version: int
    reason: str


class ReportInstall(Command):
    """A hospital installed a release, or refused it with a problem's code."""

    TYPE: ClassVar[str] = "registry.report-install.v1"
    ACTION: ClassVar[str] = "model.install"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("release", "{release}"),)

    release: str
    installed: bool
    code: str = ""


class ModelRegistered(Event):
    TYPE: ClassVar[str] = "registry.model.registered.v1"

    model: Identifier
    version: int
    weights: ObjectRef
    package: ObjectRef
    lineage: Lineage


class ModelReleased(HospitalEvent):
    """`manifest` is base64 of the exact bytes signed; `signature` base64 of the registry's release key over them;
    `approval` the token governance signed over their digest."""

    TYPE: ClassVar[str] = "registry.model.released.v1"

    release: str
    model: Identifier
    version: int
    manifest: str
    signature: str
    approval: str
    label: SecurityLabel | None = None


class ModelWithdrawn(HospitalEvent):
    TYPE: ClassVar[str] = "registry.model.withdrawn.v1"

    model: Identifier
    version: int
    reason: str


class ContributorsWithdrew(HospitalEvent):
    """Hospitals whose part is in a version that was released to `hospitals` left its federation for good: all that have so far, told again
    with each further one."""

    TYPE: ClassVar[str] = "registry.contributors.withdrew.v1"

    model: Identifier
    version: int
    withdrawn: tuple[Identifier, ...]


class ModelInstalled(Event):
    TYPE: ClassVar[str] = "registry.model.installed.v1"

    release: str
    hospital: Identifier
    installed: bool
    code: str = ""


class InstallView(Record):
    hospital: str
    installed: bool
    code: str


class ReleaseView(Record):
    release: str
    digest: Sha256
    state: str
    approval: str | None
    installs: tuple[InstallView, ...]


class VersionView(Record):
    model: str
    version: int
    state: str
    artefacts: tuple[Artefact, ...]
    package: ObjectRef
    lineage: Lineage
    releases: tuple[ReleaseView, ...]
    card: dict[str, Any] = Field(default_factory=dict)
    label: SecurityLabel | None = None
    withdrawn: tuple[Identifier, ...] = ()
    """Those of the lineage's hospitals that left the federation for good, during it or since: their part cannot be taken out of this model;
    whether it stays in use is decided by its owner."""


def departures(model: str, version: int, withdrawn: Sequence[str]) -> Problem | None:
    """What people are told wherever they see a version in which hospitals that left (`VersionView.withdrawn`) have a part; None where there
    are none."""
    if not withdrawn:
        return None
    return Problem("registry.contributors_withdrew", model=model, version=version, hospitals=", ".join(withdrawn))


class GetModel(Query):
    TYPE: ClassVar[str] = "registry.get.v1"
    ACTION: ClassVar[str | None] = "model.read"
    Reply: ClassVar[type[Record]] = VersionView
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("model", "{model}/{version}"),)

    model: Identifier
    version: int


class ModelList(Record):
    models: tuple[VersionView, ...]


class ListModels(Query):
    TYPE: ClassVar[str] = "registry.list.v1"
    ACTION: ClassVar[str | None] = "model.read"
    Reply: ClassVar[type[Record]] = ModelList
    LISTS: ClassVar[str] = "model"

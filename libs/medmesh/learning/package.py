"""Training packages: a folder with `medmesh.toml` and perhaps code, packed so that the same content always has the same bytes.

    [package]
    name = "mri-cnn"
    version = "1.0.0"
    framework = "torch"            # an adapter: torch, mindspore, numpy, or one of your own

    [[layers]]                     # the model, layer by layer (`medmesh.learning.layers`): a package without code
    kind = "convolution"
    out = 16
    kernel = 3

Or, where layers are not enough, with code:

    [package]
    entry = "model"                # the module that defines build(), and optionally optimizer() and loss()

    [code]                         # what that code needs beside arithmetic (`medmesh.learning.capabilities`)
    imports = ["scipy"]

    [[variants]]                   # the same model for another framework; a hospital runs the one it has
    framework = "mindspore"
    entry = "model_ms"

    [data]
    modality = "MR"
    image_size = 64
    channels = 1
    classes = ["none", "tumour"]

    [data.pipeline]                # steps that each hospital applies to its data (`medmesh dataset steps`); their hash is in the plan
    name = "mri-64"
    [[data.pipeline.steps]]
    step = "scale"
    version = 1
    shape = [64, 64]

    [hyper]                        # whatever build() takes, as whole numbers and strings
    width = 16

    [[tensors]]                    # what may leave a hospital, and nothing else
    name = "conv1.weight"
    shape = [16, 1, 3, 3]
    dtype = "F32"

The SHA-256 of the packed bytes is what hospitals approve.
"""

from __future__ import annotations

import hashlib
import io
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, model_validator

from medmesh.contracts.data import DataSchema, ImageSchema, ItemSchema
from medmesh.contracts.message import Identifier, Record
from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.learning.layers import DECLARED, TWINS, Layer

MANIFEST = "medmesh.toml"
MAX_FILES, MAX_BYTES = 500, 32 * 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)


class About(Record):
    """The table `[package]`."""

    name: Identifier
    version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
    framework: Identifier
    entry: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None


class Variant(Record):
    """The same model for another framework: the same tensors by name, shape and meaning."""

    framework: Identifier
    entry: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Code(Record):
    """The table `[code]`: what a package's own code needs beside arithmetic. There is no network for any."""

    imports: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()
    files: bool = False
    """It reads or writes files, of those that its sandbox shows."""
    processes: bool = False
    """It starts processes, or calls libraries of the system."""
    dynamic: bool = False
    """It makes code while it runs, or reaches into the interpreter: what else it does cannot be read in it."""


class Manifest(Record):
    """`medmesh.toml`."""

    package: About
    layers: tuple[Layer, ...] = Field(default=(), max_length=200)
    code: Code = Code()
    variants: tuple[Variant, ...] = ()
    data: DataSchema
    hyper: dict[str, int | str] = Field(default_factory=dict)
    tensors: tuple[TensorSignature, ...] = Field(min_length=1)

    def images(self) -> ImageSchema:
        """What it needs, for who works on images alone. Raises `Problem` (`package.images_only`)."""
        if self.data.kind != "images":
            raise Problem("package.images_only")
        return self.data

    def items(self) -> ItemSchema:
        """What it needs, for who works on anything that is decoded. Raises `Problem` (`package.no_table`)."""
        if self.data.kind == "table":
            raise Problem("package.no_table")
        return self.data

    @property
    def entries(self) -> dict[str, str | None]:
        """Framework to its entry module, the package's own first; None where its layers are declared."""
        if self.layers:
            twin = TWINS.get(self.package.framework)
            return dict.fromkeys((self.package.framework, twin) if twin else (self.package.framework,))
        return {self.package.framework: self.package.entry} | {v.framework: v.entry for v in self.variants}

    @property
    def custom(self) -> bool:
        """Whether it brings code of its own: that is rehearsed and reviewed before hospitals are asked to run it."""
        return self.package.entry is not None

    def told(self, framework: str) -> dict[str, Any]:
        """What a worker for `framework` is told of it, as JSON: it has no library to read and check manifests with. Raises `Problem`
        (`package.variant`)."""
        if framework not in self.entries:
            raise Problem("package.variant", framework=framework)
        data, entry = self.data, self.entries[framework]
        declared = {"layers": [layer.model_dump() for layer in self.layers], "shape": data.shape, "classes": len(data.classes)}
        return {
            "entry": entry or DECLARED[framework],
            "custom": entry is not None,
            "hyper": self.hyper if entry is not None else declared,
            "classes": len(data.classes),
            "sample": None if data.kind == "table" else data.shape,
        }

    def framework(self, wanted: Sequence[str]) -> str:
        """The first of the wanted frameworks that this package is written for; its own when there is none among them."""
        return next((name for name in wanted if name in self.entries), self.package.framework)

    @model_validator(mode="after")
    def _one_each(self) -> Manifest:
        if not self.layers and len(self.entries) != 1 + len(self.variants):
            raise ValueError("variants: a framework is named twice")
        if (self.package.entry is None) != bool(self.layers):
            raise ValueError("give the entry module of the package's code, or its layers, and not both")
        if self.layers and (self.variants or self.hyper or self.code != Code()):
            raise ValueError("layers: a package without code has no variants, hyper-parameters or needs of code")
        if self.layers and self.package.framework not in DECLARED:
            raise ValueError(f"layers: without code only {', '.join(sorted(DECLARED))}")
        return self


@dataclass(frozen=True)
class Package:
    """A package that was read: `archive` are its canonical bytes, `digest` their SHA-256."""

    manifest: Manifest
    archive: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """What gets approved."""
        return hashlib.sha256(self.archive).hexdigest()

    @property
    def files(self) -> dict[str, bytes]:
        """Name to content of everything in it."""
        with zipfile.ZipFile(io.BytesIO(self.archive)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def unpack(self, folder: Path) -> Path:
        """Write the files below `folder`, readable for the worker's account whatever our umask is."""
        with zipfile.ZipFile(io.BytesIO(self.archive)) as archive:
            for name in archive.namelist():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
                target.chmod(0o644)
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            place.chmod(0o755)
        return folder


def pack(folder: Path) -> Package:
    """Pack a folder. Raises `Problem` (`package.*`)."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, (folder / name).read_bytes())
    return read(buffer.getvalue())


def read(archive: bytes) -> Package:
    """Read packed bytes from anybody. Raises `Problem`: nothing is written, and no path leaves the package."""
    if len(archive) > MAX_BYTES:
        raise Problem("package.too_large", bytes=len(archive), limit=MAX_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            _check(opened.infolist())
            names, text = opened.namelist(), opened.read(MANIFEST).decode()
        manifest = read_manifest(text)
    except KeyError:
        raise Problem("package.no_manifest") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, RuntimeError, OSError, struct.error, zlib.error):
        # NotImplementedError: a compression zipfile does not know; RuntimeError: encrypted, or nested too deeply (RecursionError)
        raise Problem("package.malformed", reason="not a package") from None
    except ValueError:  # a directory that points before its own beginning
        raise Problem("package.malformed", reason="not a package") from None
    if manifest.layers and len(names) > 1:
        raise Problem("package.malformed", reason="a package without code has no files beside medmesh.toml")
    return Package(manifest, archive)


def read_manifest(text: str) -> Manifest:
    """`medmesh.toml`. Raises `Problem` (`package.malformed`; `pipelines.declaration` and `pipelines.version` of its pipeline)."""
    try:
        return Manifest.model_validate_json(_json(text))
    except tomllib.TOMLDecodeError as error:
        raise Problem("package.malformed", reason=f"{MANIFEST}: {error}") from None
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)[:5])
        raise Problem("package.malformed", reason=f"{MANIFEST}: {where}") from None


def _json(text: str) -> str:
    import json

    said = tomllib.loads(text)
    data = said.get("data")
    if isinstance(data, dict) and isinstance(pipeline := data.get("pipeline"), dict):
        from medmesh.pipelines.pipeline import declared  # numpy: not before the first package that has one

        data["pipeline"] = declared(pipeline).stated().model_dump(mode="json")
    return json.dumps(said, default=str)  # dates of TOML: no field of a manifest is one


def _check(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise Problem("package.too_large", bytes=sum(entry.file_size for entry in entries), limit=MAX_BYTES)
    names = [entry.filename for entry in entries]
    for entry in entries:
        path = PurePosixPath(entry.filename)
        link = (entry.external_attr >> 16) & 0o170000 == 0o120000
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or link or entry.compress_type != zipfile.ZIP_STORED:
            raise Problem("package.malformed", reason=f"{entry.filename[:80]!r} is not allowed in a package")
    if len(set(names)) != len(names) or names != sorted(names):
        raise Problem("package.malformed", reason="its files are not in canonical order")

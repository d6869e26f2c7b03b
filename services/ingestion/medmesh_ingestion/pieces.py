"""The bytes of what a published set is made of, and the pictures that its questions and texts are about."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from medmesh.errors import Problem
from medmesh.importing.port import File, Importer, Item, Source
from medmesh.importing.reading import within_zip
from medmesh.importing.sources import DAMAGE

SOME = 2_000
"""Items that are looked at in one go."""
ROWS = ("question", "text", "table", "events")
"""Kinds of items that are rows and no files of their own."""


@dataclass(slots=True)
class Picture:
    """A picture with its file, its patient or group, and the published split: none where questions of several splits are about it."""

    file: File
    unit: str | None
    split: str | None


class Pictures:
    """What is a file of its own, and beside it each picture once, however many questions are about it."""

    def __init__(self, importer: Importer) -> None:
        self._same_side = importer.same_side
        self._found: dict[str, Picture] = {}

    def next(self, items: Iterator[Item]) -> list[Item]:
        """The next items that are files of their own; none at the end."""
        while some := list(islice(items, SOME)):
            for item in some:
                self._add(item)
            if own := [item for item in some if item.kind not in ROWS]:
                return own
        return []

    def in_order(self, place: Callable[[File], Any]) -> list[tuple[str, Picture]]:
        """In the order in which files are read forward."""
        return sorted(self._found.items(), key=lambda one: (place(one[1].file), one[0]))

    def _add(self, item: Item) -> None:
        if item.kind not in ROWS:
            return
        split = self._same_side.get(item.split or "", item.split)
        for name, file in item.pictures:
            if file is None:
                continue
            known = self._found.setdefault(name, Picture(file, item.unit, split))
            if known.split != split:
                known.split = None


class Pieces:
    """The bytes of an item's files: a file, a member of a zip in the source, or a row of an array, which is read forward."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stack, self._all = ExitStack(), ExitStack()
        self._at: tuple[str, str, int] | None = None
        self._member: BinaryIO | None = None
        self._shape: tuple[int, ...] = ()
        self._zips: dict[str, zipfile.ZipFile] = {}

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._all.close()

    def size(self, file: File) -> int:
        """Bytes of a whole file; of a row none: it is small."""
        if member := self._within(file):
            return member.file_size
        return 0 if "[" in file.part else self._source.size(file.name)

    def place(self, file: File) -> tuple[str, int]:
        """By which files are read forward, a zip's members too."""
        member = self._within(file)
        return file.name, member.header_offset if member else 0

    def read(self, file: File) -> bytes:
        """A row of two dimensions, or of three with colours, as PNG; one of three as .npy; anything else as it is. Raises `Problem`
        (`importing.unreadable`) for damage."""
        if member := self._within(file):
            return self._member_of(file.name, member)
        if "[" not in file.part:
            with self._source.open(file.name) as opened_:
                return opened_.read()
        key, _, row = file.part.rstrip("]").partition("[")
        pixels = self._row(file.name, key, int(row))
        buffer = io.BytesIO()
        if pixels.ndim == 2 or pixels.shape[2] == 3:
            Image.fromarray(pixels).save(buffer, "PNG")
        else:
            np.save(buffer, pixels)
        return buffer.getvalue()

    def _within(self, file: File) -> zipfile.ZipInfo | None:
        """The member of a zip that a set ships its pictures in."""
        if not file.part or not file.name.endswith(".zip"):
            return None
        if file.name not in self._zips:
            self._zips[file.name] = self._all.enter_context(within_zip(self._source, file.name))
        return self._zips[file.name].getinfo(file.part)

    def _member_of(self, name: str, member: zipfile.ZipInfo) -> bytes:
        """No more than it says: a member is as large as its directory has it, or damaged."""
        try:
            with self._zips[name].open(member) as opened_:
                data = opened_.read(member.file_size)
        except DAMAGE as error:
            raise Problem("importing.unreadable", place=name, reason=type(error).__name__) from None
        if len(data) != member.file_size:
            raise Problem("importing.unreadable", place=name, reason="shorter than it says")
        return data

    def _row(self, name: str, key: str, row: int) -> NDArray[np.uint8]:
        if self._at is None or self._at[:2] != (name, key) or self._at[2] > row:
            self._open(name, key)
            self._at = (name, key, 0)
        assert self._member is not None
        size = int(np.prod(self._shape[1:]))
        while self._at[2] < row:
            self._member.read(size)
            self._at = (name, key, self._at[2] + 1)
        data = self._member.read(size)
        self._at = (name, key, row + 1)
        return np.frombuffer(data, np.uint8).reshape(self._shape[1:])

    def _open(self, name: str, key: str) -> None:
        self._stack.close()
        archive = self._stack.enter_context(zipfile.ZipFile(self._stack.enter_context(self._source.open(name))))
        self._member = self._stack.enter_context(archive.open(f"{key}.npy"))  # type: ignore[assignment]
        version = npy.read_magic(self._member)  # type: ignore[no-untyped-call]
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self._shape, fortran, _ = read(self._member)  # type: ignore[no-untyped-call]
        if fortran:
            raise Problem("imaging.unreadable", reason="columns first")

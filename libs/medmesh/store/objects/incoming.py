"""An object that is stored while it arrives: hashed and sealed piece by piece into a file of its own, and kept only when it is whole.

A piece of 1 MiB is in memory, never more. What fits in one is sealed once its SHA-256 is known, behind its header, in one file; a longer
one is a body that grows and a header that is written last. A writer that is killed leaves files that no header names (`erase`, `clear`).
"""

from __future__ import annotations

import errno
import io
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from medmesh.errors import Problem
from medmesh.store.objects import envelope
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.envelope import PIECE, Wrapping
from medmesh.store.objects.port import Digest

GROWING = "growing"
"""The folder in which bodies grow: their objects have no name yet."""


class Incoming:
    """`write` it all, look at `sha256` and `size`, then `keep` it (or `place` it, and `wait` for the disk later), or `discard` it. Raises
    `Problem` (`objects.full`) and `OSError`."""

    def __init__(self, blobs: DirectoryBlobs, wrapping: Wrapping) -> None:
        self._folder = blobs.folder
        self._wrapping = wrapping
        self._hash = Digest()
        self._piece = bytearray()
        self._place = 0
        self._file: BinaryIO | None = None
        self._path: Path | None = None
        self._unsynced: list[BinaryIO] = []
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._hash.hexdigest()

    @property
    def marks(self) -> list[str]:
        """See `Digest`."""
        return self._hash.marks

    @property
    def beginning(self) -> bytearray:
        """All that was written, while that is no more than a piece; not to be held or changed."""
        return self._piece

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self._hash.update(data)
        self.size += len(data)
        if len(self._piece) + len(data) <= PIECE:  # the last piece is known to be it only when no more comes
            self._piece += data
            return
        view = memoryview(data)
        while len(view):
            if len(self._piece) == PIECE:
                self._seal(last=False)
            took = PIECE - len(self._piece)
            self._piece += view[:took]
            view = view[took:]

    def keep(self) -> None:
        """`place` it and `wait`."""
        self.place()
        self.wait()

    def place(self) -> None:
        """Give it its SHA-256 as its name; the disk has yet to write it, and begins. One that lies there already is replaced: who asks
        knows of none, and what nobody knows of may be half of one."""
        sha256 = self.sha256
        folder = self._folder / sha256[:2]
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if self._file is None:
                header, cipher = envelope.begin(sha256, self.size, self._wrapping, inline=True)
                body = b"".join(envelope.seal_pieces(header, cipher, io.BytesIO(self._piece)))
                line = header.line() + body
            else:
                self._seal(last=True)
                line = envelope.arrived(sha256, self.size, self._body, self._dek, self._wrapping).line()
                assert self._path is not None
                os.replace(self._path, folder / f"{sha256}.{self._body}")
                self._path = None
                self._unsynced.append(self._file)
                self._file = None
            self._unsynced.append(_write(folder / f"{sha256}.key", line))
            for file in self._unsynced:  # bytes that are on their way already: who waits for several waits for one journal, not for each
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            self.discard()
            raise _full(error) from None
        self._piece = bytearray()

    def wait(self) -> None:
        """Until it is on the disk, its name included."""
        try:
            for file in self._unsynced:
                os.fsync(file.fileno())
        except OSError as error:
            raise _full(error) from None
        finally:
            self.discard()

    def discard(self) -> None:
        """Nothing of it stays. Also after `keep`, where it does nothing."""
        self._piece = bytearray()
        for file in (*self._unsynced, *([self._file] if self._file else [])):
            file.close()
        self._unsynced, self._file = [], None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def _seal(self, *, last: bool) -> None:
        try:
            if self._file is None:
                self._body, self._dek, self._cipher = envelope.begin_unknown(self._wrapping)
                folder = self._folder / GROWING
                folder.mkdir(mode=0o700, exist_ok=True)
                self._path = folder / f".{self._body}.{secrets.token_hex(4)}"
                self._file = _new(self._path)
            _all(self._file, envelope.seal_piece(self._cipher, self._wrapping.suite, self._body, self._place, last, self._piece))
        except OSError as error:
            raise _full(error) from None
        self._place += 1
        self._piece = bytearray()


def erase(blobs: DirectoryBlobs, sha256: str) -> None:
    """Delete an object, or what a writer that was killed left of it. Nobody may be writing it."""
    folder = blobs.folder / sha256[:2]
    with suppress(FileNotFoundError):
        found = [path for path in folder.iterdir() if path.name.lstrip(".").startswith(f"{sha256}.")]
        for path in sorted(found, key=lambda path: path.name != f"{sha256}.key"):  # the header first: then nothing opens the body
            path.unlink(missing_ok=True)


def clear(blobs: DirectoryBlobs) -> None:
    """Delete the bodies whose writers were killed while they grew. Nobody may be writing one."""
    with suppress(FileNotFoundError):
        for path in (blobs.folder / GROWING).iterdir():
            path.unlink(missing_ok=True)


def _write(target: Path, data: bytes) -> BinaryIO:
    """The name first, and then the disk: a journal that has the file's own change of name has the folder's, so that one wait is enough
    for both (ext4, XFS and btrfs alike). Half a file under this name is no harm: nothing names it yet. Whoever gets the file waits."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    file = _new(temporary)
    try:
        _all(file, data)
        os.replace(temporary, target)
    except BaseException:
        file.close()
        temporary.unlink(missing_ok=True)
        raise
    return file


def _new(path: Path) -> BinaryIO:
    return open(path, "xb", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))


def _all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) :]


def _full(error: OSError) -> Exception:
    return Problem("objects.full") if error.errno in (errno.ENOSPC, errno.EDQUOT) else error

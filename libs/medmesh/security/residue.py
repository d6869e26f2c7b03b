"""Nothing of a key is left where others can find it: no core dumps, no memory that others may read, no temporary file after its use."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import stat
from contextlib import suppress
from pathlib import Path

_PR_SET_DUMPABLE = 4
_ZEROS = bytes(256 * 2**10)


def lock_down() -> None:
    """This process leaves no core dump, and no other of its account may attach to it or read its memory (prctl(2), ptrace(2)).

    Called by every process that reads a key, before it does; it holds for what it forks, until an exec.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def wipe(path: Path) -> None:
    """Remove a file or a folder, overwriting what lies in it. Links are removed, not followed; what is gone already is fine."""
    if path.is_symlink() or path.is_file():
        _wipe_file(path)
    elif path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                _wipe_file(Path(folder, name))
        shutil.rmtree(path, ignore_errors=True)


def empty(folder: Path) -> None:
    """Wipe all that lies in a folder, which stays: making it anew takes longer than to overwrite a small file in it."""
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            wipe(Path(entry.path))
        else:
            _wipe_file(entry.path)


def _wipe_file(path: Path | str) -> None:
    try:
        found = os.lstat(path)
        # Another name of the same bytes is somebody else's business: then only this name goes.
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            left, file = found.st_size, os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                while left > 0:
                    left -= os.write(file, _ZEROS[:left] if left < len(_ZEROS) else _ZEROS)
            finally:
                os.close(file)
    except OSError:  # not ours to write, or already gone: what matters is that it goes
        pass
    with suppress(FileNotFoundError):
        os.unlink(path)

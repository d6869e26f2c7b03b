"""Runs as the first moment of every child process, by path and with nothing but the standard library.

Drops to the wanted account, asks the kernel for a signal when the parent dies (after the change of account, which would
forget it), and becomes the program. It is a program of its own because code between fork and exec in a process with
threads may dead-lock, and because the interpreter need not be reachable for the account.

    python -I -S child.py PARENT SIGNAL UID GID CWD PROGRAM [ARGUMENT...]
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: str, signum: str, uid: str, gid: str, cwd: str, *argv: str) -> None:
    """Never returns. `UID` and `GID` are -1 to stay who we are."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # servers hold keys and rows; a core dump would hold them too
    if int(uid) >= 0:
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the kernel knew our wish
        os._exit(1)
    os.chdir(cwd)
    os.execv(argv[0], argv)  # noqa: S606 - no shell is what is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])

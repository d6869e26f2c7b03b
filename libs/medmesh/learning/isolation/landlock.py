"""Landlock: a process gives up files and TCP for itself and for all that it starts (Documentation/userspace-api/landlock.rst).

The call numbers are the same on every machine. Rights the running kernel does not know are left out, by its ABI number.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from medmesh.learning.isolation import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_BLOCK, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 13, 1 << 14, 1 << 15
_FIRST_RIGHTS = (1 << 13) - 1
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2

NETWORK_ABI, SCOPE_ABI, TRUNCATE_ABI = 4, 6, 3


def abi() -> int:
    """The version that the kernel speaks; 0 when it has none or has it switched off."""
    try:
        return kernel.call("syscall", _CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def rights(version: int) -> int:
    """Every file right that this version can take away."""
    later = ((2, _REFER), (TRUNCATE_ABI, _TRUNCATE), (5, _IOCTL_DEV))
    return _FIRST_RIGHTS | sum(right for since, right in later if version >= since)


def restrict(version: int, read: Iterable[str], write: Iterable[str], *, network: bool = False) -> None:
    """Keep reading and executing below `read`, everything but device files below `write`; no TCP without `network`, no signals outside.

    A `read` path that does not exist is left out; a `write` path must exist. Raises `OSError`.
    """
    known = rights(version)
    ruleset = struct.pack("=QQQ", known, 0 if network else _BIND_TCP | _CONNECT_TCP, _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL)
    size = 24 if version >= SCOPE_ABI else 16 if version >= NETWORK_ABI else 8
    rules = kernel.call("syscall", _CREATE_RULESET, ruleset[:size], size, 0)
    try:
        for path in read:
            if os.path.exists(path):
                _allow(rules, path, _EXECUTE | _READ_FILE | _READ_DIR)
        for path in write:
            _allow(rules, path, known & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV))
        kernel.call("syscall", _RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, allowed: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            allowed &= _FILE_RIGHTS
        kernel.call("syscall", _ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", allowed, place), 0)
    finally:
        os.close(place)

"""A root folder for one worker, in memory: only what it may see, all of it read-only but one folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from medmesh.learning.isolation import kernel
from medmesh.learning.isolation.places import DEVICES, HARDWARE, SETTINGS, SYSTEM, Place

_SHARED_MEMORY = "/dev/shm"  # noqa: S108
# Mounted over while the new root grows: it must exist and lie neither in nor above a place, or the place would show the new root too.
_BASE = "/sys"
# statvfs(3) flag: mount(2) flag. A remount must repeat them, or a user namespace is refused.
_KEPT_FLAGS = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}


def build(places: Iterable[Place], *, shared_bytes: int, account: tuple[str, int, int]) -> None:
    """Make a new root and enter it; nothing else of the machine's files can be named afterwards. Raises `OSError`.

    `shared_bytes` bounds /dev/shm; `account` is the one line (name, uid, gid) of the new
    password file. Needs fresh mount and process namespaces. The paths of the old root are held open as the new one grows over them.
    """
    base = _BASE
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    system = [Place(path, path) for path in (*SYSTEM, *SETTINGS, *HARDWARE, *DEVICES) if os.path.exists(path)]
    links = {place.target: os.readlink(place.target) for place in system if os.path.islink(place.target) and place.target in SYSTEM}
    opened = [(os.open(place.source, os.O_PATH | os.O_CLOEXEC), place) for place in (*system, *places) if place.target not in links]
    os.umask(0o022)
    kernel.mount("tmpfs", base, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=1m")
    for target, value in links.items():
        os.symlink(value, base + target)
    for descriptor, place in opened:
        _bind(descriptor, base + place.target)
        os.close(descriptor)
    os.makedirs(base + _SHARED_MEMORY)
    kernel.mount("tmpfs", base + _SHARED_MEMORY, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"mode=1777,size={shared_bytes}")
    for name, value in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(value, f"{base}/dev/{name}")
    with open(f"{base}/etc/passwd", "x", encoding="utf-8") as file:
        file.write("{}:x:{}:{}::/:/bin/false\n".format(*account))
    os.mkdir(f"{base}/proc")
    kernel.mount("proc", f"{base}/proc", "proc", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    _settle(base, {base + place.target for place in places if place.writable} | {base + _SHARED_MEMORY})
    kernel.change_root(base)


def _bind(source: int, target: str) -> None:
    """Show an open file or folder, and what is mounted below it, at `target`."""
    origin = f"/proc/self/fd/{source}"
    if os.path.isdir(origin):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    kernel.mount(origin, target, None, kernel.MS_BIND | kernel.MS_REC)


def _settle(base: str, writable: Iterable[str]) -> None:
    """Make every mount from `base` on read-only but those in `writable`, and all of them without set-user-id and device files."""
    devices = {base + device for device in DEVICES}
    for point in _mounts(base):
        present = os.statvfs(point).f_flag
        flags = sum(flag for shown, flag in _KEPT_FLAGS.items() if present & shown) | kernel.MS_NOSUID
        flags |= (0 if point in devices else kernel.MS_NODEV) | (0 if point in writable else kernel.MS_RDONLY)
        kernel.mount(None, point, None, kernel.MS_REMOUNT | kernel.MS_BIND | flags)


def _mounts(base: str) -> list[str]:
    """Where something is mounted in the tree whose root was mounted last at `base`; /proc/self/mountinfo, proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        rows = [line.split(" ")[:5] for line in file]
    points = {row[0]: re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), row[4]) for row in rows}
    tree = {[number for number, point in points.items() if point == base][-1]}
    for number, parent, *_ in rows:  # a parent is always listed before its children
        if parent in tree:
            tree.add(number)
    return [points[number] for number in tree]

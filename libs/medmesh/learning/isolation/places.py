"""What of the machine a worker may see: the system's programs and libraries, its own interpreter, and the folders it is given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SETTINGS = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")
HARDWARE = ("/sys/devices/system/cpu", "/sys/devices/system/node")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# Of /proc and /etc where they cannot be made afresh.
FACTS = (
    "/etc/passwd", "/etc/nsswitch.conf", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems",
    "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/pid_max",
)  # fmt: skip


class Place(NamedTuple):
    """The file or folder `source` (no link on its way) is seen by the worker as `target`."""

    source: str
    target: str
    writable: bool = False


def places(program: Path, read: Iterable[Path], write: Path) -> list[Place]:
    """Everything beyond `SYSTEM`, outer folders first, so that an inner one may have other rights.

    A path that leads through a link is seen at both ends, unless the link itself is inside something that is seen.
    """
    from pathlib import Path  # not above: two processes that only wait keep what the launcher imports

    package = Path(__file__).resolve().parents[2]
    readable = [*interpreter(program), package, *read]
    wanted = {Place(str(path.resolve()), str(path.resolve())) for path in readable}
    for path in readable:
        literal = os.path.abspath(path)
        if not any(Path(literal).is_relative_to(place.source) for place in wanted):
            wanted.add(Place(str(path.resolve()), literal))
    wanted = {place for place in wanted if not any(Path(place.target).is_relative_to(folder) for folder in SYSTEM)}
    real = str(write.resolve())
    wanted = {place for place in wanted if place.target not in {real, os.path.abspath(write)}}
    wanted |= {Place(real, real, True), Place(real, os.path.abspath(write), True)}
    return sorted(wanted, key=lambda place: (len(Path(place.target).parts), place))


def interpreter(program: Path) -> Iterator[Path]:
    """What `program` needs to start: itself, every link on the way to it, and for a Python its environment and its base.

    Of a prefix only the parts that Python uses: a prefix may well be somebody's home folder.
    """
    from pathlib import Path

    seen: set[Path] = set()
    waiting = [Path(os.path.abspath(program))]
    while waiting:
        current = waiting.pop()
        if current in seen or not os.path.lexists(current):
            continue
        seen.add(current)
        prefix = current.parent.parent
        parts = [prefix / name for name in ("bin", "lib", "lib64", "pyvenv.cfg")]
        if current.parent.name == "bin" and ((prefix / "pyvenv.cfg").is_file() or any(prefix.glob("lib/python3*"))):
            yield from (part for part in parts if part.exists())
        else:
            yield current
        home = _home(prefix / "pyvenv.cfg")
        if home is not None:
            waiting.append(home / "python3")
        if current.is_symlink():
            waiting.append(Path(os.path.normpath(current.parent / current.readlink())))


def _home(configuration: Path) -> Path | None:
    """The folder of the base interpreter that an environment names (PEP 405)."""
    if not configuration.is_file():
        return None
    for line in configuration.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        if name.strip().lower() == "home":
            return configuration.parent / value.strip()
    return None

"""The program between the edge and a worker: gives up what the worker must not have, step by step, then becomes the worker.

`python -I -S launcher.py <json>`, as `medmesh.learning.isolation.wrap` writes it; nothing but the standard library. A step that
fails ends it with code 125 and one line on stderr, {"isolation": <step>, "reason": ...}. Sources: namespaces(7), pivot_root(2),
landlock(7), seccomp(2), prctl(2), pid_namespaces(7).

With namespaces there are three processes. The one that was started waits, and ends as the worker does. Its child is the first of
the process namespace: the kernel ends everything in there with it, so nothing the worker leaves behind lives on. The third builds
what it will see and becomes the worker. Each is killed when the one above ends; SIGTERM to the first therefore ends all at once. The two
that wait keep what is imported here, as long as the worker lives, and share what neither writes to: little is, and they do little.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import struct
import sys

TYPE_CHECKING = False  # and not typing's, which would be kept
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

FAILED = 125
_OPEN_FILES = 4096
# Threads and allocators reserve addresses they never use; the limit on data is the one that bites.
_ADDRESS_HEADROOM = 4 * 2**30
_AFTER_THE_SIGNAL = 2


def _packages() -> None:
    """Our package by name, without what its `__init__` files import: that may need more than the standard library."""
    folder = os.path.dirname(os.path.abspath(__file__))
    for name in ("medmesh.learning.isolation", "medmesh.learning", "medmesh"):
        module = type(sys)(name)
        module.__path__ = [folder]
        sys.modules[name] = module
        folder = os.path.dirname(folder)


def main(text: str) -> NoReturn:
    """Run what `text` describes; never returns."""
    from medmesh.learning.isolation import kernel

    order: dict[str, Any] = json.loads(text)
    parent = os.getppid()
    os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    follow(
        [
            ("session", _new_session),
            ("parent", lambda: kernel.die_with_parent(signal.SIGKILL)),
            ("parent", lambda: _still_there(os.getppid() == parent)),
            ("limits", lambda: _limit(order)),
            ("folder", lambda: _give(order)),
        ]
    )
    if order["kind"] == "namespace":
        _enter(order)
    _become(order)


def follow(steps: Iterable[tuple[str, Callable[[], object]]]) -> None:
    """Take each step; say which one failed, and end."""
    for name, action in steps:
        try:
            action()
        except (OSError, ValueError) as error:
            line = json.dumps({"isolation": name, "reason": str(error)}) + "\n"
            os.write(2, line.encode())
            os._exit(FAILED)


def _new_session() -> None:
    if os.getsid(0) != os.getpid():
        os.setsid()


def _still_there(parent: bool) -> None:
    """Between our start and the order to die with it, the parent may have died already."""
    if not parent:
        raise OSError("the parent has ended")


def _limit(order: dict[str, Any]) -> None:
    """Limits of each process, not of all together, except the number of tasks, which counts those the account runs already."""
    limits, uid = order["limits"], order["identity"][1]
    bounds = {
        resource.RLIMIT_DATA: limits["memory_bytes"],
        resource.RLIMIT_AS: limits["memory_bytes"] + limits["mapped_bytes"] + _ADDRESS_HEADROOM,
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NPROC: limits["processes"] + _tasks(uid),
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        value = _most(kind, bound)
        resource.setrlimit(kind, (value, value))
    # A process may move its own lower bound, as the worker does for each operation, and the signal says why it ends. The upper one ends
    # whoever moves it further; where both are one, its signal comes first and says nothing.
    most = _most(resource.RLIMIT_CPU, limits["cpu_seconds"] * limits["operations"] + _AFTER_THE_SIGNAL)
    resource.setrlimit(resource.RLIMIT_CPU, (min(limits["cpu_seconds"], most), most))
    # When memory runs out all the same, the worker is what the kernel ends first.
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _most(kind: int, bound: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return bound if hard == resource.RLIM_INFINITY else min(bound, hard)


def _tasks(uid: int) -> int:
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # it has ended meanwhile
            continue
    return count


def _give(order: dict[str, Any]) -> None:
    """The folder to write becomes the account's own, and only its own."""
    if order["change"]:
        folder = os.open(order["write"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        os.fchown(folder, *order["identity"][1:])
        os.fchmod(folder, 0o700)
        os.close(folder)


def _enter(order: dict[str, Any]) -> None:
    """Return in a process of its own process, file, network and message namespaces, with a root that holds only its places."""
    from medmesh.learning.isolation import kernel

    _, uid, gid = order["identity"]
    outcome, report = os.pipe()
    if order["change"]:
        follow([("namespaces", lambda: kernel.unshare(kernel.CLONE_NEWPID))])
    else:
        follow([("namespaces", lambda: kernel.unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWUSER)), ("account", lambda: _map(uid, gid))])
    gc.disable()  # it would write to what the two that only wait share
    first = os.fork()
    if first:
        os.close(report)
        _quiet()
        _end_like(first, outcome)
    os.close(outcome)
    follow(
        [
            ("parent", lambda: kernel.die_with_parent(signal.SIGKILL)),
            ("parent", lambda: _still_there(not _hung_up(report))),
            ("namespaces", lambda: kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)),
            ("files", lambda: os.chdir("/")),  # where the next one changes the root for both
        ]
    )
    worker = os.fork()
    if worker:
        follow([("inspection", kernel.forbid_inspection)])
        _quiet()
        _wait(worker, report)
    os.close(report)
    _build(order)


def _build(order: dict[str, Any]) -> None:
    """Fill the namespaces, in the process that becomes the worker: what is written here is written to no memory of those that wait. As
    they end, so does it; nothing foreign runs in there yet."""
    from medmesh.learning.isolation import kernel, root
    from medmesh.learning.isolation.places import Place

    places, shared = [Place(*place) for place in order["places"]], order["limits"]["memory_bytes"]
    name, uid, gid = order["identity"]
    follow(
        [
            ("network", lambda: kernel.raise_loopback() if order["loopback"] else None),
            ("files", lambda: root.build(places, shared_bytes=shared, account=(name, uid, gid))),
            ("inspection", kernel.forbid_inspection),
            ("session", os.setsid),
        ]
    )


def _map(uid: int, gid: int) -> None:
    """We keep our own numbers inside the user namespace; there are no others in it."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _quiet() -> None:
    """Let go of the pipes, so that they close when the worker closes them."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _hung_up(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(0))


def _wait(worker: int, report: int) -> NoReturn:
    """The first process: collect whatever ends, until the worker does, and say how it ended."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == worker:
            os.write(report, struct.pack("=i", status))
            os._exit(0)


def _end_like(first: int, outcome: int) -> NoReturn:
    """End with the worker's exit code or by the signal that ended it."""
    said = os.read(outcome, 4)
    status = os.waitpid(first, 0)[1]
    code = os.waitstatus_to_exitcode(struct.unpack("=i", said)[0] if said else status)
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _become(order: dict[str, Any]) -> NoReturn:
    """Give up the rest and run the worker's program in place of this one."""
    from medmesh.learning.isolation import kernel, landlock, seccomp

    abi, shared = order["abi"], order["kind"] != "namespace"
    readable, writable = order["readable"], order["writable"]
    filtered = seccomp.program(
        os.uname().machine,
        shared=shared,
        signals=shared and abi < landlock.SCOPE_ABI,
        truncation=shared and abi < landlock.TRUNCATE_ABI,
        process=os.getpid(),
    )
    follow(
        [
            ("account", lambda: _change(order)),
            ("privileges", kernel.drop_capabilities),
            ("privileges", kernel.no_new_privileges),
            ("parent", lambda: kernel.die_with_parent(signal.SIGKILL)),  # the kernel forgot it with the account
            ("files", lambda: landlock.restrict(abi, readable, writable, network=order["loopback"]) if abi or shared else None),
            ("folder", lambda: os.chdir(order["write"])),
            ("calls", lambda: kernel.filter_calls(filtered)),
            ("program", lambda: os.execvp(order["program"][0], order["program"])),  # noqa: S606
        ]
    )
    raise AssertionError("exec returned")


def _change(order: dict[str, Any]) -> None:
    """Take the account's numbers for good."""
    from medmesh.learning.isolation import kernel

    if not order["change"]:
        return
    _, uid, gid = order["identity"]
    kernel.bound_capabilities()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if uid == 0 or os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise OSError("the account was not taken")


if __name__ == "__main__":
    _packages()
    main(sys.argv[1])

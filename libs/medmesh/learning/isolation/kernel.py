"""The few kernel calls that the standard library does not offer, each raising `OSError` with the reason.

Constants are those of linux/sched.h, linux/prctl.h, linux/sockios.h, sys/mount.h and linux/capability.h, the same on every machine.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 4, 22, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER, _CAPABILITY_VERSION_3 = 4, 2, 0x20080522

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call the C function `name`; whole numbers go as `unsigned long`, as prctl(2) and syscall(2) want them."""
    values = [ctypes.c_ulong(value & 0xFFFFFFFFFFFFFFFF) if isinstance(value, int) else value for value in arguments]
    result = int(getattr(_libc, name)(*values))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags`; a new process namespace begins with the next child."""
    call("unshare", flags)


def raise_loopback() -> None:
    """Let this network namespace's processes speak to each other over 127.0.0.1; netdevice(7). A new one has it, and it is down."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_one:
        flags = struct.unpack("16xH", fcntl.ioctl(any_one, _SIOCGIFFLAGS, struct.pack("16s24x", b"lo"))[:18])[0]
        fcntl.ioctl(any_one, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    texts = (source, target, kind, data)
    where, onto, sort, options = (None if text is None else os.fsencode(text) for text in texts)
    call("mount", where, onto, sort, flags, options)


def change_root(folder: str) -> None:
    """Make the mount at `folder` the root and let go of everything else; pivot_root(2), the form that needs no second folder."""
    os.chdir(folder)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def die_with_parent(number: int) -> None:
    """Receive the signal `number` when the parent ends. Cleared by the kernel when the account changes."""
    call("prctl", _PR_SET_PDEATHSIG, number, 0, 0, 0)


def forbid_inspection() -> None:
    """No process without our rights may read our memory or follow our /proc links."""
    call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def no_new_privileges() -> None:
    """Programs that we start gain no rights from set-user-id bits or file capabilities; never undone."""
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def bound_capabilities() -> None:
    """No program started from here can have any capability. A process that may not say so has none to lose."""
    try:
        for capability in range(64):
            call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
    except OSError:  # EINVAL after the last one the kernel knows, EPERM for an ordinary account
        pass


def drop_capabilities() -> None:
    """Give up every capability that this process holds now."""
    try:
        call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    except OSError:  # kernels before 4.3 have no ambient set
        pass
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def filter_calls(program: bytes) -> None:
    """Install a seccomp program (8-byte BPF instructions) on this thread and on all that it starts; never undone."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    code = ctypes.create_string_buffer(program, len(program))
    structure = Program(len(program) // 8, ctypes.addressof(code))
    call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(structure), 0, 0)

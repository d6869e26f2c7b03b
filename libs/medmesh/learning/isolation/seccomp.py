"""The kernel calls a worker has no use for, as a classic BPF program for seccomp (Documentation/userspace-api/seccomp_filter.rst).

Known for x86-64 and AArch64; numbers from asm/unistd_64.h and asm-generic/unistd.h. A refused call fails with EPERM, or with
ENOSYS where libraries then take an older call that can be judged by its arguments.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import NamedTuple

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_Calls = dict[str, tuple[int, int | None]]

# What reaches other processes, the kernel itself or memory that no limit counts: (x86-64, AArch64).
_REFUSED: _Calls = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "acct": (163, 89), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "quotactl": (179, 60),
    "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112), "fanotify_init": (300, 262),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
}  # fmt: skip
# Their arguments lie behind a pointer, where a filter cannot look: io_uring opens sockets, clone3 makes namespaces.
_UNKNOWN: _Calls = {"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "clone3": (435, 435)}
_NAMESPACES = 0x7E020000  # every CLONE_NEW* that clone(2) takes

# Without namespaces the worker shares sockets and, for an ordinary account, its own number with the rest of the machine.
_REFUSED_WHEN_SHARED: _Calls = {
    "socket": (41, 198), "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "removexattrat": (466, 466),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "setpriority": (141, 140),
}  # fmt: skip
_SIGNALS: _Calls = {
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}  # fmt: skip
_TRUNCATES: _Calls = {"truncate": (76, 45)}
_O_TRUNC, _O_ACCMODE, _PR_SET_PDEATHSIG = 0o1000, 3, 1


class Rule(NamedTuple):
    """Refuse the call `number` with `error`; with an argument, only where (argument & mask) == value, or != when `unless`."""

    number: int
    error: int = errno.EPERM
    argument: int | None = None
    mask: int = 0xFFFFFFFF
    value: int = 0
    unless: bool = False


def program(machine: str, *, shared: bool, signals: bool, truncation: bool, process: int) -> bytes:
    """The filter for `machine` (as `os.uname().machine`).

    `shared`: no namespaces could be had, so no socket and no change of rights by path. `signals`: refuse them to others than
    `process`, ourselves; `truncation`: refuse it by path; both for a Landlock too old to do so. Raises `ValueError` for a machine
    whose call numbers are not known.
    """
    if machine not in _ARCHITECTURES:
        raise ValueError(f"the kernel calls of {machine} are not known")
    rules = list(_rules(list(_ARCHITECTURES).index(machine), shared, signals, truncation, process))
    refuse = struct.pack("=HBBI", _RETURN, 0, 0, _errno(errno.EPERM))
    code = [_instruction(_LOAD, 4), _instruction(_IF_EQUAL, _ARCHITECTURES[machine], 1, 0), refuse, _instruction(_LOAD, 0)]
    if machine == "x86_64":  # the same calls again under other numbers
        code += [_instruction(_IF_AT_LEAST, _X32_BIT, 0, 1), refuse]
    for rule in rules:
        code += _compile(rule)
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def _rules(column: int, shared: bool, signals: bool, truncation: bool, process: int) -> Iterator[Rule]:
    def numbers(calls: _Calls) -> Iterator[int]:
        return (number for pair in calls.values() if (number := pair[column]) is not None)

    yield from (Rule(number) for number in numbers(_REFUSED))
    yield from (Rule(number, errno.ENOSYS) for number in numbers(_UNKNOWN))
    yield Rule((56, 220)[column], argument=0, mask=_NAMESPACES, unless=True)  # clone
    yield Rule((302, 261)[column], argument=0, unless=True)  # prlimit64 of another process
    if shared:
        yield from (Rule(number) for number in numbers(_REFUSED_WHEN_SHARED))
        yield Rule((157, 167)[column], argument=0, value=_PR_SET_PDEATHSIG)  # it would outlive us
    if signals:
        yield from (Rule(number) for number in numbers(_SIGNALS))
        yield Rule((234, 131)[column], argument=0, value=process, unless=True)  # tgkill
    if truncation:
        yield from (Rule(number) for number in numbers(_TRUNCATES))
        yield Rule(437, errno.ENOSYS)  # openat2
        yield Rule((257, 56)[column], argument=2, mask=_O_TRUNC | _O_ACCMODE, value=_O_TRUNC)  # openat, read only and yet truncating
        if column == 0:
            yield Rule(2, argument=1, mask=_O_TRUNC | _O_ACCMODE, value=_O_TRUNC)  # open


_LOAD, _AND, _IF_EQUAL, _IF_AT_LEAST, _RETURN, _ALLOW = 0x20, 0x54, 0x15, 0x35, 0x06, 0x7FFF0000


def _errno(number: int) -> int:
    return 0x00050000 | number


def _instruction(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, when_true, when_false, value)


def _compile(rule: Rule) -> list[bytes]:
    """The call number is in the accumulator before and after; `seccomp_data.args` begins at byte 16, low half first."""
    refuse = _instruction(_RETURN, _errno(rule.error))
    if rule.argument is None:
        return [_instruction(_IF_EQUAL, rule.number, 0, 1), refuse]
    return [
        _instruction(_IF_EQUAL, rule.number, 0, 5),
        _instruction(_LOAD, 16 + 8 * rule.argument),
        _instruction(_AND, rule.mask),
        _instruction(_IF_EQUAL, rule.value, *((1, 0) if rule.unless else (0, 1))),
        refuse,
        _instruction(_LOAD, 0),
    ]

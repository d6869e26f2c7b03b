"""Untrusted code gets what it is given and nothing else, in every way of isolation that this machine has."""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

import medmesh
from medmesh.embedded.accounts import reaches
from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.learning.isolation import Capability, Limits, Sandbox, account, capability, environment, launcher, seccomp, wrap
from medmesh.learning.isolation.places import places
from medmesh.learning.isolation.probe import rehearse
from medmesh.learning.isolation.sandbox import ACCOUNTS, Kind, command

SYSTEM_PYTHON = Path("/usr/bin/python3")


class Ground(NamedTuple):
    """A way of isolation, an interpreter that can start in it, and a folder outside the worker's that anybody may enter."""

    capability: Capability
    python: str
    outside: Path
    read: Path
    write: Path

    account: str | None = None

    def sandbox(self, limits: Limits | None = None) -> Sandbox:
        return Sandbox(read=(self.read,), write=self.write, limits=limits or Limits(), account=self.account)

    def command(self, code: str, limits: Limits | None = None) -> list[str]:
        return command([self.python, "-c", textwrap.dedent(code)], self.sandbox(limits), self.capability)

    def run(self, code: str, limits: Limits | None = None, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(code, limits), env=environment(self.sandbox(limits)), capture_output=True, text=True, timeout=timeout
        )

    def answer(self, code: str, limits: Limits | None = None) -> str:
        done = self.run(code, limits)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def refused(self, *expressions: str, prelude: str = "") -> None:
        """Each expression fails with `OSError` inside; any other outcome is a hole."""
        code = f"import ctypes, os, socket\n{prelude}\n"
        for expression in expressions:
            code += f"try:\n    {expression}\nexcept OSError:\n    pass\nelse:\n    print({expression!r})\n"
        assert self.answer(code + "print('tried')") == "tried"


def idle() -> str | None:
    """An account that runs nothing, when we are root. The bound is on all tasks of an account: what other tests run under the usual one
    and end meanwhile would be room for more."""
    if os.geteuid():
        return None
    others = (found for found in pwd.getpwall() if found.pw_uid and found.pw_gid and found.pw_name not in ACCOUNTS)
    return next(found.pw_name for found in others if not launcher._tasks(found.pw_uid))


def ground_of(kind: Kind, folder: Path) -> Ground:
    found = capability()
    if found.kind == "none":
        pytest.skip(f"no isolation here: {found.reason}")
    wanted = found if found.kind == kind else Capability(kind, "", found.abi)
    if wanted is not found and (reason := "no Landlock" if kind == "landlock" and not found.abi else rehearse(wanted)):
        pytest.skip(f"{kind} does not work here: {reason}")
    python = sys.executable
    if kind == "landlock" and not reaches(account(), Path(python)):
        python = str(SYSTEM_PYTHON)
        if not SYSTEM_PYTHON.exists():
            pytest.skip("no interpreter that the worker's account can reach")
    read, write = folder / "read", folder / "write"
    read.mkdir()
    write.mkdir()
    (read / "given.txt").write_text("given")
    return Ground(wanted, python, folder, read, write)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="medmesh-") as name:
        Path(name).chmod(0o755)  # so that only isolation, not the permissions, stands before what lies in it
        yield Path(name).resolve()


@pytest.fixture(params=["namespace", "landlock"])
def ground(request: pytest.FixtureRequest, folder: Path) -> Ground:
    return ground_of(request.param, folder)


@pytest.fixture
def namespace(folder: Path) -> Ground:
    return ground_of("namespace", folder)


def test_the_machine_is_not_said_to_allow_less_than_it_does() -> None:
    """A launcher that is broken would look like a machine that allows nothing, and everything below would be skipped."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    administrator = bool(capabilities & 1 << 21)
    if not administrator and not capability().abi:
        pytest.skip("neither the right to make namespaces nor Landlock")
    assert capability().kind in ({"namespace"} if administrator else {"namespace", "landlock"}), capability().reason
    if capability().abi:
        assert rehearse(Capability("landlock", "", capability().abi)) is None


def test_it_reads_what_it_is_given_and_writes_its_folder(ground: Ground) -> None:
    code = f"""
        import os, tempfile
        open("result.txt", "w").write(open({str(ground.read / "given.txt")!r}).read().upper())
        with tempfile.TemporaryFile() as file: file.write(b"x")
        open("/dev/null", "w").write("x")
        print(os.getcwd(), os.environ["HOME"], tempfile.gettempdir())
    """
    assert ground.answer(code) == " ".join([str(ground.write)] * 3)
    assert (ground.write / "result.txt").read_text() == "GIVEN"


def test_numpy_computes(namespace: Ground) -> None:
    pytest.importorskip("numpy")
    assert namespace.answer("import numpy; print(int((numpy.eye(64) @ numpy.eye(64)).sum()))") == "64"


@pytest.mark.slow
def test_torch_learns_under_the_usual_limits_and_with_a_loader_process(namespace: Ground) -> None:
    pytest.importorskip("torch")
    code = """
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        def main():
            model = torch.nn.Linear(2, 1)
            for (x,) in DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=4, num_workers=1):
                model(x).sum().backward()
            print(torch.ones(10).sum().item(), model.weight.grad.tolist())
        main()
    """
    assert namespace.answer(code) == "10.0 [[8.0, 8.0]]"


def test_the_platforms_own_package_can_be_imported(namespace: Ground) -> None:
    assert namespace.answer("import medmesh.errors; print(len(medmesh.errors.catalogue()) > 0)") == "True"


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_no_connection_to_the_machine_itself(ground: Ground, family: str) -> None:
    with socket.socket(getattr(socket, family)) as listener:
        listener.bind(("127.0.0.1" if family == "AF_INET" else "::1", 0))
        listener.listen()
        address = listener.getsockname()[:2]
        socket.create_connection(address, timeout=5).close()  # the test itself can
        ground.refused(f"socket.create_connection({address!r}, timeout=5)")


def test_no_datagram_and_no_listener(ground: Ground) -> None:
    ground.refused(
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))", "socket.create_server(('127.0.0.1', 0))"
    )


@pytest.mark.parametrize("abstract", [True, False])
def test_no_local_socket_of_another_program(ground: Ground, abstract: bool) -> None:
    address = f"\0{ground.outside}" if abstract else str(ground.outside / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        if not abstract:
            Path(address).chmod(0o777)
        listener.listen()
        ground.refused(f"socket.socket(socket.AF_UNIX).connect({address!r})")


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_no_file_outside_even_if_the_world_may_read_it(ground: Ground, mode: int) -> None:
    key = ground.outside / "node.key"
    key.write_text("secret")
    key.chmod(mode)
    assert key.read_text() == "secret"
    ground.refused(f"open({str(key)!r}).read()", "open('/etc/hostname').read()", "os.listdir('/var')", "os.listdir('/home')")
    seen = ground.answer(f"import os\ntry: print(*os.listdir({str(ground.outside)!r}))\nexcept PermissionError: pass")
    assert set(seen.split()) <= {"read", "write"}


@pytest.mark.parametrize(("kind", "landlock"), [("namespace", True), ("namespace", False), ("landlock", True)])
def test_nothing_outside_can_be_written_changed_or_removed(kind: Kind, landlock: bool, folder: Path) -> None:
    ground = ground_of(kind, folder)
    if not landlock:  # the new root alone must hold, for kernels before 5.13
        ground = ground._replace(capability=Capability(kind, "", 0))
    other = ground.outside / "other"
    other.mkdir()
    other.chmod(0o777)
    given = ground.read / "given.txt"
    given.chmod(0o666)
    ground.read.chmod(0o777)
    ground.refused(
        f"open({str(other / 'new')!r}, 'w')",
        f"open({str(given)!r}, 'a')",
        f"os.truncate({str(given)!r}, 0)",
        f"os.open({str(given)!r}, os.O_RDONLY | os.O_TRUNC)",
        f"os.unlink({str(given)!r})",
        f"os.rename({str(given)!r}, {str(ground.write / 'taken')!r})",
        f"os.link({str(given)!r}, {str(ground.write / 'taken')!r})",
        f"os.mkdir({str(ground.read / 'new')!r})",
        f"os.chmod({str(given)!r}, 0o600)",
        "open('/usr/new', 'w')",
    )
    assert given.read_text() == "given" and given.stat().st_mode & 0o777 == 0o666
    assert list(other.iterdir()) == []


def test_a_link_that_it_plants_leads_nowhere(ground: Ground) -> None:
    (ground.outside / "node.key").write_text("secret")
    ground.refused("open('way').read()", prelude=f"os.symlink({str(ground.outside / 'node.key')!r}, 'way')")


def test_it_is_never_root_and_holds_no_rights(ground: Ground) -> None:
    code = (
        "import os; print(os.getresuid(), os.getresgid(), [l for l in open('/proc/self/status') if l[:6] in ('CapEff','CapPrm','NoNewP')])"
    )
    said = ground.answer(code)
    taken = account()
    uid, gid = (taken.uid, taken.gid) if taken else (os.getuid(), os.getgid())
    assert uid != 0
    assert said.startswith(f"{(uid, uid, uid)} {(gid, gid, gid)} ")
    assert said.count("0" * 16) == 2 and "NoNewPrivs:\\t1" in said
    ground.refused("os.setuid(0)")


def test_memory_is_bounded(ground: Ground) -> None:
    limits = Limits(memory_bytes=256 * 2**20)
    assert ground.answer("print(len(bytearray(64 * 2**20)))", limits) == str(64 * 2**20)
    assert "MemoryError" in ground.run("bytearray(512 * 2**20)", limits).stderr
    assert ground.run("import mmap; mmap.mmap(-1, 5 * 2**30)", limits).returncode == 1


def test_files_that_it_maps_take_addresses_and_no_memory(ground: Ground) -> None:
    with (ground.write / "samples").open("wb") as file:
        file.truncate(6 * 2**30)  # a hole: nothing of it lies on the disk
    code = """
        import mmap
        with open("samples", "rb") as file:
            found = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        print(len(found), found[-1])
        bytearray(512 * 2**20)
    """
    limits = Limits(memory_bytes=256 * 2**20, mapped_bytes=6 * 2**30)
    done = ground.run(code, limits)
    assert done.stdout.strip() == f"{6 * 2**30} 0" and "MemoryError" in done.stderr, "memory is bounded as before"
    assert "Cannot allocate memory" in ground.run(code, Limits(memory_bytes=limits.memory_bytes)).stderr


@pytest.mark.xdist_group("idle")  # one after the other: the account is idle for one of them
def test_processor_time_file_size_and_tasks_are_bounded(ground: Ground) -> None:
    assert ground.run("while True: pass", Limits(cpu_seconds=1)).returncode == -signal.SIGXCPU
    evading = (
        "import resource, signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN); "
        "hard = resource.getrlimit(resource.RLIMIT_CPU)[1]; resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))"
    )
    assert ground.run("while True: pass", Limits(cpu_seconds=1, operations=9)).returncode == -signal.SIGXCPU
    assert ground.run(f"{evading}\nwhile True: pass", Limits(cpu_seconds=1, operations=2)).returncode == -signal.SIGKILL
    assert "File too large" in ground.run("with open('big', 'wb') as file: file.write(bytes(4096))", Limits(file_bytes=1024)).stderr
    code = """
        import os, time
        started = 0
        try:
            for started in range(200):
                if os.fork() == 0: time.sleep(20); os._exit(0)
        except BlockingIOError:
            os.write(1, str(started).encode())
            import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.killpg(0, signal.SIGTERM)
    """
    # What another run left under the account and ends meanwhile is room for more: one of a few finds it idle.
    counts = []
    while len(counts) < 4 and min(counts, default=200) > 12:
        counts.append(int(ground._replace(account=idle()).answer(code, Limits(processes=12))))
    assert 0 < min(counts) <= 12, counts


def test_descriptors_of_the_parent_do_not_go_along(ground: Ground) -> None:
    (ground.outside / "node.key").write_text("secret")
    with (ground.outside / "node.key").open() as key:
        os.set_inheritable(key.fileno(), True)
        done = subprocess.run(
            ground.command("import os; print([os.fstat(n).st_size for n in range(3, 64) if os.path.lexists(f'/proc/self/fd/{n}')])"),
            env=environment(ground.sandbox()),
            capture_output=True,
            text=True,
            close_fds=False,
        )
    assert done.stdout.strip() == "[]", done.stderr


def test_variables_of_the_parent_do_not_go_along(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMESH_KEY", "secret")
    assert "secret" not in ground.answer("import os; print(dict(os.environ), open('/proc/self/environ').read())")


@pytest.mark.parametrize(
    "call",
    [
        "ptrace(0, 0, 0, 0)",
        "unshare(0x10000000)",
        "mount(b'x', b'/', b'tmpfs', 0, None)",
        "syscall(425, 1, None)",  # io_uring_setup
        "syscall(435, None, 0)",  # clone3
        "memfd_create(b'x', 0)",
        "process_vm_readv(os.getpid(), None, 0, None, 0, 0)",
    ],
)
def test_calls_that_reach_further_are_refused(ground: Ground, call: str) -> None:
    prelude = f"""
libc = ctypes.CDLL(None, use_errno=True)
def call():
    if libc.{call} < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))"""
    expected = "[Errno 38]" if "syscall" in call else "[Errno 1]"
    code = f"import ctypes, os{prelude}\ntry:\n    call()\nexcept OSError as error:\n    print(error)"
    assert ground.answer(code).startswith(expected)


def test_processes_outside_are_out_of_reach(ground: Ground) -> None:
    taken = account()
    with subprocess.Popen(["sleep", "60"], user=taken.uid if taken else None) as other:
        try:
            ground.refused(f"os.kill({other.pid}, 9)", f"open('/proc/{other.pid}/environ').read()")
            assert other.poll() is None
        finally:
            other.kill()


def test_what_an_older_landlock_lets_through_is_refused_by_the_filter(folder: Path) -> None:
    """Version 1 (Linux 5.13) knows neither truncation by path, nor TCP, nor signals."""
    ground = ground_of("landlock", folder)
    ground = ground._replace(capability=Capability("landlock", "", 1))
    given = ground.read / "given.txt"
    given.chmod(0o666)
    taken = account()
    own = subprocess.Popen(["sleep", "60"], user=taken.uid if taken else None)
    try:
        ground.refused(
            f"os.truncate({str(given)!r}, 0)",
            f"os.open({str(given)!r}, os.O_RDONLY | os.O_TRUNC)",
            f"os.kill({own.pid}, 9)",
            "socket.socket()",
        )
        assert ground.answer("open('x', 'w').write('1'); open('x', 'w').write('22'); print(open('x').read())") == "22"
        assert ground.run("import os; os.abort()").returncode == -signal.SIGABRT
        assert own.poll() is None and given.read_text() == "given"
    finally:
        own.kill()
        own.wait()


def test_it_ends_with_its_parent_even_when_it_asked_not_to(ground: Ground) -> None:
    code = "import ctypes, os, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); print('ready', flush=True); time.sleep(60)"
    parent_code = "import subprocess, sys, json; subprocess.run(json.loads(sys.argv[1]))"
    argv = [sys.executable, "-c", parent_code, json.dumps(ground.command(code))]
    reading, writing = os.pipe()
    with subprocess.Popen(argv, stdout=writing, env=environment(ground.sandbox())) as parent, os.fdopen(reading, "rb", 0) as pipe:
        os.close(writing)
        assert pipe.readline() == b"ready\n"
        parent.kill()
        ended, _, _ = select.select([pipe], [], [], 10.0)
        assert ended and pipe.read() == b""  # its end comes when the last holder of the pipe is gone


def test_nothing_that_it_started_outlives_it(namespace: Ground) -> None:
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint('ended', flush=True)"
    assert namespace.run(code, timeout=15).stdout == "ended\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody but root may look at them")
def test_the_two_that_wait_take_little_and_see_only_what_it_sees(namespace: Ground) -> None:
    code = "import os, time; print(sorted(os.listdir('/')), flush=True); time.sleep(60)"  # until it is killed below
    with subprocess.Popen(namespace.command(code), stdout=subprocess.PIPE, env=environment(namespace.sandbox()), text=True) as outermost:
        assert outermost.stdout is not None
        seen = outermost.stdout.readline().strip()
        (first,) = psutil.Process(outermost.pid).children()
        own = [_private(pid) for pid in (outermost.pid, first.pid)]
        for name in ("root", "cwd"):
            assert str(sorted(os.listdir(Path("/proc", str(first.pid), name)))) == seen
        outermost.kill()
    assert all(mib < 1.0 for mib in own), own  # what they share is counted once, and is what a bare interpreter takes


def _private(pid: int) -> float:
    """MiB that a process has written and shares with nobody."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty:")) / 1024


def test_how_it_ended_is_told(ground: Ground) -> None:
    assert ground.run("raise SystemExit(7)").returncode == 7
    assert ground.run("import os; os.abort()").returncode == -signal.SIGABRT
    with subprocess.Popen(
        ground.command("import time; print(1, flush=True); time.sleep(60)"), stdout=subprocess.PIPE, env=environment(ground.sandbox())
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM
        assert process.stdout.read() == b""


def test_a_step_that_fails_is_named_and_nothing_runs(ground: Ground) -> None:
    argv = ground.command("open('ran', 'w')")
    order = json.loads(argv[-1])
    broken = json.dumps(order | {"write": str(ground.outside / "missing")})
    done = subprocess.run([*argv[:-1], broken], capture_output=True, env=environment(ground.sandbox()))
    assert done.returncode == 125
    assert json.loads(done.stderr)["isolation"] == "folder"
    assert not (ground.write / "ran").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="changes to an ordinary account")
def test_an_ordinary_account_keeps_its_own_keys_from_its_workers(folder: Path) -> None:
    """Worker and edge are then the same account: the permissions alone would let it read and stop everything."""
    taken = account()
    assert taken is not None
    libraries = Path(medmesh.__file__).parents[1]
    if not SYSTEM_PYTHON.exists() or not reaches(taken, libraries / "medmesh"):
        pytest.skip("no interpreter or sources that the account can reach")
    (folder / "node.key").write_text("secret")
    (folder / "write").mkdir()
    for path, mode in ((folder / "node.key", 0o600), (folder / "write", 0o700)):
        path.chmod(mode)
        os.chown(path, taken.uid, taken.gid)
    worker = f"""
import os
def attempt(action):
    try: action()
    except OSError: return "refused"
    return "done"
key = {str(folder / "node.key")!r}
pid = int(open("pid").read())
print(*(attempt(a) for a in (lambda: open(key), lambda: os.kill(pid, 9), lambda: os.chmod(key, 0o777),
    lambda: open(f"/proc/{{pid}}/environ").read(), lambda: os.truncate(key, 0))))"""
    edge = f"""
import os, sys, subprocess
sys.path.insert(0, {str(libraries)!r})
from pathlib import Path
from medmesh.learning.isolation import *
from medmesh.learning.isolation.sandbox import command
write = Path({str(folder / "write")!r})
(write / "pid").write_text(str(os.getpid()))
assert os.getuid() != 0 and open({str(folder / "node.key")!r}).read() == "secret"
found = capability()
for kind in ("namespace", *(["landlock"] if found.abi else [])):
    argv = command([sys.executable, "-c", {worker!r}], Sandbox((), write), Capability(kind, "", found.abi))
    done = subprocess.run(argv, env=environment(Sandbox((), write)), capture_output=True, text=True)
    print(kind, done.returncode, done.stdout.strip(), done.stderr.strip())
"""
    done = subprocess.run(
        [str(SYSTEM_PYTHON), "-c", edge], user=taken.uid, group=taken.gid, extra_groups=[], cwd="/", env={}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines
    for line in lines:
        if " 125 " not in line:  # user namespaces may be switched off; then Landlock must hold
            assert line.strip().endswith(" 0 refused refused refused refused refused"), line
    assert any(" 0 " in line for line in lines), lines


def test_where_nothing_works_training_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "write").mkdir()
    monkeypatch.setattr(isolation, "capability", lambda: Capability("none", "no kernel support", 0))
    with pytest.raises(Problem) as caught:
        wrap([sys.executable], Sandbox(read=(), write=folder / "write"))
    assert caught.value.code == "isolation.unavailable"
    assert "no kernel support" in caught.value.detail("zh")


def test_a_missing_or_linked_folder_is_refused(namespace: Ground) -> None:
    link = namespace.outside / "link"
    link.symlink_to(namespace.write)
    for sandbox in (Sandbox((), link), Sandbox((), namespace.outside / "no"), Sandbox((namespace.outside / "no",), namespace.write)):
        with pytest.raises(Problem) as caught:
            wrap([sys.executable], sandbox)
        assert caught.value.code == "isolation.folder_missing"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes the account")
@pytest.mark.parametrize("name", ["root", "no-such-account"])
def test_root_and_unknown_accounts_are_refused(namespace: Ground, name: str) -> None:
    with pytest.raises(Problem) as caught:
        wrap([sys.executable], Sandbox((), namespace.write, account=name))
    assert caught.value.code == "isolation.account_missing"


def test_a_home_folder_that_holds_a_python_is_not_shown(folder: Path) -> None:
    home = folder / "home"
    (home / "bin").mkdir(parents=True)
    (home / "lib" / "python3.11").mkdir(parents=True)
    (home / ".ssh").mkdir()
    (home / "bin" / "python3").symlink_to(sys.executable)
    shown = [Path(place.target) for place in places(home / "bin" / "python3", (), folder / "write")]
    assert not any((home / ".ssh").is_relative_to(target) for target in shown)
    assert any(Path(sys.executable).resolve().is_relative_to(target) for target in [*shown, Path("/usr")])


def decide(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What a kernel of `architecture` answers: 0 to allow, else the errno. The few instructions that our filters use."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        operation, when_true, when_false, value = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif operation == 0x54:
            accumulator &= value
        elif operation in (0x15, 0x35):
            at += when_true if (accumulator == value if operation == 0x15 else accumulator >= value) else when_false
        else:
            assert operation == 0x06
            return 0 if value == 0x7FFF0000 else value & 0xFFFF


@pytest.mark.parametrize(
    ("machine", "architecture", "calls"),
    [
        ("x86_64", 0xC000003E, {"read": 0, "ptrace": 101, "clone": 56, "socket": 41, "prlimit64": 302, "tgkill": 234}),
        ("aarch64", 0xC00000B7, {"read": 63, "ptrace": 117, "clone": 220, "socket": 198, "prlimit64": 261, "tgkill": 131}),
    ],
)
def test_the_filter_decides_alike_on_both_machines(machine: str, architecture: int, calls: dict[str, int]) -> None:
    own = seccomp.program(machine, shared=False, signals=False, truncation=False, process=77)
    shared = seccomp.program(machine, shared=True, signals=True, truncation=True, process=77)
    for program in (own, shared):
        assert decide(program, architecture, calls["read"]) == 0
        assert decide(program, architecture, calls["ptrace"]) == 1
        assert decide(program, architecture, calls["clone"], 0x01200011) == 0
        assert decide(program, architecture, calls["clone"], 0x10000011) == 1
        assert decide(program, architecture, calls["prlimit64"], 0) == 0
        assert decide(program, architecture, calls["prlimit64"], 1) == 1
        assert decide(program, 0x40000003, 11) == 1  # the calls of another architecture
    assert (decide(own, architecture, calls["socket"], 2), decide(shared, architecture, calls["socket"], 2)) == (0, 1)
    assert decide(shared, architecture, calls["tgkill"], 77) == 0
    assert decide(shared, architecture, calls["tgkill"], 78) == 1
    if machine == "x86_64":
        assert decide(own, architecture, 0x40000000 + 521) == 1


def test_an_unknown_machine_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.program("riscv64", shared=False, signals=False, truncation=False, process=1)


def test_processes_of_one_worker_meet_over_a_loopback_of_their_own(namespace: Ground) -> None:
    """What listens on the machine's own 127.0.0.1 is not there, and neither is the rest of the world."""
    code = """
        import os, socket, sys
        listener = socket.create_server(("127.0.0.1", 0))
        if os.fork() == 0:
            socket.create_connection(listener.getsockname(), 5).sendall(b"rank 1")
            os._exit(0)
        print(listener.accept()[0].recv(6).decode())
        for address in (("127.0.0.1", int(os.environ["OUTSIDE"])), ("192.0.2.1", 80)):
            try:
                socket.create_connection(address, 2)
            except OSError as error:
                print(type(error).__name__)
    """
    with socket.create_server(("127.0.0.1", 0)) as outside:
        sandbox = Sandbox(read=(namespace.read,), write=namespace.write, loopback=True)
        argv = command([namespace.python, "-c", textwrap.dedent(code)], sandbox, namespace.capability)
        variables = {**environment(sandbox), "OUTSIDE": str(outside.getsockname()[1])}
        done = subprocess.run(argv, env=variables, capture_output=True, text=True, timeout=30)
    assert done.stdout.split("\n")[:3] == ["rank 1", "ConnectionRefusedError", "OSError"], done.stderr
    namespace.refused("(lambda own: socket.create_connection(own.getsockname(), 2))(socket.create_server(('127.0.0.1', 0)))")


def test_without_namespaces_nobody_gets_a_loopback(folder: Path) -> None:
    sandbox = Sandbox(read=(), write=folder, loopback=True)
    with pytest.raises(Problem) as caught:
        command(["python3"], sandbox, Capability("landlock", "no namespaces", 4))
    assert caught.value.code == "isolation.loopback"

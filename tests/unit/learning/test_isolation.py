"""Untrusted code gets what it is given and nothing else, in every way of isolation that this machine has."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import textwrap
from pathlib import Path

import pytest
from tests.isolation import Ground, ground_of

from medmesh.errors import Problem
from medmesh.learning.isolation import Capability, Sandbox, account, environment
from medmesh.learning.isolation.sandbox import Kind, command


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

"""What isolation needs of a machine, and what is refused before anything runs."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.isolation import SYSTEM_PYTHON, Ground

import medmesh
from medmesh.embedded.accounts import reaches
from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.learning.isolation import Capability, Sandbox, account, capability, seccomp, wrap
from medmesh.learning.isolation.places import places
from medmesh.learning.isolation.probe import rehearse


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

"""What training code may use up, and that it ends. Code that sleeps is killed by its test, or by what is tested: it outlives neither."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.isolation import Ground, idle

from medmesh.learning.isolation import Limits, environment


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

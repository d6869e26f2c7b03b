"""A worker in its sandbox: what it learns, and what becomes of packages that crash, loop, print, or reach for more."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from tests.packages import tiny

from medmesh.errors import Problem
from medmesh.learning import host, isolation, metrics, weights
from medmesh.learning.host import Worker, worker

pytestmark = pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")


def samples(path: Path, count: int = 200, seed: int = 0) -> None:
    """Bright images are tumours."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, count)
    x = generator.integers(0, 100, (count, 1, 8, 8)) + 120 * y[:, None, None, None]
    weights.save({"x": x.astype(np.uint8), "y": y.astype(np.int64)}, path)


async def _train(w: Worker, **changed: object) -> dict[str, object]:
    samples(w.folder.parent / "data")
    await w.call("initial", seed=1, out=str(w.folder / "w0"))
    call = {
        "weights": str(w.folder / "w0"),
        "data": w.give(w.folder.parent / "data", "data"),
        "steps": 60,
        "batch_size": 16,
        "learning_rate": 0.5,
        "seed": 7,
        "out": str(w.folder / "w1"),
    }
    return await w.call("train", **{**call, **changed})  # type: ignore[arg-type]


async def test_it_learns_reports_progress_and_repeats_itself_exactly(private: Path) -> None:
    results = []
    for _ in range(2):
        seen: list[int] = []
        async with worker(tiny(private), private / "work") as w:
            await _train(w, progress=lambda step, steps, loss, seen=seen: seen.append(step))
            data = private / "work" / "data"
            counts = await w.call("evaluate", data=str(data), models=[str(w.folder / "w0"), str(w.folder / "w1")])
            results.append((w.folder / "w1").read_bytes())
            assert seen == list(range(1, 61))
            before, after = map(metrics.balanced_accuracy, counts["counts"])
            assert before == 0.5
            assert after > 0.95
        assert not (private / "work").exists()
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("\ndef build(size):\n    raise ValueError('Zhang Wei, 1961')\n", "worker.failed"),
        ("\nimport os\ndef build(size):\n    os._exit(3)\n", "worker.crashed"),
        (
            "\nfrom medmesh.errors import Problem\ndef build(size):\n    raise Problem('client.unreachable', url='', reason='')\n",
            "worker.failed",
        ),
        ("\ndef build(size):\n    while True: pass\n", "worker.silent"),
        ("\nimport os\nos.kill(os.getpid(), 9)\n", "worker.crashed"),
    ],
)
async def test_a_package_that_misbehaves_is_ended_with_a_reason_that_quotes_nothing(private: Path, code: str, expected: str) -> None:
    with pytest.raises(Problem) as caught:
        async with worker(tiny(private, code), private / "work", silence=4) as w:
            await _train(w)
    assert caught.value.code == expected
    assert "Zhang" not in str(caught.value)
    assert not (private / "work").exists()


async def test_a_package_that_prints_does_not_disturb_and_is_not_heard(private: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "\nimport os, sys\nprint('Zhang Wei'); print('Zhang Wei', file=sys.stderr); os.write(1, b'Zhang Wei'); os.write(2, b'Zhang Wei')\n"
    )
    async with worker(tiny(private, code), private / "work") as w:
        await _train(w)
    out, err = capfd.readouterr()
    assert "Zhang" not in out + err


async def test_a_link_planted_by_the_package_is_not_followed_when_something_is_handed_in(private: Path) -> None:
    victim = private / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    code = f"\nimport os\nos.symlink({str(victim)!r}, os.path.join(os.path.dirname(__file__), '..', 'data'))\n"
    async with worker(tiny(private, code), private / "work") as w:
        assert (w.folder / "data").is_symlink()
        await _train(w)
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode & 0o777 == 0o600


async def test_what_was_given_and_nobody_touched_is_not_copied_again(private: Path) -> None:
    source, other = private / "source", private / "other"
    source.write_bytes(b"a model")
    other.write_bytes(b"another")  # as many bytes
    async with worker(tiny(private), private / "work") as w:
        await asyncio.sleep(0.05)  # a file that changed just now is not trusted to stay
        given = Path(w.give(source, "base"))
        first = given.stat().st_ino
        assert Path(w.give(source, "base")).stat().st_ino == first
        await asyncio.sleep(0.05)
        given.write_bytes(b"altered")  # as the package might
        w.give(source, "base")
        assert given.read_bytes() == b"a model"
        given.rename(given.with_name("away"))
        given.symlink_to(source)
        w.give(source, "base")
        assert not given.is_symlink() and given.read_bytes() == b"a model"
        w.give(other, "base")
        assert given.read_bytes() == b"another"
        other.write_bytes(b"changed")
        w.give(other, "base")
        assert given.read_bytes() == b"changed"


async def test_what_is_written_over_is_our_own_copy_alone(private: Path) -> None:
    """Whatever the package puts in its place stays as it is, or goes: nothing is written through it."""
    source, precious = private / "source", private / "precious"
    precious.write_bytes(b"precious")
    async with worker(tiny(private), private / "work") as w:

        def over(data: bytes) -> int:
            source.write_bytes(data)
            given = Path(w.give(source, "base", over=True))
            assert given.read_bytes() == data
            return given.stat().st_ino

        first = over(b"a long model")
        given, beside = w.folder / "base", w.folder / "beside"
        with given.open("rb") as held:  # so that no other file has its number
            assert over(b"a model") == first == os.fstat(held.fileno()).st_ino, "no other file"
        os.link(given, beside)
        assert over(b"another") != first and beside.read_bytes() == b"a model"
        for plant in (lambda: os.link(precious, given), lambda: given.symlink_to(precious), lambda: os.mkfifo(given)):
            given.unlink()
            plant()
            over(b"after it")
            assert given.is_file() and not given.is_symlink()
        assert precious.read_bytes() == b"precious"


async def test_a_file_that_changes_twice_within_a_tick_of_the_clock_is_copied_twice(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = 10**9

    def coarse(found: os.stat_result) -> tuple[int, ...]:
        return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns // second * second

    monkeypatch.setattr(host, "_stamped", coarse)
    monkeypatch.setattr(host, "TICK_NS", 2 * second)
    source = private / "source"
    async with worker(tiny(private), private / "work") as w:
        for data in (b"before", b"after!", b"at end"):
            source.write_bytes(data)
            assert Path(w.give(source, "base")).read_bytes() == data


async def test_how_far_it_is_is_told_by_the_clock(private: Path) -> None:
    seen: list[int] = []
    async with worker(tiny(private), private / "work") as w:
        await _train(w, progress=lambda step, steps, loss: seen.append(step), every=3600.0)
        assert seen == []
        await _train(w, progress=lambda step, steps, loss: seen.append(step), every=1e-6)
        assert seen == list(range(1, 61))


async def test_a_package_reaches_neither_network_nor_keys_nor_other_folders(private: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    secret = private / "edge.key"
    secret.write_text("key")
    secret.chmod(0o644)
    code = f"""
import asyncio
import os
import socket
_found = []
def _try(name, call):
    try:
        call()
    except Exception:
        return
    _found.append(name)
_try("network", lambda: socket.create_connection(("127.0.0.1", {listening.getsockname()[1]}), timeout=1))
_try("key", lambda: open({str(secret)!r}).read())
_try("listing", lambda: __import__("os").listdir({str(private)!r} + "/../"))
_try("write", lambda: open("/tmp/medmesh-escaped", "w"))
_try("etc", lambda: open("/etc/shadow").read())
def build(size):
    if "network" in _found or "key" in _found or "etc" in _found:
        raise PermissionError("escaped")
    return {{"weight": np.zeros((size * size, 2), dtype=np.float32), "bias": np.zeros(2, dtype=np.float32)}}
"""
    async with worker(tiny(private, code), private / "work") as w:
        await _train(w)
    listening.close()
    assert not Path("/tmp/medmesh-escaped").exists()

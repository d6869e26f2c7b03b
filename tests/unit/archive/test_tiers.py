"""Tiers of an archive: killed in any state nothing is lost, what is cold is read, what is forgotten is gone there, too."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.unit.archive.objects import made

from medmesh.archive import states, tiers
from medmesh.archive.objects import Objects
from medmesh.archive.receive import Origin, Receiver
from medmesh.archive.tables import open_archive, transaction
from medmesh.archive.tiers import Mover, Thresholds
from medmesh.errors import Problem
from medmesh.security.keyring.file import FileKeys
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.tiered import Cold

SMALL, LARGE = made(), made(SOPInstanceUID="1.2.3.1.1.2", PixelData=os.urandom(2**21))
"""One that lies behind its header, and one whose body is a blob of its own."""
NOW = Thresholds(age=-1000)


@dataclass
class Place:
    folder: Path
    connection: sqlite3.Connection = field(init=False)
    objects: Objects = field(init=False)

    def __post_init__(self) -> None:
        self.keys = FileKeys(self.folder / "keys").ensure("hospital")
        self.connection = open_archive(self.folder / "archive")
        tier = Cold.folder(self.cold)
        self.objects = Objects(self.folder / "archive", Wrapping(self.keys, "hospital"), lambda: tier)

    @property
    def cold(self) -> Path:
        return self.folder / "cold"

    def receive(self, *files: bytes, project: str = "brain") -> None:
        with Receiver(self.folder / "archive", Wrapping(self.keys, "hospital"), reserve=0) as receiver:
            for one in files:
                arrival = receiver.begin_file(Origin(project))
                arrival.write(one)
                assert arrival.finish().status == 0
        with transaction(self.connection):
            self.connection.execute("UPDATE objects SET state = 'cleaned'")

    def mover(self, thresholds: Thresholds = NOW) -> Mover:
        return Mover(self.connection, self.objects, thresholds, lambda *_: None)

    def move(self, thresholds: Thresholds = NOW) -> None:
        mover = self.mover(thresholds)
        while mover.step():
            pass

    def states(self) -> list[str]:
        return [row[0] for row in self.connection.execute("SELECT state FROM tiers ORDER BY bytes")]

    def read(self) -> list[bytes]:
        return [self.objects.read(row[0]) for row in self.connection.execute("SELECT sha256 FROM objects GROUP BY 1 ORDER BY min(bytes)")]

    def bodies(self) -> list[Path]:
        """What lies in the cold tier, but its mark."""
        return [path for path in self.cold.rglob("*") if path.is_file() and path.name != "tier"]

    def hot_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.objects.folder.rglob("*") if path.is_file())


@contextmanager
def opened(folder: Path) -> Iterator[Place]:
    (folder / "cold").mkdir(exist_ok=True)
    place = Place(folder)
    try:
        yield place
    finally:
        place.connection.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with opened(tmp_path) as found:
        found.receive(SMALL, LARGE)
        yield found


def test_what_is_old_goes_and_what_is_read_comes_back(place: Place) -> None:
    before = place.hot_bytes()
    place.move(Thresholds(age=3_600_000))
    assert (place.states(), place.bodies()) == ([], []), "too young"
    place.move(Thresholds(age=-1000, least=10_000))
    assert place.states() == ["cold"], "the other one is too small"
    place.move()
    assert place.states() == ["cold", "cold"]
    assert len(place.bodies()) == 2
    assert place.hot_bytes() < 2000 < before, "headers stay"
    for path in place.bodies():
        assert LARGE[200_000:200_100] not in path.read_bytes()
    assert place.read() == [SMALL, LARGE]
    assert place.states() == ["recalling", "recalling"]
    place.move(Thresholds(age=3_600_000))
    assert (place.states(), place.bodies()) == (["hot", "hot"], [])
    assert (place.hot_bytes(), place.read()) == (before, [SMALL, LARGE])
    place.move(Thresholds(age=3_600_000))
    assert place.states() == ["hot", "hot"], "its age counts from then on"


def test_the_oldest_go_where_too_much_is_hot(place: Place) -> None:
    place.connection.execute("UPDATE objects SET at = at - 1000 WHERE bytes = ?", (len(LARGE),))
    place.move(Thresholds(age=3_600_000, most=len(SMALL)))
    assert place.states() == ["cold"]
    assert tiers.counts(place.connection) == {
        "cold": {"objects": 1, "bytes": len(LARGE)},
        "hot": {"objects": 1, "bytes": len(SMALL)},
    }


def test_what_still_goes_through_the_pipeline_stays(place: Place) -> None:
    place.connection.execute("UPDATE objects SET state = 'received' WHERE bytes = ?", (len(LARGE),))
    place.move()
    assert place.states() == ["cold"]


# Killed


def _die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _before(_whole: Callable[..., Any]) -> Callable[..., Any]:
    return _die


def _after(whole: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        whole(*given, **named)
        _die()

    return run


POINTS: dict[str, tuple[Any, str, str]] = {
    "copying, before": (Mover, "_copying", "cold"),
    "copying, put": (Cold, "put", "cold"),
    "copying, read back": (Mover, "_read_back", "cold"),
    "freeing, before": (Mover, "_freeing", "cold"),
    "freeing, taken away": (EncryptedStore, "detach", "cold"),
    "recalling, before": (Mover, "_recalling", "hot"),
    "recalling, put": (EncryptedStore, "attach", "hot"),
    "clearing, before": (Mover, "_clearing", "hot"),
    "clearing, taken away": (Cold, "delete", "hot"),
}
"""Where a mover is killed, and which way it was going."""


def _process(folder: str, point: str) -> None:
    where, name, goal = POINTS[point]
    wrapped = _before if point.endswith("before") else _after
    setattr(where, name, wrapped(getattr(where, name)))
    with opened(Path(folder)) as place:
        place.move(NOW if goal == "cold" else Thresholds(age=3_600_000))


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_every_state_nothing_is_lost(place: Place, point: str) -> None:
    _, _, goal = POINTS[point]
    thresholds = NOW
    if goal == "hot":
        thresholds = Thresholds(age=3_600_000)
        place.move()
        with transaction(place.connection) as connection:
            assert tiers.recall(connection) == 2
    for _ in range(2):  # each time it gets one object further, or none
        process = multiprocessing.get_context("spawn").Process(target=_process, args=(str(place.folder), point))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert set(place.states()) & set(point.split(",")[:1])
        wishes = place.connection.execute("SELECT sha256, state FROM tiers").fetchall()
        assert place.read() == [SMALL, LARGE]
        with transaction(place.connection):  # as if nobody had read
            place.connection.executemany("UPDATE tiers SET state = ?2 WHERE sha256 = ?1", wishes)
    place.move(thresholds)
    assert place.states() == [goal, goal]
    assert len(place.bodies()) == (2 if goal == "cold" else 0)
    assert (place.hot_bytes() < 2000) == (goal == "cold")
    assert place.read() == [SMALL, LARGE]


def test_damage_here_after_it_was_copied_is_mended_from_the_copy(place: Place) -> None:
    mover = place.mover()
    while place.states() != ["freeing", "freeing"]:
        row = place.connection.execute("SELECT sha256 FROM tiers WHERE state = 'copying' ORDER BY bytes LIMIT 1").fetchone()
        if row is None:
            mover.step()
            continue
        with place.objects.moving():
            mover._copying(next(one for one in rows_of(place) if one.sha256 == row[0]))
    for path in place.objects.folder.rglob("*"):
        if path.is_file() and (path.suffix != ".key" or path.stat().st_size > 1000):
            path.write_bytes(path.read_bytes()[:-1] + b"x")
    for _ in range(3):
        mover._left.clear()  # it leaves an object alone for ten minutes
        while mover.step():
            pass
    assert place.read() == [SMALL, LARGE]


def rows_of(place: Place) -> list[Any]:
    return [tiers._Row(*row) for row in place.connection.execute("SELECT sha256, state, name, seal, bytes FROM tiers")]


# Forgotten


def forget(place: Place) -> None:
    rows = place.connection.execute("SELECT id, sha256 FROM objects").fetchall()
    with transaction(place.connection):
        states.forget(place.connection, [number for number, _ in rows])
    states.erase(place.connection, place.objects, [sha256 for _, sha256 in rows])


@pytest.mark.parametrize("state", ["copying", "freeing", "cold", "recalling", "clearing", "hot"])
def test_what_is_forgotten_is_gone_wherever_it_is(place: Place, state: str) -> None:
    mover = place.mover()
    for _ in range(40):
        if set(place.states()) == {state}:
            break
        if place.states() == ["cold", "cold"]:
            mover = place.mover(Thresholds(age=3_600_000))
            with transaction(place.connection) as connection:
                tiers.recall(connection)
        else:
            mover.step()
        if state in place.states() and state not in ("cold", "hot"):
            break
    assert state in place.states()
    forget(place)
    place.move()
    assert (place.states(), place.bodies()) == ([], [])
    assert place.hot_bytes() == 0


def test_what_is_forgotten_while_the_cold_tier_is_away_opens_no_more_and_goes_later(place: Place) -> None:
    place.move()
    place.cold.rename(place.folder / "away")
    place.cold.mkdir()  # as a place where nothing is mounted
    forget(place)
    assert place.states() == ["erasing", "erasing"]
    assert place.hot_bytes() == 0, "the keys were there"
    with pytest.raises(Problem) as found:
        place.mover().step()
    assert found.value.code == "archive.cold_away"
    place.cold.rmdir()
    (place.folder / "away").rename(place.cold)
    place.move()
    assert (place.states(), place.bodies()) == ([], [])


# Received anew, turned over, away


@pytest.mark.parametrize("state", ["copying", "freeing", "cold", "recalling", "clearing"])
def test_what_is_received_anew_for_another_project_is_there(place: Place, state: str) -> None:
    mover = place.mover()
    while state not in place.states():
        if place.states() == ["cold", "cold"]:
            with transaction(place.connection) as connection:
                tiers.recall(connection)
        else:
            mover.step()
    place.receive(SMALL, LARGE, project="heart")
    assert place.read() == [SMALL, LARGE]
    place.move(Thresholds(age=3_600_000))
    assert place.read() == [SMALL, LARGE]
    place.move()
    assert place.states() == ["cold", "cold"]
    assert place.read() == [SMALL, LARGE]


def test_keys_are_turned_over_without_the_cold_tier(place: Place) -> None:
    place.move()
    place.cold.rename(place.folder / "away")
    old = place.keys.versions("hospital")[-1]
    place.keys.create("hospital", "wrap", "intl-1")
    assert place.objects.hot.rewrap() == 2
    place.keys.destroy("hospital", old)
    (place.folder / "away").rename(place.cold)
    assert place.read() == [SMALL, LARGE]


def test_a_tier_that_is_away_is_told_and_another_is_not_taken(place: Place, tmp_path: Path) -> None:
    place.move()
    place.cold.rename(tmp_path / "away")
    for there in (False, True):
        if there:
            place.cold.mkdir()
        with pytest.raises(Problem) as found:
            place.read()
        assert found.value.code == "archive.cold_away"
        with pytest.raises(Problem):
            place.move()
    Cold.folder(place.cold).claim(secrets.token_hex(16))
    with pytest.raises(Problem) as found:
        place.move()
    assert found.value.code == "archive.cold_other"
    assert place.states() == ["cold", "cold"]


def test_what_the_cold_tier_lost_or_damaged_is_said_and_the_rest_goes_on(place: Place) -> None:
    place.move()
    (damaged,) = [path for path in place.bodies() if path.stat().st_size < 10_000]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with transaction(place.connection) as connection:
        tiers.recall(connection)
    place.move(Thresholds(age=3_600_000))
    assert place.states() == ["recalling", "hot"]
    small, _ = place.connection.execute("SELECT sha256, bytes FROM objects ORDER BY bytes").fetchone()
    with pytest.raises(Problem) as found:
        place.objects.read(small)
    assert found.value.code == "objects.damaged"

"""Copies of objects, and the folder they lie in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from medmesh.contracts.message import ObjectRef
from medmesh.store.objects.directory import DirectoryStore
from medmesh_federation.copies import Copies, workplace

HOLDS = """
import sys, time
from pathlib import Path
from medmesh_federation.copies import workplace
with workplace(Path(sys.argv[1])) as place:
    (place / "update").write_bytes(b"in the clear")
    print(place, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_at_the_next_start_and_not_what_a_living_one_has(tmp_path: Path) -> None:
    held = [subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        places = []
        for process in held:
            assert process.stdout is not None
            places.append(Path(process.stdout.readline().strip()) / "update")
        assert all(place.exists() for place in places), "the second took nothing from the first"
        held[0].kill()
        held[0].wait()
        assert places[0].exists()
        with workplace(tmp_path) as mine:
            assert not places[0].parent.exists()
            assert places[1].exists()
            (mine / "file").touch()
        assert not mine.exists()
    finally:
        for process in held:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_what_the_first_release_copied_goes_and_nothing_else_of_the_folder(tmp_path: Path) -> None:
    for place in ("objects", "tmpa1b2c3d4", "other"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "update").write_bytes(b"in the clear")
    (tmp_path / "policies.json").write_text("{}")
    with workplace(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "policies.json", "work"]
    assert (tmp_path / "other" / "update").exists()


async def test_a_copy_stays_while_somebody_works_with_it(tmp_path: Path) -> None:
    store, copies = DirectoryStore(tmp_path / "store", durable=False), Copies(tmp_path)
    ref: ObjectRef = await store.put(b"an update")
    with copies.held() as first:
        with copies.held() as second:
            path = await second.take(store, ref)
            await first.take(store, ref)
            second.keep(ref.sha256)
        copies.forget(ref.sha256)
        assert path.read_bytes() == b"an update", "the first still works with it"
    assert not path.exists()
    copies.keep(ref.sha256)  # what is not here cannot be kept
    with copies.held() as third:
        await third.take(store, ref)
    assert not path.exists()

"""A node that is shown the platform's log again and again: what only grows is kept, what does not is found and stands until explained."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.ledgers import KEY, ORIGIN, Entry, Ledger, entries, ledger, write

from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.security.tokens import TrustBundle
from medmesh_edge import continuity
from medmesh_edge.continuity import Continuity
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Layout, Settings


class Platform:
    """Serves the files of one folder; `away` are those it says it does not have, `others` what it says that others were shown."""

    def __init__(self) -> None:
        self.folder, self.asked, self.away = Path(), 0, ""
        self.others: list[dict[str, str]] | None = []
        self.told: list[str] = []

    async def request(self, method: str, path: str, body: Any = None, *, query: dict[str, str] | None = None) -> dict[str, Any]:
        if (method, path) == ("POST", "/v1/audit/sightings"):
            if self.others is None:
                raise Problem("request.no_route", path=path)
            self.told.append(body["note"])
            return {"others": self.others}
        assert (method, path) == ("GET", "/v1/audit/log")
        assert query is not None
        self.asked += 1
        if (self.away and self.away in query["path"]) or not (self.folder / query["path"]).exists():
            raise Problem("request.not_found", kind="file of the log", id=query["path"])
        return {"content": base64.b64encode((self.folder / query["path"]).read_bytes()).decode()}


class Seen:
    """A hospital, and the platform it watches."""

    def __init__(self, opened: Site, folder: Path) -> None:
        self.site, self.folder, self.platform = opened, folder, Platform()
        self.continuity = Continuity(opened, self.platform)  # type: ignore[arg-type]

    async def shown(self, made: Ledger | Path) -> str:
        """What stands after the platform showed this log."""
        self.platform.folder = made if isinstance(made, Path) else made.folder
        try:
            await self.continuity.look()
        except Problem as problem:
            return problem.code
        return ""

    def checkpoint(self, told: str) -> note.Checkpoint:
        """What it told the platform that it goes by, signed by the log."""
        return continuity.Signed.read(told, continuity.keys(self.site)).checkpoint

    async def size(self) -> int:
        row = await continuity.present(self.site)
        return int(row.size) if row is not None else 0

    async def records(self) -> list[tuple[str, int, str]]:
        found = [json.loads(body) for _, _, body in await self.site.database.unreceipted(100)]
        return [(record["sub"], record["out"], record["why"]) for record in found]


@asynccontextmanager
async def hospital(folder: Path) -> AsyncIterator[Seen]:
    layout = Layout(files.folder(folder / "node"))
    Settings(hospital="renji", node="node-1", gateway="https://127.0.0.1:1").save(layout.folder)
    TrustBundle(platform="medmesh", log_key=note.verifier_key(ORIGIN, KEY.public_key())).save(layout.trust)
    async with site(layout.folder) as opened:
        yield Seen(opened, folder)


@pytest.fixture
async def seen(private: Path) -> AsyncIterator[Seen]:
    async with hospital(private) as made:
        yield made


def rewritten(count: int, at: int) -> Iterator[Entry]:
    """The same log but for one record."""
    other = next(entries(10_001, first=10_000))
    return (other if seq == at else made for seq, made in enumerate(entries(count)))


def forked(folder: Path, count: int, at: int = 0) -> Ledger:
    return Ledger(folder, write(folder, rewritten(count, at)))


async def test_a_log_that_grows_is_followed_and_an_older_checkpoint_that_fits_is_no_alarm(seen: Seen) -> None:
    for size in (1, 2, 300, 700, 70_000):
        assert await seen.shown(ledger(seen.folder / str(size), size)) == ""
        assert await seen.size() == size
    # While witnesses are awaited an older one is served, and the newer tree is there.
    newest = seen.folder / "70000"
    (newest / "checkpoint").write_bytes((seen.folder / "300" / "checkpoint").read_bytes())
    assert await seen.shown(newest) == ""
    assert await seen.size() == 70_000
    assert await seen.records() == [("log.seen", 0, "")]


async def test_nothing_is_asked_for_twice_while_the_log_stands_still(seen: Seen) -> None:
    made = ledger(seen.folder / "log", 500)
    await seen.shown(made)
    seen.platform.asked = 0
    await seen.shown(made)
    assert seen.platform.asked == 1


@pytest.mark.parametrize(("size", "at"), [(500, 3), (500, 499), (900, 3), (900, 257), (513, 511)])
async def test_another_history_is_found_whatever_its_length(seen: Seen, size: int, at: int) -> None:
    await seen.shown(ledger(seen.folder / "honest", 500 if size == 500 else 512))
    assert await seen.shown(forked(seen.folder / "forked", size, at)) == "edge.log_forked"
    assert await seen.records() == [("log.seen", 0, ""), ("log.refused", 12, "edge.log_forked")]


async def test_a_log_that_went_back_is_found_also_when_it_grew_again_since(seen: Seen) -> None:
    await seen.shown(ledger(seen.folder / "honest", 500))
    assert await seen.shown(ledger(seen.folder / "back", 400)) == "edge.log_rolled_back"
    await continuity.forgive(seen.site, "zhao")
    await seen.shown(ledger(seen.folder / "again", 500))
    assert await seen.shown(forked(seen.folder / "regrown", 600, 450)) == "edge.log_forked"


async def test_what_was_found_stands_whatever_is_shown_afterwards_and_both_notes_are_kept(seen: Seen) -> None:
    honest, other = ledger(seen.folder / "honest", 500), forked(seen.folder / "forked", 500)
    await seen.shown(honest)
    await seen.shown(other)
    assert await seen.shown(honest) == "edge.log_forked"
    async with hospital_again(seen) as later:
        assert await later.shown(ledger(seen.folder / "more", 900)) == "edge.log_forked"
        row = await continuity.present(later.site)
    for kept, made in ((row.note, honest), (row.shown, other)):
        assert note.parse_checkpoint(note.verify(kept, note.verifier_key(ORIGIN, KEY.public_key()))) == made.checkpoint
    with pytest.raises(Problem) as caught:
        await continuity.trusted(seen.site)
    assert caught.value.code == "edge.log_forked"


@asynccontextmanager
async def hospital_again(seen: Seen) -> AsyncIterator[Seen]:
    """After a restart."""
    async with site(seen.site.layout.folder) as opened:
        yield Seen(opened, seen.folder)


async def test_parts_that_are_not_served_prove_nothing_and_accuse_nobody(seen: Seen) -> None:
    await seen.shown(ledger(seen.folder / "less", 300))
    seen.platform.away = "tile/0/001"
    assert await seen.shown(ledger(seen.folder / "more", 400)) == "edge.log_unproven"
    assert await seen.size() == 300
    seen.platform.away = ""
    assert await seen.shown(ledger(seen.folder / "more", 400)) == ""
    assert await seen.size() == 400


async def test_a_tile_that_was_altered_on_the_way_once_is_asked_for_again(seen: Seen) -> None:
    await seen.shown(ledger(seen.folder / "less", 300))
    ask, times = seen.platform.request, []

    async def altered(method: str, path: str, body: Any = None, *, query: dict[str, str] | None = None) -> dict[str, Any]:
        assert query is not None
        found = await ask(method, path, query=query)
        times.append(query["path"])
        return {"content": base64.b64encode(bytes(len(base64.b64decode(found["content"])))).decode()} if len(times) == 2 else found

    seen.platform.request = altered  # type: ignore[method-assign]
    assert await seen.shown(ledger(seen.folder / "more", 400)) == ""
    assert await seen.size() == 400


async def test_a_checkpoint_that_the_log_did_not_sign_is_nobodys(seen: Seen) -> None:
    await seen.shown(ledger(seen.folder / "honest", 300))
    folder = seen.folder / "foreign"
    write(folder, rewritten(300, 2), key=Ed25519PrivateKey.generate())
    assert await seen.shown(folder) == "ledger.unsigned"
    # Nor is what its key signed for a log of another name: it says nothing of this one.
    other = note.Checkpoint("medmesh/elsewhere", 300, bytes(32)).text()
    (folder / "checkpoint").write_text(note.sign(other, ORIGIN, KEY))
    assert await seen.shown(folder) == "ledger.origin"
    await continuity.trusted(seen.site)


async def test_what_another_hospital_was_shown_is_compared_in_both_directions(seen: Seen) -> None:
    made = ledger(seen.folder / "honest", 600)
    await seen.shown(made)
    for size in (200, 600):
        await seen.continuity.compare((ledger(seen.folder / f"theirs-{size}", size).note(), "hospital:ruijin"))
    with pytest.raises(Problem) as caught:
        await seen.continuity.compare((forked(seen.folder / "theirs", 200).note(), "hospital:ruijin"))
    assert caught.value.code == "edge.log_forked"
    assert await seen.records() == [("log.seen", 0, ""), ("log.refused", 12, "edge.log_forked")]


def shown_to(hospital: str, made: Ledger) -> dict[str, str]:
    return {"hospital": hospital, "note": made.note()}


async def test_a_fork_is_found_by_what_another_hospital_left_and_nothing_is_left_of_a_log_that_is_refused(seen: Seen) -> None:
    mine = ledger(seen.folder / "honest", 600)
    await seen.shown(mine)
    foreign = Ledger(seen.folder / "foreign", write(seen.folder / "foreign", rewritten(300, 2), key=Ed25519PrivateKey.generate()))
    honest = [shown_to("tongji", ledger(seen.folder / f"theirs-{size}", size)) for size in (200, 600)]
    # What the log did not sign accuses nobody, and hides nothing that stands behind it.
    seen.platform.others = [shown_to("xiehe", foreign), *honest]
    await seen.continuity.exchange()
    assert [seen.checkpoint(told) for told in seen.platform.told] == [mine.checkpoint]
    seen.platform.others.append(shown_to("ruijin", forked(seen.folder / "theirs", 200)))
    with pytest.raises(Problem) as caught:
        await seen.continuity.exchange()
    assert caught.value.code == "edge.log_forked"
    assert await seen.shown(mine) == "edge.log_forked", "it stands"
    assert await seen.records() == [("log.seen", 0, ""), ("log.refused", 12, "edge.log_forked")]
    (_, _, body) = (await seen.site.database.unreceipted(100))[-1]
    assert json.loads(body)["detail"]["by"] == "hospital:ruijin"
    with pytest.raises(Problem):
        await seen.continuity.exchange()
    assert len(seen.platform.told) == 2


async def test_what_many_hospitals_were_shown_is_compared_by_the_tiles_of_one_tree(seen: Seen) -> None:
    await seen.shown(ledger(seen.folder / "ours", 500))
    shown = [(ledger(seen.folder / f"theirs-{size}", size).note(), f"hospital:h{size}") for size in range(300, 701, 20)]
    seen.platform.folder, seen.platform.asked = seen.folder / "theirs-700", 0
    await seen.continuity.compare(*shown)
    assert await seen.size() == 700
    assert seen.platform.asked == 3  # two tiles of the lowest level and the one above
    with pytest.raises(Problem) as caught:
        await seen.continuity.compare(*shown, (forked(seen.folder / "fork", 450).note(), "hospital:ruijin"))
    assert caught.value.code == "edge.log_forked"


async def test_what_another_hospital_left_is_not_compared_while_it_cannot_be_proven_or_asked_for(seen: Seen) -> None:
    await seen.continuity.exchange()
    assert seen.platform.told == [], "nothing was seen yet"
    await seen.shown(ledger(seen.folder / "honest", 300))
    seen.platform.others = None  # a platform that knows nothing of it
    await seen.continuity.exchange()
    # They are further than what is served here: nothing proves anything, until the log here has come as far.
    seen.platform.others = [shown_to("ruijin", forked(seen.folder / "theirs", 400))]
    await seen.continuity.exchange()
    await continuity.trusted(seen.site)
    await seen.shown(ledger(seen.folder / "more", 500))
    with pytest.raises(Problem) as caught:
        await seen.continuity.exchange()
    assert caught.value.code == "edge.log_forked"


@pytest.mark.parametrize(("every", "times"), [(timedelta(0), 3), (timedelta(days=365), 0)])
async def test_the_loop_compares_by_itself_as_often_as_it_is_told(seen: Seen, every: timedelta, times: int) -> None:
    made = ledger(seen.folder / "honest", 300)
    seen.platform.folder = made.folder
    seen.site.settings = seen.site.settings.model_copy(update={"log_compared_every": every})
    for _ in range(3):
        await seen.continuity.step()
    assert [seen.checkpoint(told) for told in seen.platform.told] == [made.checkpoint] * times
    assert await seen.records() == [("log.seen", 0, "")], "once, what it goes by from now on"


async def test_forgiving_is_recorded_and_only_possible_where_something_stands(seen: Seen) -> None:
    with pytest.raises(Problem) as caught:
        await continuity.forgive(seen.site, "zhao")
    assert caught.value.code == "edge.log_unblamed"
    await seen.shown(ledger(seen.folder / "honest", 30))
    await seen.shown(forked(seen.folder / "forked", 30))
    await continuity.forgive(seen.site, "zhao")
    assert await seen.shown(seen.folder / "forked") == ""
    assert [verb for verb, *_ in await seen.records()] == ["log.seen", "log.refused", "log.forgive", "log.seen"]

"""Notes in which rules doubt whether somebody is named wait for a person of the hospital, who releases or rejects them; until then they
are in no data set. They lie under their patient's key, and go with the patient.

A decision is one transaction with its record. The note as it came is erased after it: killed in between, `sweep` does so at the next use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.canonical import canonical, parse
from medmesh.errors import Problem
from medmesh.security.keys import read_secret
from medmesh.store.unit import AuditEntry, Entity
from medmesh.text import Kind, Review
from medmesh_edge import patients, storing
from medmesh_edge.admission import refused_of
from medmesh_edge.intake import Outcome, Prepared
from medmesh_edge.labels import Label, label_of
from medmesh_edge.patients import images, opened
from medmesh_edge.ports import Site
from medmesh_edge.tables import datasets, held_texts, items
from medmesh_edge.tables import patients as keys

_HELD = held_texts.c.state == "held"
Found = tuple[int, str, str, bool]
"""(number, kind, what stands there, whether rules doubt) of one place in a note."""


@dataclass(frozen=True, slots=True)
class Note:
    """A note that waits, as a person sees it."""

    number: int
    text: str
    review: Review
    doubted: frozenset[int]

    @property
    def found(self) -> list[Found]:
        """Every place that goes unless the person says otherwise."""
        return [
            (n, str(one.span.kind), self.text[one.span.start : one.span.end], n in self.doubted) for n, one in enumerate(self.review.judged)
        ]


async def hold(
    site: Site, dataset: str, entries: Sequence[tuple[str, Prepared]], labels: dict[str, Label], outcome: Outcome, *, ethics: str
) -> dict[str, str]:
    """Keep these for a person. One that was decided about is not asked again. Answers the items that may not come in, with the reason."""
    if not entries:
        return {}
    await sweep(site)
    async with site.unit() as uow:
        refused = await refused_of(uow, site, [entry for _, entry in entries], ethics)
        outcome.rejected.update(refused.values())
        wanted = {entry.item: (name, entry) for name, entry in entries if entry.item not in refused}
        decided = {row.item: row for row in await uow.all(select(held_texts).where(held_texts.c.item.in_(list(wanted))))}
        for item, row in decided.items():
            if row.state != "replaced" and row.digest == Review.read(wanted[item][1].review).digest:
                if row.state == "rejected":
                    refused[item] = "text.rejected"
                    outcome.rejected["text.rejected"] += 1
                outcome.known += row.state == "released"
                outcome.held += row.state == "held"
                del wanted[item]
        ciphers = await patients.ensure(uow, site, {entry.patient for _, entry in wanted.values()})
    refs = {item: await images(site, ciphers[entry.patient]).put(entry.data, entry.media_type) for item, (_, entry) in wanted.items()}
    async with site.unit() as uow:
        if set(ciphers) - set(await patients.known(uow, site, ciphers)):
            raise Problem("edge.patient_forgotten")
        for item, (name, entry) in wanted.items():
            label = label_of(name, labels) or Label("", "")
            review = Review.read(entry.review)
            values = {
                "dataset": dataset,
                "patient": entry.patient,
                "modality": entry.modality,
                "object": refs[item].sha256,
                "digest": review.digest,
                "review": entry.review,
                "doubts": len(parse(entry.data)["doubted"]),
                "label": label.label,
                "split": label.split,
                "ethics": ethics,
                "state": "held",
                "by": "",
                "at": uow.now,
            }
            made = upsert(held_texts).values(item=item, **values)
            await uow.execute(made.on_conflict_do_update(index_elements=["item"], set_=values))
        outcome.held += len(wanted)
        if wanted:
            uow.audit(AuditEntry("text.hold", "C", entities=(_about(site, dataset),), detail={"notes": len(wanted)}))
    return refused


async def settled(site: Site, stored: Collection[str]) -> None:
    """These are stored without a doubt: an earlier wording of one that still waits is no longer wanted."""
    async with site.unit() as uow:
        await uow.execute(update(held_texts).where(_HELD, held_texts.c.item.in_(list(stored))).values(state="replaced"))
    await sweep(site)


async def waiting(site: Site) -> list[dict[str, Any]]:
    """What waits, oldest first; no word of it."""
    await sweep(site)
    async with site.unit() as uow:
        rows = await uow.all(select(held_texts).where(_HELD).order_by(held_texts.c.number))
    return [{name: getattr(row, name) for name in ("number", "dataset", "modality", "doubts", "ethics", "at")} for row in rows]


async def read(site: Site, number: int | None) -> Note:
    """A note for a person's eyes, the oldest where none is named; that somebody read it is recorded. Raises `Problem` (`text.not_held`)."""
    async with site.unit() as uow:
        row = await uow.first(select(held_texts).where(_HELD, *_numbered(number)).order_by(held_texts.c.number))
        if row is None:
            raise Problem("text.not_held", number=number or "-")
        note = await _note(uow, site, row)
        uow.audit(AuditEntry("text.read", "R", entities=(_about(site, row.dataset), _note_of(row))))
    return note


async def release(site: Site, number: int, by: str, *, keep: Sequence[int] = (), also: Sequence[tuple[int, int]] = ()) -> None:
    """Into the data set, without anything found but what is to `keep` (places by number), and without what stands at `also` (characters
    from and to). Raises `Problem` (`text.not_held`, `text.span`, `intake.no_consent`, `intake.withdrawn`, `ethics.*`)."""
    await sweep(site)
    async with site.unit() as uow:
        row = await uow.first(select(held_texts).where(_HELD, *_numbered(number)))
        if row is None:
            raise Problem("text.not_held", number=number)
        note = await _note(uow, site, row)
        _may(await refused_of(uow, site, [row], row.ethics))
    review = note.review.accept(set(note.review.open) - set(keep), by).reject(keep, by)
    for start, end in also:
        if end > len(note.text):
            raise Problem("text.span")
        review = review.add(start, end, Kind.NAME, by)
    data = canonical({"item": row.item, "text": review.apply(note.text)})
    made = Prepared(row.item, row.patient, row.modality, data, (), "application/json")
    labels = {row.item: Label(row.label, row.split)} if row.label or row.split else {}
    key, outcome = read_secret(site.layout.site_key).strip(), Outcome()
    # Stored first: killed before the decision is written, it is decided again, and a rejection takes it away.
    _may(await storing.store(site, row.dataset, [(row.item, made)], labels, key, outcome, ethics=row.ethics))
    async with site.unit() as uow:
        decided = {"state": "released", "review": review.document(), "by": by[:80], "at": uow.now}
        done = await uow.execute(update(held_texts).where(_HELD, *_numbered(number), held_texts.c.digest == row.digest).values(decided))
        if done.rowcount == 0:
            raise Problem("text.not_held", number=number)
        await uow.execute(update(datasets).where(datasets.c.dataset == row.dataset).values(version=datasets.c.version + 1))
        detail: dict[str, str | int | bool] = {"found": len(review.judged), "kept": len(set(keep)), "added": len(also)}
        uow.audit(AuditEntry("text.release", "U", entities=(_about(site, row.dataset), _note_of(row)), detail=detail))
    await sweep(site)


async def reject(site: Site, number: int, by: str) -> None:
    """Out, for good: the same note is not taken in again. Raises `Problem` (`text.not_held`)."""
    async with site.unit() as uow:
        row = await uow.first(select(held_texts).where(_HELD, *_numbered(number)))
        if row is None:
            raise Problem("text.not_held", number=number)
        await uow.execute(update(held_texts).where(*_numbered(number)).values(state="rejected", by=by[:80], at=uow.now))
        await uow.execute(delete(items).where(items.c.item == row.item))
        uow.audit(AuditEntry("text.reject", "D", entities=(_about(site, row.dataset), _note_of(row))))
    await sweep(site)


async def sweep(site: Site) -> None:
    """Erase notes as they came that nobody waits for any more. May be done twice."""
    async with site.unit() as uow:
        rows = await uow.all(select(held_texts.c.number, held_texts.c.object).where(~_HELD, held_texts.c.object != ""))
    for row in rows:
        await site.objects.delete(row.object)
        async with site.unit() as uow:
            await uow.execute(update(held_texts).where(~_HELD, *_numbered(row.number)).values(object=""))


def _may(refused: Mapping[str, str]) -> None:
    for reason in refused.values():
        raise Problem("intake.withdrawn") if reason == "intake.withdrawn" else Problem("intake.no_consent")


async def _note(uow: Any, site: Site, row: Any) -> Note:
    key = (await uow.first(select(keys.c.key).where(keys.c.patient == row.patient))).key
    stored = parse(b"".join(images(site, opened(site, row.patient, key)).open(row.object)))
    return Note(row.number, stored["text"], Review.read(row.review), frozenset(stored["doubted"]))


def _numbered(number: int | None) -> tuple[Any, ...]:
    return () if number is None else (held_texts.c.number == number,)


def _about(site: Site, dataset: str) -> Entity:
    return Entity("dataset", f"{site.settings.hospital}/{dataset}")


def _note_of(row: Any) -> Entity:
    """By a number that means something here alone."""
    return Entity("note", str(row.number))

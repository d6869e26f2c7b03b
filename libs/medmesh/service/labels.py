"""The labels of a service's objects, in its own tables: given when an object is made, asked for, changed.

`labelled(HANDLERS, "dataset", ...)` makes a service the owner of such objects: it then answers what they are (`DescribeObject`) and whose
files (`FindFile`), takes new labels for them (`ChangeLabel`), lowers one when a second person has approved it, and raises what was made
from what is raised (`medmesh.service.derivation`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Row, bindparam, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.bus.declarations import Handlers
from medmesh.canonical import digest
from medmesh.contracts.governance import ApprovalGranted, ApprovalRevoked
from medmesh.contracts.labels import FILES, ChangeLabel, DescribeObject, FindFile, LabelAnswer, LabelChanged, ObjectView, SecurityLabel
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.security.access import Object
from medmesh.security.labels import INTERNAL, Label, join, level, no_lower_than, of_hospital, read
from medmesh.service import derivation, files
from medmesh.service.approved import spend
from medmesh.store.prepared import Prepared
from medmesh.store.tables import add_label_tables, service_metadata
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork

ACTION = "label.change"
_TABLES = add_label_tables(service_metadata()).tables
LABELS, CHANGES, HEARD = _TABLES["object_labels"], _TABLES["label_changes"], _TABLES["labels_heard"]


def labelled(handlers: Handlers, *kinds: str) -> Handlers:
    """Declare that this service owns objects of these kinds."""
    handlers.labelled = frozenset(kinds)

    @handlers.answers(DescribeObject)
    async def describe_object(query: Envelope[DescribeObject], uow: UnitOfWork[Any]) -> ObjectView:
        """What decides who may read one of them."""
        thing = await find(uow, handlers, query.data.kind, query.data.id)
        if thing is None:
            return ObjectView(known=False, kind=query.data.kind, id=query.data.id)
        return files.view(thing)

    @handlers.answers(ChangeLabel)
    async def change_label(query: Envelope[ChangeLabel], uow: UnitOfWork[Any]) -> LabelAnswer:
        """Raise it at once, or note what is to be approved."""
        return await _change(query.data, uow)

    @handlers.on(LabelChanged, durable="label-raised")
    async def label_raised(event: Envelope[LabelChanged], uow: UnitOfWork[Any]) -> None:
        """Another service's object was labelled anew: what was made from it here is at least as high from now on."""
        await derivation.heard(uow, event.data, _raise)

    if handlers.service in FILES:
        handlers.answers(FindFile)(files.find_file)

    @handlers.on(ApprovalGranted, durable="label-approved")
    async def label_approved(event: Envelope[ApprovalGranted], uow: UnitOfWork[Any]) -> None:
        """A second person approved exactly this change."""
        await _approved(event.data, uow)

    @handlers.on(ApprovalRevoked, durable="label-withdrawn")
    async def label_withdrawn(event: Envelope[ApprovalRevoked], uow: UnitOfWork[Any]) -> None:
        """Taken back: a grant that is still on its way comes too late."""
        if event.data.action == ACTION:
            await uow.withhold_approval(event.data.approval)

    return handlers


def copied(handlers: Handlers, *kinds: str) -> Handlers:
    """Declare that this service keeps copies of others' objects of these kinds, with their labels, which it follows."""
    handlers.copied = frozenset(kinds)

    @handlers.on(LabelChanged, durable="label-follows")
    async def label_follows(event: Envelope[LabelChanged], uow: UnitOfWork[Any]) -> None:
        """What the owner says of an object's label counts here too, from now on."""
        changed = event.data
        if changed.kind not in handlers.copied:
            return
        await derivation.heard(uow, changed, _raise)
        newest = await uow.first(select(HEARD).where(HEARD.c.kind == changed.kind, HEARD.c.id == changed.id))
        if newest is not None:
            values = {"level": newest.level, "compartments": newest.compartments, "changed_at": uow.now}
            await uow.execute(update(LABELS).where(LABELS.c.kind == changed.kind, LABELS.c.id == changed.id).values(values))

    return handlers


_LABEL = Prepared(select(LABELS).where(LABELS.c.kind == bindparam("kind"), LABELS.c.id == bindparam("id")))


async def find(uow: UnitOfWork[Any], handlers: Handlers, kind: str, id_: str) -> Object | None:
    """An object of this service as it decides; None when there is none, or none with a label where its kind has one."""
    known: Object | None = Object(kind, id_)
    if (look := handlers.facts.get(kind)) is not None:
        known = await look(id_, uow)
    if known is None or known.kind not in handlers.labelled | handlers.copied:
        return known
    if "\x00" in known.id:  # PostgreSQL holds none in a text
        return None
    rows = await uow.rows(_LABEL, kind=known.kind, id=known.id)
    return files.thing_of(rows[0]) if rows else None


async def several(uow: UnitOfWork[Any], kind: str, ids: Iterable[str]) -> dict[str, Object]:
    """Those of a kind that have a label, by id."""
    rows = await uow.all(select(LABELS).where(LABELS.c.kind == kind, LABELS.c.id.in_(list(ids))))
    return {row.id: files.thing_of(row) for row in rows}


async def give(
    uow: UnitOfWork[Any],
    kind: str,
    id_: str,
    label: Label,
    *,
    owner: str,
    organisations: Iterable[str] = (),
    maker: str = "",
    sources: Iterable[derivation.Source] = (),
) -> Label:
    """Label a new object, at least as high as what it was made from, with which it is raised from now on. What is there already keeps at
    least its label and everybody who shares it; only `ChangeLabel` lowers one."""
    sources = list(sources)
    if sources:
        label = join((label, await derivation.hold(uow, uow.access.guard.handlers.labelled, sources)))
        await derivation.note(uow, kind, id_, sources)
    before = (await several(uow, kind, [id_])).get(id_)
    if before is not None:
        label = join((before.label, label))
        owner, maker = before.owner, before.maker
    values = {
        "level": label.level.text,
        "compartments": sorted(label.compartments),
        "owner": owner,
        "organisations": sorted({owner, *organisations, *(before.organisations if before else ())}),
        "maker": maker,
        "changed_at": uow.now,
    }
    row = upsert(LABELS).values(kind=kind, id=id_, **values)
    await uow.execute(row.on_conflict_do_update(index_elements=["kind", "id"], set_=values))
    if uow.access is not None:
        uow.access.made.add(kind)
    return label


async def made(
    uow: UnitOfWork[Any],
    kind: str,
    id_: str,
    *,
    wanted: SecurityLabel | None = None,
    outside: bool = False,
    organisations: Iterable[str] = (),
) -> Label:
    """Label what the present message makes: at least as high as everything the message named as its source, which the guard has looked
    up; `outside` adds that it holds bytes nobody here has seen. `wanted` may only raise it."""
    actor, sources = uow.actor, [source.label for source in uow.access.sources]
    floor = [*sources, *([no_lower_than(actor.clearance, actor.organisation)] if outside or not sources else [])]
    label = join([*floor, *([read(wanted)] if wanted is not None else [])])
    if wanted is not None and not actor.clearance.dominates(label):
        raise Problem("labels.above_you", label=label.text, clearance=actor.clearance.text)
    owner = actor.organisation
    of = derivation.sources_of(uow.access.sources)
    return await give(uow, kind, id_, label, owner=owner, organisations=organisations, maker=actor.text, sources=of)


async def by_rule(
    uow: UnitOfWork[Any], kind: str, id_: str, *, wanted: SecurityLabel | None = None, organisations: Iterable[str] = ()
) -> Label:
    """Label what is `internal` by rule, because nothing in it is anybody's data but what the message named as its source. `wanted` may
    only raise it."""
    actor = uow.actor
    label = join((DEFAULT, *(source.label for source in uow.access.sources), *([read(wanted)] if wanted is not None else [])))
    if not actor.clearance.dominates(label):
        raise Problem("labels.above_you", label=label.text, clearance=actor.clearance.text)
    owner = actor.organisation
    of = derivation.sources_of(uow.access.sources)
    return await give(uow, kind, id_, label, owner=owner, organisations=organisations, maker=actor.text, sources=of)


async def share(uow: UnitOfWork[Any], kind: str, id_: str, organisations: Iterable[str]) -> None:
    """Let further organisations see an object, as far as its label lets them."""
    thing = (await several(uow, kind, [id_])).get(id_)
    if thing is not None:
        values = {"organisations": sorted({*thing.organisations, *organisations})}
        await uow.execute(update(LABELS).where(LABELS.c.kind == kind, LABELS.c.id == id_).values(values))


async def label_of(uow: UnitOfWork[Any], kind: str, id_: str) -> Label:
    """Of an object of this service that was made before; `internal` would be a guess, so one without a label is an error."""
    return (await several(uow, kind, [id_]))[id_].label


def cleared(label: Label, hospitals: Iterable[str]) -> None:
    """Nothing goes to a hospital that may not read it: what is in another's compartment stays there. Raises `Problem`."""
    for hospital in hospitals:
        if not of_hospital(hospital).dominates(label):
            raise Problem("labels.hospital", hospital=hospital, label=label.text)


def change_digest(kind: str, id_: str, label: Label, revision: int) -> str:
    """What an approval of a lower label is bound to: the change of the label as it stood. Raised since, it takes asking again."""
    return digest({"kind": kind, "id": id_, "label": label.record.model_dump(mode="json"), "revision": revision})


async def _locked(uow: UnitOfWork[Any], kind: str, id_: str) -> Row[Any] | None:
    """Two changes at once follow each other: the second sees what the first did, and lowers nothing of it by mistake."""
    return await uow.first(select(LABELS).where(LABELS.c.kind == kind, LABELS.c.id == id_).with_for_update())


async def _change(wanted: ChangeLabel, uow: UnitOfWork[Any]) -> LabelAnswer:
    row = await _locked(uow, wanted.kind, wanted.id)
    if row is None:
        raise Object(wanted.kind, wanted.id).unknown
    before, label = files.thing_of(row), read(wanted.label)
    asked = change_digest(wanted.kind, wanted.id, label, row.revision)
    answer = {"target": f"{wanted.kind}/{wanted.id}", "digest": asked, "label": label.record}
    if label == before.label:
        uow.unchanged()
        return LabelAnswer(state="unchanged", **answer)
    if label.dominates(before.label):
        await _set(uow, row, label, reason=wanted.reason)
        return LabelAnswer(state="changed", **answer)
    values = {
        "kind": wanted.kind,
        "id": wanted.id,
        "level": label.level.text,
        "compartments": sorted(label.compartments),
        "requester": uow.actor.text,
        "state": "pending",
        "created_at": uow.now,
    }
    new = upsert(CHANGES).values(digest=asked, **values)
    await uow.execute(new.on_conflict_do_update(index_elements=["digest"], set_=values))
    uow.audit(AuditEntry("label.propose", "C", entities=(_entity(before),), detail=_detail(before.label, label, wanted.reason)))
    return LabelAnswer(state="pending", **answer)


async def _approved(grant: ApprovalGranted, uow: UnitOfWork[Any]) -> None:
    if grant.action != ACTION:
        return
    pending = (CHANGES.c.digest == grant.digest) & (CHANGES.c.state == "pending")
    row = await uow.first(select(CHANGES).where(pending))
    if row is None or f"{row.kind}/{row.id}" != grant.target:
        return  # another service's object, or the label was raised meanwhile
    before = await _locked(uow, row.kind, row.id)  # first, like whoever raises it
    label = Label(level(row.level), frozenset(row.compartments))
    if before is None or change_digest(row.kind, row.id, label, before.revision) != row.digest:
        return
    found = await spend(uow, grant, uow.access.trust(), uow.access.roster(), target=grant.target, digest=row.digest, maker=row.requester)
    await uow.execute(update(CHANGES).where(CHANGES.c.digest == row.digest).values(state="done"))
    await _set(uow, before, label, approval=found.evidence())


async def _raise(uow: UnitOfWork[Any], row: Row[Any], label: Label, source: derivation.Source) -> None:
    await _set(uow, row, label, source=source)


async def _set(
    uow: UnitOfWork[Any],
    row: Row[Any],
    label: Label,
    *,
    reason: str = "",
    approval: dict[str, str] | None = None,
    source: derivation.Source | None = None,
) -> None:
    """Label a locked row of `object_labels` anew, tell of it, and raise what was made from it here."""
    before, this = files.thing_of(row), (LABELS.c.kind == row.kind) & (LABELS.c.id == row.id)
    values = {
        "level": label.level.text,
        "compartments": sorted(label.compartments),
        "changed_at": uow.now,
        "revision": row.revision + 1,
    }
    await uow.execute(update(LABELS).where(this).values(values))
    uow.emit(
        LabelChanged(
            service=uow.context.service,
            kind=row.kind,
            id=row.id,
            label=label.record,
            before=before.label.record,
            revision=row.revision + 1,
            approval=(approval or {}).get("id", ""),
            source="/".join(source or ()),
        )
    )
    entities = (_entity(before), *([_entity(Object(*source))] if source else []))
    uow.audit(AuditEntry(ACTION, "U", entities=entities, approval=approval, detail=_detail(before.label, label, reason)))
    if not before.label.dominates(label):
        await derivation.spread(uow, (row.kind, row.id), label, _raise)


def _entity(thing: Object) -> Entity:
    name, _, version = thing.id.partition("/")
    return Entity(thing.kind, name, version)


def _detail(before: Label, after: Label, reason: str) -> dict[str, str | int | bool]:
    return {"before": before.text, "after": after.text, "reason": reason, "lowered": not after.dominates(before)}


DEFAULT = INTERNAL
"""The label of what is made by rule and not by a person: the global model of a federation."""

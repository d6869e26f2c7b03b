"""The labels of a service's objects, in its own tables: given when an object is made, asked for, changed.

`labelled(HANDLERS, "dataset", ...)` makes a service the owner of such objects: it then answers what they are (`DescribeObject`), takes new
labels for them (`ChangeLabel`), and lowers one when a second person has approved it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.bus.declarations import Handlers
from medmesh.canonical import digest
from medmesh.contracts.governance import ApprovalGranted, ApprovalRevoked
from medmesh.contracts.labels import ChangeLabel, DescribeObject, LabelAnswer, LabelChanged, ObjectView, SecurityLabel
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.security.access import Object
from medmesh.security.labels import INTERNAL, Label, join, level, no_lower_than, of_hospital, read
from medmesh.service.approved import spend
from medmesh.store.tables import add_label_tables, service_metadata
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork

ACTION = "label.change"
_TABLES = add_label_tables(service_metadata()).tables
LABELS, CHANGES = _TABLES["object_labels"], _TABLES["label_changes"]


def labelled(handlers: Handlers, *kinds: str) -> Handlers:
    """Declare that this service owns objects of these kinds."""
    handlers.labelled = frozenset(kinds)

    @handlers.answers(DescribeObject)
    async def describe_object(query: Envelope[DescribeObject], uow: UnitOfWork[Any]) -> ObjectView:
        """What decides who may read one of them."""
        thing = await find(uow, handlers, query.data.kind, query.data.id)
        if thing is None:
            return ObjectView(known=False, kind=query.data.kind, id=query.data.id)
        return ObjectView(
            known=True,
            kind=thing.kind,
            id=thing.id,
            label=thing.label.record if thing.labelled else None,
            owner=thing.owner,
            organisations=tuple(sorted(thing.organisations)),
            maker=thing.maker,
        )

    @handlers.answers(ChangeLabel)
    async def change_label(query: Envelope[ChangeLabel], uow: UnitOfWork[Any]) -> LabelAnswer:
        """Raise it at once, or note what is to be approved."""
        return await _change(query.data, uow)

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
    """Declare that this service keeps copies of others' objects of these kinds, with their labels; it follows `LabelChanged`."""
    handlers.copied = frozenset(kinds)
    return handlers


def thing_of(row: Row[Any]) -> Object:
    """From a row of `object_labels`."""
    label = Label(level(row.level), frozenset(row.compartments))
    return Object(row.kind, row.id, label, True, row.owner, frozenset(row.organisations), row.maker)


async def find(uow: UnitOfWork[Any], handlers: Handlers, kind: str, id_: str) -> Object | None:
    """An object of this service as it decides; None when there is none, or none with a label where its kind has one."""
    known: Object | None = Object(kind, id_)
    if (look := handlers.facts.get(kind)) is not None:
        known = await look(id_, uow)
    if known is None or known.kind not in handlers.labelled | handlers.copied:
        return known
    if "\x00" in known.id:  # PostgreSQL holds none in a text
        return None
    row = await uow.first(select(LABELS).where(LABELS.c.kind == known.kind, LABELS.c.id == known.id))
    return None if row is None else thing_of(row)


async def several(uow: UnitOfWork[Any], kind: str, ids: Iterable[str]) -> dict[str, Object]:
    """Those of a kind that have a label, by id."""
    rows = await uow.all(select(LABELS).where(LABELS.c.kind == kind, LABELS.c.id.in_(list(ids))))
    return {row.id: thing_of(row) for row in rows}


async def give(
    uow: UnitOfWork[Any],
    kind: str,
    id_: str,
    label: Label,
    *,
    owner: str,
    organisations: Iterable[str] = (),
    maker: str = "",
) -> Label:
    """Label a new object. What is there already keeps at least its label and everybody who shares it; only `ChangeLabel` lowers one."""
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
    return await give(uow, kind, id_, label, owner=actor.organisation, organisations=organisations, maker=actor.text)


async def by_rule(
    uow: UnitOfWork[Any], kind: str, id_: str, *, wanted: SecurityLabel | None = None, organisations: Iterable[str] = ()
) -> Label:
    """Label what is `internal` by rule, because nothing in it is anybody's data. `wanted` may only raise it."""
    actor = uow.actor
    label = DEFAULT if wanted is None else join((DEFAULT, read(wanted)))
    if not actor.clearance.dominates(label):
        raise Problem("labels.above_you", label=label.text, clearance=actor.clearance.text)
    return await give(uow, kind, id_, label, owner=actor.organisation, organisations=organisations, maker=actor.text)


async def share(uow: UnitOfWork[Any], kind: str, id_: str, organisations: Iterable[str]) -> None:
    """Let further organisations see an object, as far as its label lets them."""
    thing = (await several(uow, kind, [id_])).get(id_)
    if thing is not None:
        values = {"organisations": sorted({*thing.organisations, *organisations})}
        await uow.execute(update(LABELS).where(LABELS.c.kind == kind, LABELS.c.id == id_).values(values))


async def follow(uow: UnitOfWork[Any], kind: str, id_: str, label: Label) -> None:
    """Take over the label that the owner gave an object of which this service has a copy."""
    values = {"level": label.level.text, "compartments": sorted(label.compartments), "changed_at": uow.now}
    await uow.execute(update(LABELS).where(LABELS.c.kind == kind, LABELS.c.id == id_).values(values))


async def label_of(uow: UnitOfWork[Any], kind: str, id_: str) -> Label:
    """Of an object of this service that was made before; `internal` would be a guess, so one without a label is an error."""
    return (await several(uow, kind, [id_]))[id_].label


def cleared(label: Label, hospitals: Iterable[str]) -> None:
    """Nothing goes to a hospital that may not read it: what is in another's compartment stays there. Raises `Problem`."""
    for hospital in hospitals:
        if not of_hospital(hospital).dominates(label):
            raise Problem("labels.hospital", hospital=hospital, label=label.text)


def change_digest(kind: str, id_: str, label: Label) -> str:
    """What an approval of a lower label is bound to."""
    return digest({"kind": kind, "id": id_, "label": label.record.model_dump(mode="json")})


async def _change(wanted: ChangeLabel, uow: UnitOfWork[Any]) -> LabelAnswer:
    before = (await several(uow, wanted.kind, [wanted.id])).get(wanted.id)
    if before is None:
        raise Object(wanted.kind, wanted.id).unknown
    label = read(wanted.label)
    answer = {"target": f"{wanted.kind}/{wanted.id}", "digest": change_digest(wanted.kind, wanted.id, label), "label": label.record}
    if label == before.label:
        uow.unchanged()
        return LabelAnswer(state="unchanged", **answer)
    if label.dominates(before.label):
        await _set(uow, before, label, {"reason": wanted.reason})
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
    row = upsert(CHANGES).values(digest=answer["digest"], **values)
    await uow.execute(row.on_conflict_do_update(index_elements=["digest"], set_=values))
    uow.audit(AuditEntry("label.propose", "C", entities=(_entity(before),), detail=_detail(before.label, label, wanted.reason)))
    return LabelAnswer(state="pending", **answer)


async def _approved(grant: ApprovalGranted, uow: UnitOfWork[Any]) -> None:
    if grant.action != ACTION:
        return
    pending = (CHANGES.c.digest == grant.digest) & (CHANGES.c.state == "pending")
    row = await uow.first(select(CHANGES).where(pending).with_for_update())
    if row is None or f"{row.kind}/{row.id}" != grant.target:
        return  # another service's object
    found = await spend(uow, grant, uow.access.trust(), uow.access.roster(), target=grant.target, digest=row.digest, maker=row.requester)
    await uow.execute(update(CHANGES).where(CHANGES.c.digest == row.digest).values(state="done"))
    before = (await several(uow, row.kind, [row.id]))[row.id]
    label = Label(level(row.level), frozenset(row.compartments))
    await _set(uow, before, label, {}, found.evidence())


async def _set(uow: UnitOfWork[Any], before: Object, label: Label, detail: dict[str, str], approval: dict[str, str] | None = None) -> None:
    key = (LABELS.c.kind == before.kind) & (LABELS.c.id == before.id)
    values = {"level": label.level.text, "compartments": sorted(label.compartments), "changed_at": uow.now}
    await uow.execute(update(LABELS).where(key).values(values))
    uow.emit(LabelChanged(service=uow.context.service, kind=before.kind, id=before.id, label=label.record))
    told = _detail(before.label, label, detail.get("reason", ""))
    uow.audit(AuditEntry(ACTION, "U", entities=(_entity(before),), approval=approval, detail=told))


def _entity(thing: Object) -> Entity:
    name, _, version = thing.id.partition("/")
    return Entity(thing.kind, name, version)


def _detail(before: Label, after: Label, reason: str) -> dict[str, str | int | bool]:
    return {"before": before.text, "after": after.text, "reason": reason, "lowered": not after.dominates(before)}


DEFAULT = INTERNAL
"""The label of what is made by rule and not by a person: the global model of a federation."""

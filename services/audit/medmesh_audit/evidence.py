"""Evidence for MLPS Level 3 (GB/T 22239-2019, chapter 8), clause by clause, from what can be seen at this moment.

Nothing here is green by itself: a clause is met when something live shows it (the log, its proofs, the database's privileges, the
running settings and rules); part when it shows some of what the clause asks; procedural when software cannot show it; else not met.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import func, select, text

from medmesh.auditing.vocabulary import RETENTION_DAYS, VERBS
from medmesh.ledger import note
from medmesh.security.access import policy_digest
from medmesh.security.roles import ADMINISTRATORS, TABLE
from medmesh.store.unit import UnitOfWork
from medmesh_audit import probes
from medmesh_audit.clauses import CLAUSES, Clause
from medmesh_audit.domain import whole
from medmesh_audit.ports import Ports
from medmesh_audit.queries import root_of
from medmesh_audit.tables import checkpoints, emitters, entries, facts, state

SAMPLE = 1_000
"""Newest records whose bodies are hashed and read again."""
STATES = {
    "met": ("met", "符合"),
    "part": ("partly met", "部分符合"),
    "procedural": ("procedural", "制度"),
    "not_met": ("not met", "不符合"),
}
BACKUPS = ("backup.create", "backup.verify", "backup.restore")
PRIVILEGED = frozenset({"dataset.release", "federation.approved", "model.release", "policy.change"})
_IDENTIFIERS = re.compile(
    r"(?<![0-9a-fA-F-])(?:[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]|1[3-9]\d{9})(?![0-9a-fA-F-])"
)
"""An identity number of a resident (GB 11643), or a mobile telephone number."""


@dataclass(frozen=True)
class Backup:
    """One act on a backup as the log tells it."""

    days: int
    """How long ago."""
    outcome: int
    log_size: int
    """How many records of the log are in it."""


@dataclass(frozen=True)
class Facts:
    """What was seen at one moment; the clauses are judged by these values alone."""

    verbs: Mapping[str, int] = field(default_factory=dict)
    """Successful records of each verb."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Records that tell of a refusal or failure, by their code."""
    last: Mapping[str, int] = field(default_factory=dict)
    """The newest record's number, by verb and by code."""
    size: int = 0
    stored: int = 0
    signature: bool = False
    rooted: bool = False
    sample: int = 0
    bodies: bool = False
    """Every body of the sample is the one its leaf commits to."""
    fields: bool = False
    purposes: bool = False
    identifiers: int = 0
    bundles: frozenset[str] = frozenset()
    bundle: str = ""
    """Digest of the rules in force: role table, object rules, the site's policy."""
    adopted: frozenset[str] = frozenset()
    """Digests of rules that the log says were put in force by an approval, and of those the platform comes with."""
    mandatory: bool = False
    """Whether the running rules refuse, at every level and with every role, what somebody is not cleared for."""
    labelled: int = 0
    """Decisions in the sample in which a security label was asked."""
    hidden: int = 0
    """Refusals in the sample because of a label."""
    lowered: int = 0
    """Labels that were lowered with an approval."""
    laundered: int = 0
    """Labels that were lowered without one."""
    clearances: int = 0
    ungranted: int = 0
    """Clearances and labels that somebody other than a security administrator set, without an approval."""
    gaps: tuple[str, ...] = ()
    emitting: frozenset[str] = frozenset()
    expected: frozenset[str] = frozenset()
    writable: tuple[str, ...] = ()
    """Privileges of the service's database role that could change what is logged."""
    foreign: tuple[str, ...] = ()
    """Other services' schemas its role may use."""
    superuser: bool = True
    plain: tuple[str, ...] = ("unseen",)
    """Connections outside loopback without TLS."""
    exclusive: bool = False
    weak_refused: bool = False
    strict: bool = False
    networks: tuple[str, ...] = ()
    """From where administrators may come."""
    elsewhere_refused: bool = False
    administrators: int = 0
    """Accounts that were created with two of the three administrators' roles."""
    accounts: int = 0
    doubled: int = 0
    bootstraps: int = 0
    nameless: int = 0
    """Accounts that were not created by a person."""
    factors: Mapping[str, int] = field(default_factory=dict)
    """Successful sign-ins by how they were proven."""
    unapproved: int = 0
    approved: int = 0
    verified: frozenset[str] = frozenset()
    unverified: frozenset[str] = frozenset()
    """Services whose newest verification of the programs they loaded succeeded, and failed."""
    backups: Mapping[str, Backup] = field(default_factory=dict)
    """The newest of `backup.create`, `backup.verify` and `backup.restore`, by verb."""
    retention: int = 0
    watched: bool = False
    sealed: bool = False
    """What was stored just now lay encrypted, and opened."""
    undumpable: bool = False
    wiped: bool = False
    silent_actions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By administrator: actions that change something and leave no record when they succeed."""


async def collect(uow: UnitOfWork[Any], ports: Ports) -> Facts:
    """Look at everything once."""
    counted = await uow.all(
        select(facts.c.verb, facts.c.outcome, func.count().label("n"), func.max(facts.c.seq).label("last")).group_by(
            facts.c.verb, facts.c.outcome
        )
    )
    verbs, last = Counter[str](), dict[str, int]()
    for row in counted:
        verbs[row.verb] += row.n if row.outcome == 0 else 0
        last[row.verb] = max(last.get(row.verb, -1), row.last)
    rows = await uow.all(select(entries).order_by(entries.c.seq.desc()).limit(SAMPLE))
    records = [(row, json.loads(row.body)) for row in rows if whole(row)]
    refused = Counter(record["why"] for _, record in records if record["why"])
    last |= {record["why"]: row.seq for row, record in reversed(records) if record["why"]}
    seen = {row.emitter: row.n for row in await uow.all(select(emitters))}
    held = {r.emitter: r.n for r in await uow.all(select(entries.c.emitter, func.count().label("n")).group_by(entries.c.emitter))}
    runtime = ports.runtime
    return Facts(
        verbs=verbs,
        refused=refused,
        last=last,
        size=int((await uow.execute(select(state.c.size))).scalar_one()),
        stored=sum(held.values()),
        **await _log(uow, ports),
        sample=len(rows),
        bodies=bool(rows) and all(map(whole, rows)),
        fields=bool(records) and all(_mandatory(record) for _, record in records),
        purposes=bool(records) and all(record["pou"] for _, record in records),
        identifiers=sum(bool(_IDENTIFIERS.search(row.body.decode())) for row, _ in records),
        bundles=frozenset(record["policy"]["bundle"] for _, record in records),
        bundle=ports.runtime.policies.digest(),
        mandatory=probes.mandatory_access(ports.runtime.policies.rules),
        labelled=sum(any(rule.startswith("label") for rule in record["policy"]["rules"]) for _, record in records),
        hidden=sum(record["policy"]["decision"] == "deny" and "label" in record["policy"]["rules"] for _, record in records),
        **await _labels(uow),
        gaps=tuple(sorted(name for name, n in seen.items() if held.get(name) != n)),
        emitting=frozenset(seen),
        expected=frozenset(runtime.trust().services) - {"operator"},
        **await _privileges(uow),
        plain=_plain(ports),
        exclusive=probes.exclusive(),
        weak_refused=probes.weak_refused(),
        strict=probes.strict(),
        networks=tuple(map(str, ports.settings.administrator_networks)),
        elsewhere_refused=ports.settings.administrators_elsewhere == "refuse",
        **await _accounts(uow),
        **await _approvals(uow),
        **await _programs(uow),
        backups=await _backups(uow),
        retention=min(RETENTION_DAYS.values()),
        watched=ports.anomalies.last_run > 0 and time.monotonic() - ports.anomalies.last_run < 12 * ports.settings.anomaly_seconds,
        sealed=await asyncio.to_thread(probes.sealed_at_rest, ports.stores.kept),
        undumpable=probes.undumpable(),
        wiped=await asyncio.to_thread(probes.overwritten, ports.settings.state),
        silent_actions={role: _silent(role) for role in ADMINISTRATORS},
    )


async def _log(uow: UnitOfWork[Any], ports: Ports) -> dict[str, Any]:
    """Whether the newest checkpoint verifies, and is what the stored tiles make."""
    row = await uow.first(select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1))
    if row is None:
        return {"signature": False, "rooted": False}
    try:
        signed = note.parse_checkpoint(note.verify(row.note, ports.sequencer.vkey))
        rooted = await root_of(uow, signed.size) == signed.root
    except Exception:  # whatever is wrong with them, they prove nothing
        return {"signature": False, "rooted": False}
    return {"signature": True, "rooted": rooted}


def _mandatory(record: Mapping[str, Any]) -> bool:
    """8.1.4.3 b: date and time, user, kind of event, success, and more."""
    return bool(
        record["t"] and record["tr"] and record["agents"] and record["agents"][0]["who"] and record["type"]["code"] and record["sub"]
    )


async def _privileges(uow: UnitOfWork[Any]) -> dict[str, Any]:
    kinds = ("UPDATE", "DELETE", "TRUNCATE")
    held = [kind for kind in kinds if (await uow.execute(text(f"SELECT has_table_privilege('entries', '{kind}')"))).scalar_one()]
    schemas = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$|public$)' AND nspname <> current_schema()"
    foreign = await uow.all(text(f"{schemas} AND has_schema_privilege(nspname, 'USAGE') ORDER BY 1"))
    superuser = (await uow.execute(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))).scalar_one()
    return {"writable": tuple(held), "foreign": tuple(row.nspname for row in foreign), "superuser": bool(superuser)}


def _plain(ports: Ports) -> tuple[str, ...]:
    """Connections of this service that anybody on the network could read."""
    settings = ports.settings
    found = []
    for name, url in (("nats", settings.nats_url), ("postgresql", settings.database_url), ("s3", settings.objects.s3_url)):
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "::1", "localhost", None)
        if not local and not (parts.scheme in ("tls", "https") or "ssl=verify-full" in parts.query):
            found.append(name)
    if settings.tls_certificate is None:
        found.append("door")
    return tuple(found)


async def _accounts(uow: UnitOfWork[Any]) -> dict[str, Any]:
    """From the log: who was made, by whom, with which roles, and how they signed in during the last 90 days."""
    wanted = select(facts.c.verb, entries).join(entries, entries.c.seq == facts.c.seq)
    made = wanted.where(facts.c.verb.in_(["user.create", "governance.bootstrap"]), facts.c.outcome == 0)
    records = [(row.verb, json.loads(row.body)) for row in await uow.all(made) if whole(row)]
    named = Counter(entity["id"] for _, record in records for entity in record["entities"] if entity["type"] == "user")
    both = sum(len(set(str(record["detail"].get("roles", "")).split(",")) & set(ADMINISTRATORS)) > 1 for _, record in records)
    opened = wanted.where(facts.c.verb == "session.open", facts.c.outcome == 0, facts.c.t > uow.now - timedelta(days=90))
    methods = Counter(_method(json.loads(row.body)["detail"]) for row in await uow.all(opened) if whole(row))
    return {
        "accounts": len(named),
        "doubled": sum(number > 1 for number in named.values()),
        "administrators": both,
        "bootstraps": sum(verb == "governance.bootstrap" for verb, _ in records),
        "nameless": sum(verb == "user.create" and not record["agents"][0]["who"].startswith("person:") for verb, record in records),
        "factors": methods,
    }


def _method(detail: Mapping[str, Any]) -> str:
    """How a sign-in was proven, as governance recorded it."""
    return str(detail.get("method") or ("password+otp" if detail.get("second_factor") else "password"))


async def _approvals(uow: UnitOfWork[Any]) -> dict[str, Any]:
    wanted = select(entries).join(facts, facts.c.seq == entries.c.seq)
    rows = await uow.all(wanted.where(facts.c.verb.in_(PRIVILEGED), facts.c.outcome == 0))
    with_approval = sum(whole(row) and bool(json.loads(row.body)["approval"].get("id")) for row in rows)
    return {"approved": with_approval, "unapproved": len(rows) - with_approval}


async def _programs(uow: UnitOfWork[Any]) -> dict[str, Any]:
    newest = select(func.max(facts.c.seq)).where(facts.c.verb == "program.verify").group_by(facts.c.service)
    rows = await uow.all(select(facts.c.service, facts.c.outcome).where(facts.c.seq.in_(newest)))
    return {
        "verified": frozenset(row.service for row in rows if row.outcome == 0),
        "unverified": frozenset(row.service for row in rows if row.outcome),
    }


async def _backups(uow: UnitOfWork[Any]) -> dict[str, Backup]:
    newest = select(func.max(facts.c.seq)).where(facts.c.verb.in_(BACKUPS)).group_by(facts.c.verb)
    rows = await uow.all(
        select(facts.c.verb, facts.c.t.label("when"), entries).join(entries, entries.c.seq == facts.c.seq).where(facts.c.seq.in_(newest))
    )
    found = {}
    for row in rows:
        record: dict[str, Any] = json.loads(row.body) if whole(row) else {"out": 12, "detail": {}}
        found[row.verb] = Backup((uow.now - row.when).days, record["out"], int(record["detail"].get("log_size", 0)))
    return found


async def _labels(uow: UnitOfWork[Any]) -> dict[str, Any]:
    """From the log: what was labelled anew and cleared, by whom, and which policies were put in force."""
    wanted = select(facts.c.verb, entries).join(entries, entries.c.seq == facts.c.seq)
    told = wanted.where(facts.c.verb.in_(["label.change", "clearance.set", "policy.change"]), facts.c.outcome == 0)
    records = [(row.verb, json.loads(row.body)) for row in await uow.all(told) if whole(row)]
    lowered = [bool(r["approval"].get("id")) for verb, r in records if verb == "label.change" and r["detail"].get("lowered")]
    by_others = sum(
        verb != "policy.change" and "security_administrator" not in r["agents"][0]["role"].split(",") and not r["approval"].get("id")
        for verb, r in records
    )
    adopted = {str(r["detail"]["bundle"]) for verb, r in records if verb == "policy.change" and r["approval"].get("id")}
    return {
        "lowered": sum(lowered),
        "laundered": len(lowered) - sum(lowered),
        "clearances": sum(verb == "clearance.set" for verb, _ in records),
        "ungranted": by_others,
        "adopted": frozenset({policy_digest(), *adopted}),
    }


def _silent(role: str) -> tuple[str, ...]:
    """Actions of an administrator that change something and are no verb of the audit vocabulary."""
    reading = (".read", ".list", ".proof", ".report")
    return tuple(
        sorted(action for action, roles in TABLE.items() if role in roles and not action.endswith(reading) and action not in VERBS)
    )


def report(found: Facts, clauses: Sequence[Clause] = CLAUSES) -> dict[str, Any]:
    """Every clause with its state and its proof in two languages."""
    made = []
    for clause in clauses:
        state_, en, zh = clause.judge(found)
        links = [f"/v1/events/{found.last[name]}" for name in clause.links if name in found.last]
        made.append(
            {
                "clause": clause.number,
                "item": {"en": clause.en, "zh": clause.zh},
                "state": state_,
                "proof": {"en": en, "zh": zh},
                "links": [*links, *clause.routes],
                "repeat": repeat(clause, state_),
            }
        )
    counts = Counter(one["state"] for one in made)
    return {"standard": "GB/T 22239-2019", "level": 3, "counts": {name: counts[name] for name in STATES}, "clauses": made}


def repeat(clause: Clause, state_: str) -> str:
    """The command by which an evaluator sees it again; empty where there is nothing a command could show."""
    if state_ == "procedural":
        return ""
    if "/log/checkpoint" in clause.routes:
        return "medmesh audit export COPY; medmesh audit verify export --key VKEY COPY"
    verbs = [name for name in clause.links if name in VERBS]
    return f"medmesh audit search --verb {verbs[0]}" if verbs else "medmesh audit mlps"


def dumps(document: Mapping[str, Any]) -> str:
    """As JSON."""
    return json.dumps(document, ensure_ascii=False)


def page(document: Mapping[str, Any], tongue: str) -> str:
    """A page to print."""
    place = 1 if tongue == "zh" else 0
    title = ("Evidence for MLPS Level 3", "网络安全等级保护三级 测评证据")[place]
    heads = (("Clause", "Requirement", "Finding", "Evidence", "Repeat with"), ("条款", "要求", "判定", "证据", "复核命令"))[place]
    rows = "".join(
        f"<tr class='{one['state']}'><td>{html.escape(one['clause'])}</td><td>{html.escape(one['item'][tongue])}</td>"
        f"<td>{STATES[one['state']][place]}</td><td>{html.escape(one['proof'][tongue])}"
        + "".join(f"<br><code>{html.escape(link)}</code>" for link in one["links"])
        + f"</td><td><code>{html.escape(one['repeat'])}</code></td></tr>"
        for one in document["clauses"]
    )
    counts = " · ".join(f"{STATES[name][place]} {number}" for name, number in document["counts"].items())
    return (
        f"<!doctype html><html lang='{tongue}'><meta charset='utf-8'><title>{title}</title>"
        "<style>body{font:13px system-ui;margin:2em}table{border-collapse:collapse;width:100%}td,th{border:1px solid #999;"
        "padding:.3em .5em;text-align:left;vertical-align:top}"
        "tr{break-inside:avoid}.not_met td:nth-child(3){font-weight:bold}@page{size:A4 landscape}</style>"
        f"<h1>{title}</h1><p>{html.escape(document['standard'])} · {counts}</p>"
        f"<table><thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>{rows}</tbody></table></html>"
    )

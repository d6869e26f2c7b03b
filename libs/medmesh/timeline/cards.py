"""The data card of a project's timelines, after YY/T 1833.2-2022 (data sets for medical AI devices): where the data are from, how
diverse they are, of what quality and how balanced. All of it is counted from the records when it is asked for, nothing is written by hand.

Counts of patients below the smallest that may be told are hidden, and with one of a table another one, so that no sum tells it.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import func, select

from medmesh.contracts.ingestion import SMALL_CELL
from medmesh.store.unit import UnitOfWork
from medmesh.timeline import cohorts
from medmesh.timeline.events import BIRTH, DEATH, Event
from medmesh.timeline.records import Vault, stream
from medmesh.timeline.tables import cohorts as saved
from medmesh.timeline.tables import events
from medmesh.timeline.terms import LOCAL

AGES = (18, 45, 65, 80)
_YEAR = timedelta(days=365.25)
_TOP = 10


@dataclass
class Facts:
    """What was counted; Counters named `patients_*` are of patients, the others of events."""

    project: str
    at: datetime
    patients: int = 0
    events: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    consents: Counter[str] = field(default_factory=Counter)
    revisions: int = 0
    withdrawn: int = 0
    patients_sex: Counter[str] = field(default_factory=Counter)
    patients_age: Counter[str] = field(default_factory=Counter)
    patients_modality: Counter[str] = field(default_factory=Counter)
    patients_code: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    precision: Counter[str] = field(default_factory=Counter)
    days: list[int] = field(default_factory=list)
    without_unit: int = 0
    uncoded: int = 0
    before_birth: int = 0
    after_death: int = 0
    cohorts: list[dict[str, Any]] = field(default_factory=list)


async def gather(uow: UnitOfWork[Any], project: str, vault: Vault) -> Facts:
    """Count. No text is opened."""
    facts = Facts(project, uow.now)
    number = func.count().label("number")
    for row in await uow.all(select(events.c.source, number).where(events.c.project == project).group_by(events.c.source)):
        facts.sources[row.source] = row.number
    told: Any = select(events.c.withdrawn, (events.c.revision > 1).label("later"), number).where(events.c.project == project)
    for row in await uow.all(told.group_by(events.c.withdrawn, events.c.revision > 1)):
        facts.withdrawn += row.number if row.withdrawn else 0
        facts.revisions += row.number if row.later and not row.withdrawn else 0
    async for _, timeline in stream(uow, project, vault, texts=False):
        _count(facts, timeline)
    names = await uow.all(select(saved.c.name).where(saved.c.project == project).distinct().order_by(saved.c.name))
    for row in names:
        definition, version = await cohorts.load(uow, project, row.name)
        facts.cohorts.append((await cohorts.answer(uow, project, definition, version, vault)).told())
    return facts


def _count(facts: Facts, timeline: Sequence[Event]) -> None:
    facts.patients += 1
    facts.events += len(timeline)
    born = next((one.time for one in timeline if one.code == BIRTH and one.time), None)
    died = next((one.time for one in timeline if one.code == DEATH and one.time), None)
    timed = [one for one in timeline if one.time is not None and one.code != BIRTH]
    times = [one.time for one in timed if one.time]
    if times:
        facts.days.append((times[-1] - times[0]).days)
        facts.patients_age[_age(born, times[0])] += 1
    else:
        facts.patients_age["?"] += 1
    facts.patients_sex[next((one.code.partition("//")[2] for one in timeline if one.code.startswith("GENDER//")), "?")] += 1
    facts.patients_modality.update({one.modality for one in timeline if one.modality})
    facts.patients_code.update({one.code for one in timed if one.code_system})
    for one in timeline:
        facts.kinds[one.code.partition("//")[0]] += 1
        facts.consents[one.consent_id or "?"] += 1
        facts.uncoded += one.code_system in LOCAL
        facts.without_unit += one.numeric_value is not None and one.unit is None
    for one in timed:
        facts.precision[one.time_precision or "?"] += 1
        facts.before_birth += born is not None and one.time is not None and one.time + timedelta(days=1) <= born
        # What is written of somebody within a month of death is of before: coding, reports.
        facts.after_death += died is not None and one.time is not None and one.time > died + timedelta(days=31)


def _age(born: datetime | None, at: datetime) -> str:
    if born is None or at < born:
        return "?"
    years = int((at - born) / _YEAR)
    lower = max((age for age in AGES if age <= years), default=0)
    upper = min((age for age in AGES if age > years), default=0)
    return f"{lower}-{upper - 1}" if upper else f"{lower}+"


def told(counted: Mapping[str, int]) -> dict[str, str]:
    """Counts of patients as they may be told: a small one is hidden, and where only one is, the next smallest with it."""
    small = {name for name, count in counted.items() if 0 < count < SMALL_CELL}
    if len(small) == 1 and len(counted) > 1:
        small.add(min((name for name in counted if name not in small), key=lambda name: (counted[name], name)))
    return {name: "—" if name in small else str(count) for name, count in counted.items()}


Table = tuple[str, list[tuple[str, str]]]
_WORDS = {
    "title": ("Data card", "数据集说明卡"),
    "sources": ("Sources", "数据来源"),
    "diversity": ("Diversity", "数据多样性"),
    "quality": ("Quality", "数据质量"),
    "balance": ("Balance", "数据均衡性"),
    "project": ("Project", "项目"),
    "at": ("Counted at", "统计时间"),
    "patients": ("Patients", "患者数"),
    "events": ("Events", "事件数"),
    "by_source": ("Events told, by source", "各来源事件数"),
    "consents": ("Events by consent", "各伦理批件或知情同意下的事件数"),
    "days": ("Days observed per patient, median", "每名患者观察天数（中位数）"),
    "sex": ("Patients by sex", "患者性别"),
    "age": ("Patients by age at the first event", "首次事件时年龄（岁）"),
    "modality": ("Patients by kind of data", "各数据类型的患者数"),
    "kinds": ("Events by kind", "各类事件数"),
    "codes": ("Patients by code, the most frequent", "最常见编码的患者数"),
    "checks": ("Checks", "检查项"),
    "precision": ("Events by precision of time", "时间精度"),
    "revisions": ("Corrected later", "事后更正"),
    "withdrawn": ("Withdrawn", "已撤回"),
    "without_unit": ("Numbers without a unit", "数值缺少单位"),
    "uncoded": ("Under local codes", "使用本地编码"),
    "before_birth": ("Before birth", "早于出生"),
    "after_death": ("More than a month after death", "死亡一个月之后"),
    "cohorts": ("Cohort", "队列"),
    "hidden": (
        f"— stands for a count that is not told: below {SMALL_CELL}, or one that would tell such a one.",
        f"— 表示不公布的计数：小于 {SMALL_CELL}，或可据以推算出小计数。",
    ),
    "none": ("none saved", "未定义"),
    "?": ("not known", "未知"),
}


def sections(facts: Facts, language: str) -> list[tuple[str, list[Table]]]:
    """(heading, tables of (name, rows)) of the card."""

    def word(name: str) -> str:
        return _WORDS[name][language == "zh"]

    def rows(counted: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [(word(name) if name in _WORDS else name, str(value)) for name, value in counted.items()]

    overview = {
        "project": facts.project,
        "at": f"{facts.at:%Y-%m-%d %H:%M} UTC",
        **told({"patients": facts.patients}),
        "events": facts.events,
    }
    overview |= {"days": int(median(facts.days)) if facts.days and facts.patients >= SMALL_CELL else "—"}
    checks = {name: getattr(facts, name) for name in ("revisions", "withdrawn", "without_unit", "uncoded", "before_birth", "after_death")}
    top = dict(facts.patients_code.most_common(_TOP))
    balance = [
        (
            f"{word('cohorts')} {one['cohort']} v{one['version']}",
            rows({k: "—" if v is None else v for k, v in one.items() if k not in ("cohort", "version")}),
        )
        for one in facts.cohorts
    ]
    return [
        (
            word("sources"),
            [(word("title"), rows(overview)), (word("by_source"), rows(facts.sources)), (word("consents"), rows(facts.consents))],
        ),
        (
            word("diversity"),
            [
                (word("sex"), rows(told(dict(sorted(facts.patients_sex.items()))))),
                (word("age"), rows(told(dict(sorted(facts.patients_age.items()))))),
                (word("modality"), rows(told(dict(sorted(facts.patients_modality.items()))))),
                (word("kinds"), rows(dict(sorted(facts.kinds.items())))),
                (word("codes"), rows({name: count if count >= SMALL_CELL else "—" for name, count in top.items()})),
            ],
        ),
        (word("quality"), [(word("checks"), rows(checks)), (word("precision"), rows(dict(sorted(facts.precision.items()))))]),
        (word("balance"), balance or [(word("cohorts"), [(word("none"), "")])]),
    ]


def markdown(facts: Facts, language: str = "en") -> str:
    """The card as Markdown."""
    lines = [f"# {_WORDS['title'][language == 'zh']}: {facts.project}", "", "YY/T 1833.2-2022", ""]
    for heading, tables in sections(facts, language):
        lines += [f"## {heading}", ""]
        for name, rows in tables:
            lines += [f"| {_cell(name)} | |", "|---|---|", *(f"| {_cell(label)} | {_cell(value)} |" for label, value in rows), ""]
    return "\n".join([*lines, _WORDS["hidden"][language == "zh"], ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def page(facts: Facts, language: str = "en") -> str:
    """The card as one HTML file that needs nothing else."""
    title = html.escape(f"{_WORDS['title'][language == 'zh']}: {facts.project}")
    parts = [f'<!doctype html><html lang="{"zh-CN" if language == "zh" else "en"}"><meta charset="utf-8"><title>{title}</title>']
    parts.append("<style>body{font:16px sans-serif;max-width:50rem;margin:2rem auto}table{border-collapse:collapse;margin:1rem 0}")
    parts.append("td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}</style>")
    parts.append(f"<h1>{title}</h1><p>YY/T 1833.2-2022</p>")
    for heading, tables in sections(facts, language):
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        for name, rows in tables:
            cells = "".join(f"<tr><td>{html.escape(label)}</td><td>{html.escape(value)}</td></tr>" for label, value in rows)
            parts.append(f'<table><tr><th colspan="2">{html.escape(name)}</th></tr>{cells}</table>')
    parts.append(f"<p>{html.escape(_WORDS['hidden'][language == 'zh'])}</p></html>")
    return "\n".join(parts)

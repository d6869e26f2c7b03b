"""What an importer is: it recognises a layout, plans, and streams items.

An importer implements `sniff` and `read`. `plan` and `items` follow from `read`: a plan counts what is read and collects what is amiss,
`items` stops at the first error. So what the plan said is what the import does.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, Literal, Protocol

from medmesh.canonical import canonical, spell
from medmesh.errors import Problem

Kind = Literal["image", "volume", "mask", "signal", "audio", "table", "text", "question", "events"]
Severity = Literal["error", "warning", "note"]
ColumnKind = Literal["patient", "identifier", "code", "whole", "number", "time", "text", "vocabulary"]
Label = str | int | float | bool | tuple[str, ...]

SHOWN = 20
"""Findings of one code that a plan repeats; the rest is counted."""
TICK = 1_000
MAX_VALUES = 300
"""Different values of one label that a plan counts: one with more is no class."""


class Source(Protocol):
    """Files under names, read-only. A name is relative, NFC, with `/` between its parts, and leads nowhere else."""

    @property
    def name(self) -> str:
        """Of the folder or file itself, for people."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of every file, sorted; litter that desktops add is left out."""

    def size(self, name: str) -> int:
        """Bytes. Raises `KeyError` for a name that is not there."""

    def open(self, name: str) -> BinaryIO:
        """The bytes from the start on, streamed. Raises `Problem` (`importing.unreadable`) where reading meets damage, `KeyError`."""

    def close(self) -> None:
        """Give back what opening took."""


class Part:
    """Some files of a source."""

    def __init__(self, source: Source, names: Iterable[str]) -> None:
        self._source = source
        self.name = source.name
        self.names = tuple(names)

    def size(self, name: str) -> int:
        return self._source.size(name)

    def open(self, name: str) -> BinaryIO:
        return self._source.open(name)

    def close(self) -> None:
        """It is the source's own."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of the source and what it is to an item: `image`, `mask`, `label`, ...; `part` names the piece of it (`train_images[7]`)."""

    name: str
    role: str
    part: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to learn from or to look up.

    `key` is stable: the path, or `path#row` (rows count from 1, a header not counted). `patient` is the source's own identifier; `group`
    is what must stay on one side of a split where no patient is known. `split` is as published (`train`, `val`, `test`, or its own word).
    `labels` are classes, counted by the plan; texts and everything else stand in `meta`, JSON values only. `missing` names roles that the
    set does not ship (`image`): the item waits for them. `pictures` are those that a question or a text is about: by a name that is the
    same whether it is shipped or not, with its file where it is.
    """

    key: str
    kind: Kind
    files: tuple[File, ...] = ()
    patient: str | None = None
    group: str | None = None
    split: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    pictures: tuple[tuple[str, File | None], ...] = ()

    @property
    def unit(self) -> str | None:
        """What a split must not tear apart."""
        return self.patient if self.patient is not None else self.group


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table that may be kept, and how: a `patient` or another `identifier` as pseudonym, a `time` moved back by the
    patient's days, a `text` by the rules for free text, a `vocabulary` (a published list of terms) too, but with what they only doubt,
    numbers as they are."""

    name: str
    kind: ColumnKind


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a person should know of a source: a code of the catalogue, and where. `line` counts from 1 as editors do."""

    code: str
    severity: Severity
    file: str = ""
    line: int | None = None
    key: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """`file:line` or `file[key]`."""
        return self.file + (f":{self.line}" if self.line is not None else "") + (f"[{self.key}]" if self.key is not None else "")

    def problem(self) -> Problem:
        """The finding as an error."""
        return Problem(self.code, place=self.place, **self.params)

    def document(self, language: str = "en") -> dict[str, Any]:
        """JSON for people and programs."""
        said = self.problem()
        where = {name: value for name, value in (("file", self.file), ("line", self.line), ("key", self.key)) if value not in (None, "")}
        return {"code": self.code, "severity": self.severity, **where, "params": dict(self.params), "detail": said.detail(language)}


class Report:
    """What an importer says while it reads. `strict` raises an error where it is found; else all are collected."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.findings: list[Finding] = []
        self.seen: Counter[str] = Counter()
        self.severities: Counter[Severity] = Counter()
        self.meanings: dict[str, dict[str, str]] = {}
        self.licence: str | None = None

    def error(self, code: str, file: str, *, line: int | None = None, key: str | None = None, **params: Any) -> None:
        """Something the import cannot go past. Raises `Problem` when strict."""
        self._add(Finding(code, "error", file, line, key, params))

    def warning(self, code: str, file: str = "", *, line: int | None = None, key: str | None = None, **params: Any) -> None:
        """Something that is imported all the same, and that a person must judge."""
        self._add(Finding(code, "warning", file, line, key, params))

    def note(self, code: str, file: str = "", *, line: int | None = None, key: str | None = None, **params: Any) -> None:
        """Something good to know."""
        self._add(Finding(code, "note", file, line, key, params))

    def stopped(self, problem: Problem) -> None:
        """A `Problem` that ended the reading. Raises it again unless it says where (`place`)."""
        params = dict(problem.params)
        if "place" not in params:
            raise problem
        self._add(Finding(problem.code, "error", str(params.pop("place")), params=params))

    def means(self, label: str, meanings: Mapping[Any, str]) -> None:
        """What the values of a label, or of a mask's voxels, stand for."""
        self.meanings.setdefault(label, {}).update({str(value): name for value, name in meanings.items()})

    def _add(self, finding: Finding) -> None:
        if self.strict and finding.severity == "error":
            raise finding.problem()
        self.seen[finding.code] += 1
        self.severities[finding.severity] += 1
        if self.seen[finding.code] <= SHOWN:
            self.findings.append(finding)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an import would bring. `counts` is by (kind, split or ""), `labels` by label, value and split; nothing was written.

    `units` counts patients or groups, `pending` items that wait for a file the set does not ship, `manifest` is the SHA-256 over every item
    and the sizes of its files (not over pixels): the same manifest is the same import. `more` counts the findings left out, by code.
    """

    importer: str
    title: str
    licence: str
    items: int
    bytes: int
    units: int
    pending: int
    counts: Mapping[tuple[Kind, str], int]
    labels: Mapping[str, Mapping[str, Mapping[str, int]]]
    meanings: Mapping[str, Mapping[str, str]]
    findings: tuple[Finding, ...]
    errors: int
    more: Mapping[str, int]
    manifest: str

    def document(self, language: str = "en") -> dict[str, Any]:
        """JSON of the whole."""
        return {
            "importer": self.importer,
            "title": self.title,
            "licence": self.licence,
            "items": self.items,
            "bytes": self.bytes,
            "units": self.units,
            "pending": self.pending,
            "counts": [{"kind": kind, "split": split or None, "items": count} for (kind, split), count in self.counts.items()],
            "labels": {name: {value: dict(by) for value, by in values.items()} for name, values in self.labels.items()},
            "meanings": {name: dict(values) for name, values in self.meanings.items()},
            "errors": self.errors,
            "findings": [finding.document(language) for finding in self.findings],
            "more": dict(self.more),
            "manifest": self.manifest,
        }


class Importer(ABC):
    """One layout. `name` is stable and lower case; `looked_for` says in a few words by what the layout is known."""

    name: ClassVar[str]
    title: ClassVar[str]
    licence: ClassVar[str]
    looked_for: ClassVar[str]
    target: ClassVar[str] = ""
    """The label that the set is about, where there is one class an item."""
    meant: ClassVar[tuple[str, ...]] = ()
    """Rules of quality (`medmesh.quality.rules`) that the set breaks on purpose."""
    texts: ClassVar[Mapping[str, str]] = {}
    """Which of `Item.meta` are texts that may be kept, by rules for free text, and as what: nothing else of it is."""
    same_side: ClassVar[Mapping[str, str]] = {}
    """A published split that is a part of another one (`test_clean`: `test`): units in both are not torn."""

    @abstractmethod
    def sniff(self, source: Source) -> float:
        """How surely this is the layout, 0..1, from names and first bytes alone: a published set 0.9 to 1, a file format at most 0.5."""

    @abstractmethod
    def read(self, source: Source, report: Report) -> Iterator[Item]:
        """Every item, in an order that depends on the source alone; faults go to `report`, and reading goes on where it can."""

    def columns(self, table: str) -> tuple[Column, ...]:
        """What may be kept of the rows of a table (`Item.labels["table"]`), whose cells are `Item.meta`; nothing, where the layout does not
        say it. The column of kind `patient` becomes a pseudonym."""
        return ()

    def check(self, tally: Tally, report: Report) -> None:  # noqa: B027
        """Compare what was read with what is published; findings go to `report`."""

    def plan(self, source: Source, tick: Callable[[int], None] = lambda items: None) -> Plan:
        """What `items` would give. A fault in a file is a finding with its file and line or key, and no exception.

        `tick` is called with the number of items read so far, every `TICK` of them.
        """
        report, tally = Report(), Tally(source, self.same_side)
        try:
            for item in self.read(source, report):
                tally.add(item)
                if tally.items % TICK == 0:
                    tick(tally.items)
        except Problem as problem:  # damage in the middle of a file: there is nothing to go on with
            report.stopped(problem)
        self.check(tally, report)
        if torn := tally.torn:
            report.warning("importing.leak", source.name, units=torn, of=len(tally.splits))
        if tally.pending:
            report.note("importing.pending", source.name, items=tally.pending)
        if not tally.items and not report.severities["error"]:
            report.error("importing.empty", source.name)
        more = {code: seen - SHOWN for code, seen in sorted(report.seen.items()) if seen > SHOWN}
        return Plan(
            importer=self.name,
            title=self.title,
            licence=report.licence or self.licence,
            items=tally.items,
            bytes=tally.bytes,
            units=len(tally.splits),
            pending=tally.pending,
            counts=dict(sorted(tally.counts.items())),
            labels=tally.classes(),
            meanings=report.meanings,
            findings=tuple(report.findings),
            errors=report.severities["error"],
            more=more,
            manifest=tally.manifest(self.name),
        )

    def items(self, source: Source) -> Iterator[Item]:
        """Every item, in constant memory. Raises `Problem` at the first error."""
        return self.read(source, Report(strict=True))


class Tally:
    """Counts over items; what it keeps grows with patients, classes and files, never with rows."""

    def __init__(self, source: Source, same_side: Mapping[str, str]) -> None:
        self.source = source
        self._same_side = same_side
        self._digest = hashlib.sha256()
        self._files: set[str] = set()
        self._bits: dict[str, int] = {}
        self._labels: dict[str, dict[str, Counter[str]] | None] = {}
        self.items = self.bytes = self.pending = 0
        self.counts: Counter[tuple[Kind, str]] = Counter()
        self.splits: dict[bytes, int] = {}
        """Unit (hashed) to the splits it stands in, a bit each."""

    def add(self, item: Item) -> None:
        split = item.split or ""
        self.items += 1
        self.pending += bool(item.missing)
        self.counts[(item.kind, split)] += 1
        for file in item.files:
            if file.name not in self._files:
                self._files.add(file.name)
                self.bytes += self.source.size(file.name)
        if (unit := item.unit) is not None:
            short = hashlib.blake2b(unit.encode(), digest_size=8).digest()
            self.splits[short] = self.splits.get(short, 0) | self._bit(item.split)
        for name, label in item.labels.items():
            self._count(name, label, split)
        self._digest.update(spell(_record(item)).encode() + b"\n")

    def _bit(self, split: str | None) -> int:
        side = self._same_side.get(split or "", split)
        return 0 if side is None else self._bits.setdefault(side, 1 << len(self._bits))

    def _count(self, name: str, label: Label, split: str) -> None:
        values = self._labels.setdefault(name, {})
        if values is None:
            return
        for value in label if isinstance(label, tuple) else (label,):
            values.setdefault(str(value), Counter())[split] += 1
        if len(values) > MAX_VALUES:
            self._labels[name] = None

    def total(self, *, kind: Kind | None = None, split: str | None = None) -> int:
        """Items of a kind, of a split, or both."""
        return sum(count for (k, s), count in self.counts.items() if kind in (None, k) and split in (None, s))

    @property
    def torn(self) -> int:
        """Units that stand in more than one split."""
        return sum(bits.bit_count() > 1 for bits in self.splits.values())

    def classes(self) -> dict[str, dict[str, dict[str, int]]]:
        """Items by label, value and split; a label with too many values is left out."""
        return {
            name: {value: dict(sorted(by.items())) for value, by in sorted(values.items())}
            for name, values in sorted(self._labels.items())
            if values is not None
        }

    def manifest(self, importer: str) -> str:
        """SHA-256 over the items in their order and the sizes of the files they name."""
        sizes = {name: self.source.size(name) for name in sorted(self._files)}
        return hashlib.sha256(canonical({"importer": importer, "items": self._digest.hexdigest(), "files": sizes})).hexdigest()


def _record(item: Item) -> list[Any]:
    """What makes an item what it is; read by nobody but the hash."""
    files = [[file.name, file.role, file.part] for file in item.files]
    return [item.key, item.kind, files, item.patient, item.group, item.split, dict(item.labels), dict(item.meta), item.missing]

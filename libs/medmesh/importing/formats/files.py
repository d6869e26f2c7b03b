"""Any folder or archive of files in known formats: what each is by its content, one item for each, or for each row of a table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from posixpath import basename, dirname, splitext
from typing import Any

from medmesh.errors import Problem
from medmesh.importing.formats import FORMATS, cleaned, found, proved, tables, wfdb
from medmesh.importing.formats.content import START, THIS, Content, Format, is_gzip
from medmesh.importing.port import File, Importer, Item, Kind, Report, Source

_LOOKED_AT = 64
_ABOUT = ("columns.toml", "vouched.txt")
"""What is said of the others."""
_PATIENT = re.compile(r"(?:^|/)sub-([0-9A-Za-z]+)(?=[/_])")  # BIDS 1.10, "Subjects"
_ANNOTATIONS = (".atr", ".ann", ".qrs", ".ecg", ".ari", ".man", ".st", ".apn", ".rdt", ".q1c", ".pu", ".event")


@dataclass(frozen=True, slots=True)
class Known:
    """A file whose format was found."""

    name: str
    form: Format
    content: Content


class Files(Importer):
    """See the module."""

    name = "files"
    title = "Files by content"
    licence = ""
    looked_for = "DICOM, NIfTI, NumPy, PNG, JPEG, WFDB, EDF, BDF, WAV, CSV and VCF files"

    def sniff(self, source: Source) -> float:
        """At most 0.4: any published layout of such files is surer; tables alone 0.25."""
        known, seen, sure = 0, 0, 0.25
        for name in source.names[:_LOOKED_AT]:
            form = _form(source, name)
            if basename(name) in _ABOUT or (form is None and name.lower().endswith((".dat", *_ANNOTATIONS))):
                continue
            seen += 1
            known += form is not None
            if form is not None and form.name != "csv":
                sure = 0.4
        return sure * known / seen if seen else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        """Items in the order of the names."""
        names, parts = set(source.names), _parts(source)
        for name in source.names:
            if name in parts or basename(name) in _ABOUT:
                continue
            try:
                form = _form(source, name)
                if form is None:
                    report.warning("formats.unknown", name)
                    continue
                with source.open(name) as file:
                    known = Known(name, form, form.describe(file, source.size(name)))
            except Problem as problem:
                _amiss(report, name, problem)
                continue
            _said(report, known)
            yield from _items(source, names, known, report)


def taken(source: Source, item: Item) -> dict[str, bytes]:
    """The files of an item without identity, each read again to prove it. Raises `Problem` as `formats.cleaned` does; rows of a table need
    none: their values stand in the item already."""
    made = {}
    for file in item.files:
        with source.open(file.name) as opened:
            data = opened.read()
        if file.role == "signal" and item.meta.get("format") == "wfdb":
            begins = int(item.meta["offsets"].get(file.name, 0))
            made[file.name] = bytes(min(begins, len(data))) + data[begins:]
        elif file.role == "annotation":
            made[file.name] = wfdb.clean_annotations(data)
        else:
            try:
                made[file.name] = cleaned(data)[2]
            except Problem as problem:
                raise Problem(problem.code, **problem.params | {"place": file.name}) from None
    return made


def without_identity(source: Source) -> Iterator[tuple[str, dict[str, bytes] | Problem]]:
    """Each file of a source (a WFDB record is one) and what it becomes: files by new names that say nothing, or why it is left out."""
    for name, parts in together(source):
        try:
            if isinstance(parts, Problem):
                raise parts
            data = next(iter(parts.values()))
            if found(data[:START]) is wfdb.WFDB:
                yield name, _named_by_content(data, {own: part for own, part in parts.items() if part is not data})
                continue
            form, _, made = cleaned(data)
            ending = form.names[-1 if is_gzip(data) and len(form.names) > 1 else 0]
            yield name, {hashlib.sha256(made).hexdigest()[:32] + ending: made}
        except Problem as problem:
            problem.params["place"] = name
            yield name, problem


def together(source: Source) -> Iterator[tuple[str, dict[str, bytes] | Problem]]:
    """Each item's file by name, with the bytes of all that belong to it: of a WFDB record the header first, then signals and annotations
    by their names beside it. Or why they cannot be read."""
    parts, names = _parts(source), frozenset(source.names)
    for name in source.names:
        if name in parts:
            continue
        try:
            with source.open(name) as file:
                data = file.read()
            yield name, {basename(name): data} | (_beside(source, names, name, data) if found(data[:START]) is wfdb.WFDB else {})
        except Problem as problem:
            yield name, problem
        except OSError:
            yield name, Problem("intake.unreadable")


def _beside(source: Source, names: frozenset[str], name: str, data: bytes) -> dict[str, bytes]:
    within, made = dirname(name), {}
    own = wfdb.read_header(data).files
    for other in (*own, *(basename(splitext(name)[0]) + ending for ending in _ANNOTATIONS)):
        path = f"{within}/{other}".lstrip("/")
        if path in names:
            with source.open(path) as file:
                made[other] = file.read()
        elif other in own:
            raise Problem("formats.missing_file", place=name, reference=other)
    return made


def nameless_record(data: bytes, beside: Mapping[str, bytes], stem: str) -> dict[str, bytes]:
    """A WFDB record (its header and what lies beside it by name) under a new name without identity, the header first: its own name is in
    its header, and a patient's, often. Raises `Problem` (`formats.*`)."""
    header = wfdb.read_header(data)
    begins = {signal.file: signal.offset for signal in header.signals}
    if missing := [name for name in header.files if name not in beside]:
        raise Problem("formats.missing_file", place=THIS, reference=missing[0])
    named, files = wfdb.renamed(data, stem)
    made = {f"{stem}.hea": proved(wfdb.WFDB, data, wfdb.clean(named))}
    for old, new in files.items():
        made[new] = bytes(min(begins[old], len(beside[old]))) + beside[old][begins[old] :]
    for name, part in beside.items():
        if name not in files:
            made[stem + splitext(name)[1]] = wfdb.clean_annotations(part)
    return made


def _named_by_content(data: bytes, beside: Mapping[str, bytes]) -> dict[str, bytes]:
    made = nameless_record(data, beside, "record")
    signals = [part for name, part in made.items() if name.endswith(".dat")]
    stem = hashlib.sha256(b"".join((made["record.hea"], *signals))).hexdigest()[:32]
    return nameless_record(data, beside, stem)


def _form(source: Source, name: str) -> Format | None:
    with source.open(name) as file:
        return found(file.read(START))


def _items(source: Source, names: set[str], known: Known, report: Report) -> Iterator[Item]:
    name, content = known.name, known.content
    kind: Kind = content.kind  # type: ignore[assignment]
    meta: dict[str, Any] = {"format": known.form.name, **content.meta}
    match = _PATIENT.search(name)
    patient = match[1] if match else None
    if known.form.name == "csv":
        yield from _rows(source, name, report)
    elif known.form.name == "wfdb":
        yield from _record(source, names, known, meta, patient, report)
    elif known.form.name == "vcf" and content.meta["samples"]:
        for number in range(1, int(content.meta["samples"]) + 1):
            yield Item(f"{name}#{number}", kind, (File(name, "genotype", f"S{number}"),), patient, group=name, meta=meta)
    elif content.meta.get("directory"):
        within = dirname(name)
        there = {one.lower() for one in names}  # media were written in capitals, and read on systems that differ
        for reference in content.meta["refers"]:
            if f"{within}/{reference}".lstrip("/").lower() not in there:
                report.warning("formats.missing_file", name, reference=reference)
    else:
        yield Item(name, kind, (File(name, kind),), patient, labels=dict(content.labels), meta=meta)


def _rows(source: Source, name: str, report: Report) -> Iterator[Item]:
    with source.open(name) as file:
        table = tables.read(file)
        kept = [(place, column.name) for place, column in enumerate(table.columns) if not column.identifying]
        for number, line, fields in tables.rows(file, table.dialect):
            if len(fields) != len(table.columns):
                report.error("formats.damaged", name, line=line, where=f"row {number}", reason="other columns than the header's")
                continue
            values = {column: fields[place] for place, column in kept}
            yield Item(f"{name}#{number}", "table", (File(name, "table", str(number)),), meta={"format": "csv", "values": values})


def _record(source: Source, names: set[str], known: Known, meta: dict[str, Any], patient: str | None, report: Report) -> Iterator[Item]:
    with source.open(known.name) as file:
        header = wfdb.read_header(file.read())
    within = dirname(known.name)
    files, offsets = [File(known.name, "header")], {}
    for own in header.files:
        path = f"{within}/{own}".lstrip("/")
        if path not in names:
            report.error("formats.missing_file", known.name, reference=own)
            return
        signals = [signal for signal in header.signals if signal.file == own]
        if wfdb.available(signals[0], source.size(path)) < header.samples * sum(signal.times for signal in signals):
            report.error("formats.damaged", path, where="a signal file", reason="it ends before the last sample")
            return
        offsets[path] = signals[0].offset
        files.append(File(path, "signal"))
    stem = splitext(known.name)[0]
    files += [File(stem + ending, "annotation") for ending in _ANNOTATIONS if stem + ending in names]
    labels = dict(known.content.labels)
    yield Item(known.name, "signal", tuple(files), patient, labels=labels, meta={**meta, "offsets": offsets})


def _parts(source: Source) -> set[str]:
    """Files that are part of a WFDB record: they are no items of their own, and have no magic."""
    made: set[str] = set()
    for name in source.names:
        if not name.lower().endswith(".hea"):
            continue
        with source.open(name) as file:
            data = file.read(START)
        try:
            if found(data) is not wfdb.WFDB:
                continue
            with source.open(name) as file:
                header = wfdb.read_header(file.read())
        except Problem:
            continue  # said when its turn comes
        made |= {f"{dirname(name)}/{own}".lstrip("/") for own in header.files}
        made |= {splitext(name)[0] + ending for ending in _ANNOTATIONS}
    return made


def _said(report: Report, known: Known) -> None:
    ending = known.name.lower()
    others = {name for form in FORMATS if form is not known.form for name in form.names}
    if ending.endswith(tuple(others)) and not ending.endswith(known.form.names):
        report.note("formats.renamed", known.name, format=known.form.name)
    if known.content.identity and known.form.name != "dicom":
        fields = ", ".join(dict.fromkeys(name for name, _ in known.content.identity))
        report.note("formats.carries_identity", known.name, fields=fields)


def _amiss(report: Report, name: str, problem: Problem) -> None:
    line = problem.params.pop("line", None)
    problem.params["place"] = name if line is None else f"{name}:{line}"
    report.stopped(problem)

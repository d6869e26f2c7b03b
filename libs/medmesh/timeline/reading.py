"""What the readers share: finding files by content, saying what is amiss with its place, rows of CSV files.

A reader recognises its source (`sniff`) and yields drafts and merges one after the other (`read`); what it cannot read is an error in the
report, with the file and the line or key, and reading goes on.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import IO, Protocol

from medmesh.errors import Problem
from medmesh.importing.port import Report, Source
from medmesh.timeline.events import CHINA, Draft, Merge, Precision, parse_time

LONGEST_LINE = 8 << 20
LARGEST_FLOAT32 = 3.4028234e38
_GZIP = b"\x1f\x8b"


@dataclass
class Reading:
    """One reading of a source: where faults go, the hospital's zone, and what was left out, by kind."""

    report: Report
    zone: tzinfo = CHINA
    left_out: Counter[str] = field(default_factory=Counter)

    def time(self, text: str, place: Place, name: str) -> tuple[datetime | None, Precision | None]:
        """A time in ISO 8601, or (None, None): empty, or wrong and reported."""
        return self.parsed(text, place, name, parse_time)

    def parsed(
        self, text: str, place: Place, name: str, parse: Callable[[str, tzinfo], tuple[datetime, Precision]]
    ) -> tuple[datetime | None, Precision | None]:
        """The same by another grammar."""
        if not text.strip():
            return None, None
        try:
            return parse(text, self.zone)
        except (ValueError, OverflowError):
            place.error(self.report, "timeline.bad_time", field=name)
            return None, None


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a source something stands."""

    file: str
    line: int | None = None
    key: str | None = None

    def error(self, to: Report, code: str, **params: object) -> None:
        """Say that something is wrong here."""
        to.error(code, self.file, line=self.line, key=self.key, **params)


class Reader(Protocol):
    """One format or layout; a module is one."""

    NAME: str

    def sniff(self, source: Source) -> float:
        """How surely it is this reader's, 0..1."""

    def read(self, source: Source, reading: Reading) -> Iterator[Draft | Merge]:
        """Every event, in constant memory but for what is said of patients."""


def number(text: str) -> float | None:
    """A finite number that a float32 can hold, or None."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) and abs(found) <= LARGEST_FLOAT32 and "_" not in text else None


@contextmanager
def opened(source: Source, name: str) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked where it is a gzip."""
    with source.open(name) as file:
        packed = file.read(2) == _GZIP
    with source.open(name) as file:
        if packed:
            with gzip.GzipFile(fileobj=file) as plain:
                yield plain  # type: ignore[misc]
        else:
            yield file


def start(source: Source, name: str, size: int = 4096) -> bytes:
    """The first bytes of a file, unpacked."""
    try:
        with opened(source, name) as file:
            return file.read(size)
    except (OSError, EOFError, zlib.error, Problem):
        return b""


def lines(source: Source, name: str, report: Report) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end). A line that is too long is an error; damage ends the file with one."""
    count = 0
    try:
        with opened(source, name) as file:
            while line := file.readline(LONGEST_LINE + 1):
                count += 1
                if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    report.error("timeline.too_long", name, line=count, limit=LONGEST_LINE)
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LONGEST_LINE)
                    continue
                yield count, line.rstrip(b"\r\n")
    except Problem as problem:
        report.stopped(problem)
    except (OSError, EOFError, zlib.error):
        report.error("importing.unreadable", name, reason="it ends in the middle")


def encoding(source: Source, name: str) -> str:
    """UTF-8, or GB18030 where its first mebibyte is none."""
    head = start(source, name, 1 << 20)
    try:
        head[: head.rfind(b"\n") + 1 or None].decode("utf-8")
    except UnicodeDecodeError:
        return "gb18030"
    return "utf-8-sig"


def rows(source: Source, name: str, report: Report, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line from 1, values by column in lower case) of a CSV file, tabs for commas where the header has them. Reports columns of `needed`
    that are not there (`timeline.no_column`) and rows with another number of fields (`timeline.row`)."""
    text: IO[str]
    with opened(source, name) as file, io.TextIOWrapper(file, encoding=encoding(source, name), errors="replace", newline="") as text:
        try:
            first = text.readline(LONGEST_LINE)
            delimiter = "\t" if first.count("\t") > first.count(",") else ","
            header = [one.strip().lower() for one in next(csv.reader([first], delimiter=delimiter), [])]
            missing = [one for one in needed if one not in header]
            if missing:
                report.error("timeline.no_column", name, line=1, column=", ".join(missing).upper())
                return
            # OMOP's own vocabulary files quote nothing.
            reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL)
            line = 2
            for values in reader:
                here, line = line, reader.line_num + 2
                if not values:
                    continue
                if len(values) != len(header):
                    report.error("timeline.row", name, line=here, found=len(values), expected=len(header))
                    continue
                yield here, dict(zip(header, values, strict=True))
        except Problem as problem:
            report.stopped(problem)
        except (csv.Error, OSError, EOFError, zlib.error) as error:
            report.error("importing.unreadable", name, reason=type(error).__name__)

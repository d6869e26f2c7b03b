"""CSV tables (RFC 4180 and what is written in its name): UTF-8 with or without BOM, UTF-16 with one, GB18030; comma, semicolon, tab or bar;
line ends within quotes. Read row by row: memory does not grow with the rows.

Which columns are whose cannot be read from bytes with certainty: a column is identity when its name says so, or what stands in it looks
like a citizen's number, a telephone or a mail address. The hospital's own list of columns (`medmesh edge ingest` with a table's meaning)
stays the rule for what is trained on; this is the net below it.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from medmesh.importing.formats.content import START, Content, Format, damaged

MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", ".", "-", "--", "?", "缺失", "无", "不详"))
DISTINCT = 50
"""Values of a column that are told apart."""
_DELIMITERS = ",;\t|"
_LONGEST = 1 << 20  # characters of one value
_MOST_COLUMNS = 16_384
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[ T]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?")
_NAMES = re.compile(
    r"(?:patient|full|first|last|family|given|sur|middle|maiden|mother|father|doctor|physician|contact)?_?names?|(?:home|postal|street|mail)?_?address"
    r"|(?:tele|mobile|cell)?_?phone(?:_?(?:no|number))?|tel|fax|e_?mail|ssn|mrn|(?:medical|hospital|health)_?(?:record|card|insurance)_?(?:no|number|id)?"
    r"|(?:national|citizen|passport|identity|id)_?(?:card|id|no|number)(?:_?(?:no|number))?|dob|birth_?(?:date|day)|date_?of_?birth|zip_?(?:code)?"
    r"|postcode|(?:患者|病人|医生|医师|联系人|母亲|父亲)?姓名|名字|(?:联系)?电话|手机(?:号码?)?|(?:居民)?身份证(?:号码?|件号)?|证件号码?"
    r"|(?:家庭|通讯|通信|居住|联系)?(?:住址|地址)|住院号|门诊号|病案号|病历号|就诊卡号|医保(?:卡)?号|社保(?:卡)?号|出生日期|生日|邮箱|电子邮件|邮编|护照号码?",
    re.I,
)
_CITIZEN = re.compile(r"\d{17}[\dXx]")
_MOBILE = re.compile(r"(?:\+?86[- ]?)?1[3-9]\d{9}")
_MAIL = re.compile(r"[^@\s]{1,64}@[^@\s]+\.[^@\s]+")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643-1999


@dataclass(slots=True)
class Column:
    """What was seen in a column: values by type, the range of numbers, up to `DISTINCT` values, identifying ones by what they are."""

    name: str
    types: Counter[str] = field(default_factory=Counter)
    low: float = math.inf
    high: float = -math.inf
    values: Counter[str] = field(default_factory=Counter)
    identity: Counter[str] = field(default_factory=Counter)

    @property
    def type(self) -> Literal["whole", "number", "date", "text", "empty"]:
        """The narrowest that holds every value but the missing."""
        seen = {kind for kind, count in self.types.items() if count and kind != "missing"}
        if not seen:
            return "empty"
        if len(seen) == 1:
            return seen.pop()  # type: ignore[return-value]
        return "number" if seen == {"whole", "number"} else "text"

    @property
    def identifying(self) -> bool:
        """By its name, or because most of what stands in it is."""
        filled = self.types.total() - self.types["missing"]
        return bool(_NAMES.fullmatch(_plain(self.name))) or (filled > 0 and 2 * self.identity.total() > filled)

    def add(self, value: str) -> None:
        """Take one value in."""
        value = value.strip()
        kind = _type(value)
        self.types[kind] += 1
        if kind == "missing":
            return
        if kind in ("whole", "number"):
            number = float(value)
            self.low, self.high = min(self.low, number), max(self.high, number)
        if value in self.values or len(self.values) < DISTINCT:
            self.values[value] += 1
        if what := _identity(value):
            self.identity[what] += 1


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a table is written."""

    encoding: str
    delimiter: str
    header: tuple[str, ...]


@dataclass(slots=True)
class Table:
    """A table's columns and its rows' number; `ragged` are the first rows (from 1, the header not counted) whose fields do not fit."""

    dialect: Dialect
    columns: list[Column]
    rows: int = 0
    ragged: list[int] = field(default_factory=list)


def dialect(file: BinaryIO) -> Dialect:
    """Encoding, delimiter and names of the columns. Reads to the end where the encoding is not marked, and goes back to the start."""
    encoding = _encoding(file)
    file.seek(0)
    first = next(_rows(file, encoding, None), None)
    if first is None:
        raise damaged("header", "the file is empty", line=1)
    file.seek(0)
    line = re.sub(r'"[^"]*"', "", "".join(first[1]))
    delimiter = max(_DELIMITERS, key=lambda sign: (line.count(sign), -_DELIMITERS.index(sign)))
    _, header = next(_rows(file, encoding, delimiter))
    names = tuple(name.strip() for name in header)
    if not any(names) or len(names) > _MOST_COLUMNS:
        raise damaged("header", "no names of columns, or too many", line=1)
    file.seek(0)
    return Dialect(encoding, delimiter, names)


def rows(file: BinaryIO, found: Dialect) -> Iterator[tuple[int, int, list[str]]]:
    """(row from 1, line, fields as written) after the header; a row with another number of fields than the header comes as it is.
    Raises `formats.damaged` with the line (a quote that never ends, NUL, bytes outside the encoding)."""
    file.seek(0)
    for number, (line, fields) in enumerate(_rows(file, found.encoding, found.delimiter)):
        if number:
            yield number, line, fields


def read(file: BinaryIO) -> Table:
    """Every row once, in constant memory."""
    found = dialect(file)
    table = Table(found, [Column(name) for name in found.header])
    width = len(found.header)
    for number, _, fields in rows(file, found):
        table.rows += 1
        if len(fields) != width:
            if len(table.ragged) < 20:
                table.ragged.append(number)
            continue
        for column, value in zip(table.columns, fields, strict=True):
            column.add(value)
    return table


def describe(file: BinaryIO, size: int) -> Content:
    """Columns with types, missing values, ranges; the first row that does not fit is damage."""
    table = read(file)
    if table.ragged:
        raise damaged(f"row {table.ragged[0]}", f"it has not the {len(table.columns)} fields of the header")
    columns = [{"name": column.name, "type": column.type, "missing": column.types["missing"]} for column in table.columns]
    meta: dict[str, Any] = {
        "encoding": table.dialect.encoding,
        "delimiter": table.dialect.delimiter,
        "rows": table.rows,
        "columns": columns,
    }
    return Content("table", meta, tuple((f"column {place}", "") for place, column in enumerate(table.columns, 1) if column.identifying))


def clean(data: bytes) -> bytes:
    """Without identifying columns; UTF-8, commas, `\\n`. Row for row the same values otherwise."""
    file = io.BytesIO(data)
    table = read(file)
    if table.ragged:
        raise damaged(f"row {table.ragged[0]}", f"it has not the {len(table.columns)} fields of the header")
    kept = [place for place, column in enumerate(table.columns) if not column.identifying]
    made = io.StringIO(newline="")
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow([table.dialect.header[place] for place in kept])
    for _, _, fields in rows(file, table.dialect):
        writer.writerow([fields[place] for place in kept])
    return made.getvalue().encode()


def _rows(file: BinaryIO, encoding: str, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    """(line, fields); with no delimiter the fields are one: the line as it is."""
    wrapped = io.TextIOWrapper(file, encoding, newline="")
    previous = csv.field_size_limit(_LONGEST)
    try:
        if delimiter is None:
            reader = csv.reader(wrapped, delimiter="\x1f", quoting=csv.QUOTE_NONE, strict=True)
        else:
            reader = csv.reader(wrapped, delimiter=delimiter, strict=True)
        line = 1
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error:
                raise damaged("a row", "its quotes do not end, a value is too long, or NUL is in it", line=line) from None
            except UnicodeError:
                raise damaged("a row", "bytes outside the encoding", line=line) from None
            if fields:
                yield line, fields
            line = reader.line_num + 1
    finally:
        csv.field_size_limit(previous)
        wrapped.detach()


def _encoding(file: BinaryIO) -> str:
    start = file.read(4)
    if start.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    for encoding in ("utf-8", "gb18030"):
        file.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            while piece := file.read(1 << 18):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        return encoding
    raise damaged("encoding", "neither UTF-8, UTF-16 nor GB18030")


def _type(value: str) -> str:
    if value.lower() in MISSING:
        return "missing"
    if _WHOLE.fullmatch(value):
        return "whole"
    try:
        if math.isfinite(float(value)):
            return "number"
    except ValueError:
        pass
    return "date" if _DATE.fullmatch(value) else "text"


def _identity(value: str) -> str:
    if len(value) == 18 and _CITIZEN.fullmatch(value):
        total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, value[:17], strict=True))
        if "10X98765432"[total % 11] == value[17].upper():
            return "citizen"
    if len(value) >= 11 and _MOBILE.fullmatch(value):
        return "telephone"
    return "mail" if "@" in value and _MAIL.fullmatch(value) else ""


def _plain(name: str) -> str:
    """`Patient Name`, `patientName` and `patient-name` as `patient_name`."""
    return re.sub(r"[\s.\-/]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())).strip("_").lower()


def _matches(start: bytes) -> bool:
    """Text of which the first lines have equally many delimiters, at least one."""
    for encoding in ("utf-16",) if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else ("utf-8-sig", "gb18030"):
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            said = decoder.decode(start)
        except UnicodeDecodeError:
            continue
        if any(ord(sign) < 32 and sign not in "\t\r\n" for sign in said):
            return False
        if said.lstrip()[:1] in "{[<" or said.startswith("MSH|"):  # JSON, XML, HL7 v2 have delimiters too
            return False
        whole = len(start) < START
        for delimiter in _DELIMITERS:
            try:
                table = [len(row) for row in csv.reader(io.StringIO(said, newline=""), delimiter=delimiter) if row]
            except csv.Error:
                continue
            if not whole:
                table = table[:-1]
            if len(table) > 1 and table[0] > 1 and sum(width == table[0] for width in table) > 0.6 * len(table):
                return True
        return False
    return False


def _beside(data: bytes) -> bytes:
    return data


CSV = Format("csv", "text/csv", (".csv", ".tsv", ".txt"), _matches, describe, clean, _beside)

"""VCF 4.x variant calls (samtools/hts-specs). Genotypes are never read into a table here: an item refers to the file and a sample's column.

A genome identifies its owner whatever it is called: cleaning takes the names off, it does not make a genome anonymous.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from medmesh.importing.formats.content import Content, Format, Inflated, beginning, damaged, gzip_identity, inflated, is_gzip, zipped

_FIXED = (b"#CHROM", b"POS", b"ID", b"REF", b"ALT", b"QUAL", b"FILTER", b"INFO")
_KEPT = re.compile(rb"##(?:fileformat|INFO|FORMAT|FILTER|ALT|contig|reference|assembly|phasing)=")
_VERSION = re.compile(rb"##fileformat=(VCFv4\.[0-9])")
_REF = re.compile(rb"[ACGTNacgtnRYKMSWBDHVrykmswbdhv]+")
_LONGEST = 64 << 20
_NEUTRAL = re.compile(rb"S\d+")


def describe(file: BinaryIO, size: int) -> Content:
    """Version, contigs, samples by number, records by contig; every line is checked, in constant memory."""
    start = file.read(4096)
    file.seek(0)
    version, contigs, identity, samples, found = "", [], list(gzip_identity(start)) if is_gzip(start) else [], 0, Counter[str]()
    columns = 0
    for number, line in _lines(file, start):
        if number == 1:
            match = _VERSION.fullmatch(line)
            if match is None:
                raise damaged("fileformat", "it must be the first line, of version 4", line=1)
            version = match[1].decode()
        elif line.startswith(b"##"):
            if line.startswith(b"##contig=<") and (match := re.search(rb"[<,]ID=([^,>]+)", line)):
                contigs.append(match[1].decode(errors="replace"))
            if not _KEPT.match(line):
                identity.append(
                    (line[2:].partition(b"=")[0].decode(errors="replace")[:40], line.partition(b"=")[2].decode(errors="replace"))
                )
        elif not columns:
            names = _columns(line, number)
            columns, samples = len(line.split(b"\t")), len(names)
            identity += [("sample", name.decode(errors="replace")) for name in names if not _NEUTRAL.fullmatch(name)]
        else:
            _check(line, columns, number)
            found[line[: line.index(b"\t")].decode(errors="replace")] += 1
            if len(found) > 1 << 16:
                raise damaged("CHROM", "too many contigs", line=number)
    if not columns:
        raise damaged("#CHROM", "there is no line of columns")
    meta: dict[str, Any] = {"version": version, "samples": samples, "contigs": len(contigs), "records": found.total()}
    return Content("table", meta | {"by_contig": dict(found.most_common(100)), "genotype": "reference"}, tuple(identity))


def clean(data: bytes) -> bytes:
    """Header lines beyond the vocabulary left out, samples called S1, S2, ...; records bit for bit the same."""
    made = []
    columns = False
    for number, line in _lines(io.BytesIO(data), data[:4096]):
        if line.startswith(b"##"):
            if _KEPT.match(line):
                made.append(line)
        elif not columns:
            samples = len(_columns(line, number))
            columns = True
            fixed = line.split(b"\t")[: 9 if samples else 8]
            made.append(b"\t".join([*fixed, *(f"S{place}".encode() for place in range(1, samples + 1))]))
        else:
            made.append(line)
    whole = b"\n".join(made) + b"\n"
    return zipped(whole) if is_gzip(data) else whole


def beside(data: bytes) -> bytes:
    """The header."""
    opened = inflated(data)
    return b"\n".join(line for line in opened.split(b"\n") if line.startswith(b"#"))


def _lines(file: BinaryIO, start: bytes) -> Iterator[tuple[int, bytes]]:
    stream: Any = io.BufferedReader(Inflated(file), 1 << 20) if is_gzip(start) else file
    number = 0
    while line := stream.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise damaged("a line", "it is too long", line=number)
        if stripped := line.rstrip(b"\r\n"):
            yield number, stripped


def _columns(line: bytes, number: int) -> list[bytes]:
    names = line.split(b"\t")
    if tuple(names[:8]) != _FIXED or (len(names) > 8 and names[8] != b"FORMAT") or len(names) == 9:
        raise damaged("#CHROM", "the columns are not those of VCF", line=number)
    if len(set(names[9:])) != len(names[9:]):
        raise damaged("#CHROM", "two samples have one name", line=number)
    return names[9:]


def _check(line: bytes, columns: int, number: int) -> None:
    if line.count(b"\t") + 1 != columns:
        raise damaged("a record", "it has not the columns of the header", line=number)
    _, position, _, reference = line.split(b"\t", 4)[:4]
    if not position.isdigit() or not _REF.fullmatch(reference):
        raise damaged("a record", "POS or REF", line=number)


VCF = Format(
    "vcf", "text/x-vcf", (".vcf", ".vcf.gz"), lambda start: beginning(start, 64).startswith(b"##fileformat=VCFv4"), describe, clean, beside
)

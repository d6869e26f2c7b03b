"""An export on an auditor's machine: opened safely, verified offline, complete by the emitters' counters."""

from __future__ import annotations

import base64
import binascii
import json
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medmesh.auditing import formats
from medmesh.auditing.completeness import OTHERS, STATEMENT, fits, statement
from medmesh.canonical import digest
from medmesh.errors import Problem
from medmesh.ledger import leaf as leaves
from medmesh.ledger import tiles
from medmesh.ledger.copies import read_lines
from medmesh.ledger.record import read_record
from medmesh.ledger.report import Report
from medmesh.ledger.tree import leaf_hash, verify_inclusion

BODIES = "bodies.jsonl"
MOST_BYTES = 64 * 2**30
INSTRUCTIONS = """\
Audit export of the log {origin} with {size} entries.  日志 {origin} 的审计导出，日志共 {size} 条。

  bodies.jsonl      each exported record with salt, leaf and inclusion proof      导出的每条记录及其盐值、叶节点与包含证明
  checkpoint        what the log's key signed (C2SP signed note)                  日志密钥签名的检查点
  tile/, entries    the whole tree and every entry's header                       完整的树与每条记录的头部
  emitters.json     each emitter's counter: no number may be missing              各发送方计数：不得缺号
  completeness.json what is proven about the records that are not here            未导出记录的完备性说明
  others.jsonl      records that were opened to show that they do not fit         为证明不符合条件而公开的记录
  request.json      what was asked for, its digest, and the approval              申请内容、摘要与审批
  policy, vkeys     C2SP tlog-policy and the verifier key, for comparison only    验证策略与公钥（仅供核对）

Take the verifier key from the paper you were given at installation, not from this file.
验证公钥请以安装时交付的纸质文件为准，切勿取自本文件。

  medmesh audit verify export --key 'KEY' export.zip

It ends with 0: whole; 1: altered; 2: not readable.   返回 0 完整；1 被篡改；2 无法读取。
Without this program: unpack it, and give the folder to any verifier of C2SP tlog-tiles; a record is the one that was logged
when SHA-256(salt || body) is the `commit` of its leaf. docs/security/elsewhere.md shows both.
不使用本程序亦可：解压后交由任意支持 C2SP tlog-tiles 的验证工具；SHA-256(盐值‖记录) 等于叶节点的 commit 即为原记录。
"""


def unpack(file: Path, target: Path) -> Path:
    """The files of an export below `target`. Raises `Problem` for a file that is no export or would write elsewhere."""
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(info.file_size for info in archive.infolist()) > MOST_BYTES:
                raise ValueError
            for info in archive.infolist():
                if not (target / info.filename).resolve().is_relative_to(target.resolve()):
                    raise ValueError
            archive.extractall(target)
    except (OSError, ValueError, zipfile.BadZipFile, zipfile.LargeZipFile, EOFError):
        raise Problem("audit.export_unreadable", file=file.name) from None
    return target


def headers(folder: Path, size: int) -> Iterator[leaves.Leaf]:
    """The header of every entry, in order."""
    for number in range((size + tiles.WIDTH - 1) // tiles.WIDTH):
        width = min(tiles.WIDTH, size - number * tiles.WIDTH)
        for entry in tiles.unbundle((folder / tiles.path("entries", number, width)).read_bytes()):
            yield leaves.decode(entry)


def numbers(file: Path) -> frozenset[int]:
    """Which records stand in a file of bodies; none where there is no file."""
    if not file.exists():
        return frozenset()
    with file.open("rb") as lines:
        return frozenset(int(json.loads(line)["seq"]) for line in lines)


def counters(folder: Path, size: int) -> dict[str, dict[str, int]]:
    """Of each emitter, by the headers of all entries: its first and last number and how many entries; a gap would show here."""
    found: dict[str, dict[str, int]] = {}
    for leaf in headers(folder, size):
        one = found.setdefault(leaf.emitter, {"first": leaf.n, "last": leaf.n, "entries": 0})
        one["last"] = leaf.n
        one["entries"] += 1
    return found


def check(folder: Path, report: Report) -> None:
    """Add to the report of an unpacked export, verified as a copy of the log, what is its own: each record's proof, and the counters."""
    if not report.verified:
        return
    root = bytes.fromhex(report.root)
    for text in (folder / "bodies.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        try:
            leaf = base64.b64decode(line["leaf"], validate=True)
            path = [base64.b64decode(p, validate=True) for p in line["proof"]]
            whole = verify_inclusion(leaf_hash(leaf), line["seq"], report.size, path, root)
        except (KeyError, TypeError, binascii.Error):
            whole = False
        if not whole:
            report.fault("proof", Problem("ledger.not_included", seq=line["seq"], size=report.size))
    try:
        said: Any = json.loads((folder / "emitters.json").read_bytes())
    except (OSError, ValueError):
        said = None
    if said != counters(folder, report.size):
        report.fault("emitters", Problem("audit.export_counters"))
    _readable(folder, report)
    _complete(folder, report)


def _complete(folder: Path, report: Report) -> None:
    """That what is exported was asked for, what was opened was not, and that the statement about the rest is true."""
    try:
        asked = json.loads((folder / "request.json").read_bytes())
        wanted, scope = dict(asked["request"]["filter"]), str(asked["request"]["scope"])
        said = json.loads((folder / STATEMENT).read_bytes())
        entries = list(headers(folder, report.size))
        for name, fit in ((BODIES, True), (OTHERS, False)):
            for seq, salt, body in read_lines(folder / name, 0) if (folder / name).exists() else ():
                record = read_record(body)
                if not 0 <= seq < len(entries) or leaves.commitment(salt, body) != entries[seq].commit:
                    report.fault("others", Problem("ledger.body_altered", seq=seq, field="-"))
                elif fits(wanted, scope, record) != fit:
                    report.fault("filter", Problem("audit.export_filter", seq=seq))
        found = statement(wanted, scope, entries, numbers(folder / BODIES), numbers(folder / OTHERS))
    except (OSError, ValueError, KeyError, TypeError, Problem):
        said, found = None, {"undecided": []}
    if said != found:
        report.fault("completeness", Problem("audit.export_statement"))
    elif found["undecided"]:
        count = sum(last - first + 1 for first, last in found["undecided"])
        report.notice(Problem("audit.export_undecided", records=count, first=found["undecided"][0][0]))


def _readable(folder: Path, report: Report) -> None:
    """Hold the table or the messages that people read against the evidence."""
    try:
        asked = json.loads((folder / "request.json").read_bytes())
        written_by, same = asked["written_by"], digest(asked["request"]) == asked["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        report.fault("request", Problem("audit.export_unreadable", file="request.json"), incomplete=True)
        return
    if not same:
        report.fault("request", Problem("audit.export_request"))
    with (folder / "bodies.jsonl").open(encoding="utf-8") as evidence:
        records = ((line["seq"], json.loads(base64.b64decode(line["body"]))) for line in map(json.loads, evidence))
        altered = formats.differs(folder, records)
    if altered is None:
        return
    if written_by != version("medmesh"):
        # Another version may spell a record otherwise; that is nobody's fault, and proves nothing either.
        report.fault("readable", Problem("audit.export_version", theirs=str(written_by), ours=version("medmesh")), incomplete=True)
    else:
        report.fault("readable", altered)


def is_export(folder: Path) -> bool:
    """Whether a folder is an unpacked export, not a copy of the log."""
    return (folder / "request.json").is_file()

"""`medmesh audit verify`: what an auditor runs who trusts nobody. Needs no service, no account and few libraries.  离线验证。

Every command ends with 0 when all is whole, 1 when something was altered, 2 when it is incomplete or cannot be read.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medmesh.cli import language, say
from medmesh.errors import Problem
from medmesh.ledger.copies import Copy, Folder
from medmesh.ledger.policy import Policy, demanding, parse_policy
from medmesh.ledger.proof import read_evidence, verify_evidence
from medmesh.ledger.report import INCOMPLETE, TAMPERED, WHOLE, Report
from medmesh.ledger.verify import TOLERANCE, Wanted, verify_log

if TYPE_CHECKING:
    from medmesh.security.roster import Roster

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_UNREADABLE = (
    "roster.form",
    "ledger.key",
    "ledger.policy",
    "ledger.proof_form",
    "ledger.no_copy",
    "ledger.unreachable",
    "audit.export_unreadable",
)


def key_of(text: str, entry: str = "log_key") -> str:
    """A verifier key, or the one in a file or, as `entry`, in a trust bundle; `sm_log_key` is that of the second tree."""
    path = Path(text)
    if len(text) > 300 or not path.is_file():
        return text
    content = path.read_text().strip()
    return str(json.loads(content)[entry]) if content.startswith("{") else content


sm_key = partial(key_of, entry="sm_log_key")


def roster_of(file: Path | None, pin: str | None) -> Roster | None:
    """The newest version in a roster file, verified from its first on, or from the one with the fingerprint `pin`."""
    from medmesh.security.roster import believe, notes_of  # with fewer libraries where no roster is asked for

    return believe(notes_of(file.read_bytes()), pin).roster if file is not None else None


def policy_of(key: str | None, policy: Path | None, witnesses: tuple[str, ...], roster: Roster | None) -> Policy:
    """What is demanded: a policy file, the log's key and every witness that is named, or else what the roster says."""
    if roster is not None and key is None and policy is None and not witnesses:
        return roster.log_policy()
    if policy is not None:
        if key is not None or witnesses:
            raise click.UsageError(say("--policy names log and witnesses itself", "--policy 已包含日志与见证方，无需另行指定"))
        found = parse_policy(policy.read_bytes())
        if not found.logs:
            raise Problem("ledger.policy", line=1, reason="it names no log")
        return found
    if key is None:
        raise click.UsageError(say("--roster, --key or --policy is needed", "需要 --roster、--key 或 --policy"))
    return demanding(key_of(key), *witnesses)


def trusting(command: Callable[..., int]) -> Callable[..., int]:
    """The options that say whom to believe, `--json`, and the exit code of what cannot be read."""

    @click.option("--key", help="The log's verifier key, as handed over at installation (or a file holding it).  日志公钥。")
    @click.option("--policy", type=FILE, help="A c2sp.org/tlog-policy file: logs, witnesses, quorum.  信任策略。")
    @click.option(
        "--witness", "witnesses", multiple=True, metavar="VKEY", help="A witness that must have cosigned; may be repeated.  见证方公钥。"
    )
    @click.option("--roster", "roster_file", type=FILE, help="Whose own signatures count; approvals are held against it.  签名名册。")
    @click.option("--pin", metavar="DIGITS", help="With --roster: the fingerprint that was read to you.  名册指纹。")
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    @functools.wraps(command)
    def run(
        key: str | None,
        policy: Path | None,
        witnesses: tuple[str, ...],
        roster_file: Path | None,
        pin: str | None,
        as_json: bool,
        **rest: Any,
    ) -> int:
        try:
            roster = roster_of(roster_file, pin)
            return command(policy=policy_of(key, policy, witnesses, roster), roster=roster, as_json=as_json, **rest)
        except Problem as problem:
            code = INCOMPLETE if problem.code in _UNREADABLE else TAMPERED
            if as_json:
                document = {
                    "verified": False,
                    "code": code,
                    "faults": [{"check": "proof", "code": problem.code, "reason": problem.detail()}],
                }
                click.echo(json.dumps(document, ensure_ascii=False, indent=1))
            else:
                _tell(problem)
            return code

    return run


SM = click.option("--sm-key", "sm_keys", multiple=True, help="A key that signed the second tree (SM3, SM2), or a file.  第二棵树公钥。")
KEPT = click.option("--from", "kept", type=FILE, help="A checkpoint kept from an earlier verification.  此前保存的检查点。")
KEEP = click.option("--keep", type=click.Path(path_type=Path), help="When all is whole, keep the checkpoint here for --from.  保存检查点。")
TREE = click.option("--tree-only", is_flag=True, help="Without the records themselves.  仅验证哈希树。")


@click.group()
def verify() -> None:
    """Verify without trusting anybody: 0 whole, 1 altered, 2 incomplete or unreadable.  验证：0 完好，1 被篡改，2 不完整或不可读。"""


@verify.command()
@trusting
@click.argument("file", type=FILE)
def proof(policy: Policy, roster: Roster | None, as_json: bool, file: Path) -> int:
    """One record with its proof: FILE is what `medmesh audit prove` wrote.  验证单条记录。"""
    evidence = read_evidence(file.read_bytes())
    record, found = verify_evidence(evidence, policy)
    if (signatures := _signatures(roster, partial=True)) is not None:
        report = Report()
        signatures.inspect(report, evidence.proof.index, evidence.body)
        if report.faults:
            raise report.faults[0].problem
    document = {"verified": True, "code": WHOLE, "size": found.checkpoint.size, "witnesses": dict(found.witnesses), "record": record}
    click.echo(json.dumps(document if as_json else record, ensure_ascii=False, indent=1))
    if not as_json:
        proven = say(f"proven in the log of {found.checkpoint.size} records", f"已证明存在于 {found.checkpoint.size} 条记录的日志中")
        click.secho(proven + _seen(found.witnesses), fg="green", err=True)
    return WHOLE


@verify.command()
@trusting
@SM
@KEPT
@KEEP
@TREE
@click.option("--partial", is_flag=True, help="The copy may hold only the records its owner may read.  允许副本仅含部分记录。")
@click.option("--hash-only", is_flag=True, help="Hashes only: records are not read.  仅验证哈希。")
@click.argument("copy", type=click.Path(exists=True, path_type=Path))
def export(
    policy: Policy,
    roster: Roster | None,
    as_json: bool,
    sm_keys: tuple[str, ...],
    kept: Path | None,
    keep: Path | None,
    tree_only: bool,
    partial: bool,
    hash_only: bool,
    copy: Path,
) -> int:
    """COPY of the log: a folder, or an approved export (ZIP, or unpacked).  验证日志副本或导出文件。"""
    from medmesh.auditing.package import check, is_export, unpack

    approved = copy.is_file() or is_export(copy)
    partial = partial or approved
    how = {"bodies": not tree_only, "partial": partial, "parse": not hash_only, "kept": _read(kept)}
    wanted = _wanted(policy, _signatures(roster, partial=partial), sm_keys, **how)
    if copy.is_dir():
        further = (lambda report: check(copy, report)) if approved else (lambda report: None)
        return _judge(Folder(copy), wanted, as_json=as_json, keep=keep, further=further)
    with tempfile.TemporaryDirectory(dir=copy.absolute().parent) as opened:
        folder = unpack(copy, Path(opened))
        return _judge(Folder(folder), wanted, as_json=as_json, keep=keep, further=lambda report: check(folder, report))


@verify.command()
@trusting
@SM
@KEPT
@KEEP
@TREE
@click.option("--again", is_flag=True, help="With --from: read what it vouches for once more.  重新读取已验证部分。")
@click.option("--ca", type=FILE, help="The authority of the server's certificate.")
@click.option("--token", type=FILE, help="A token that is bound to no key; the signed-in person's own by default.")
@click.argument("url")
def log(
    policy: Policy,
    roster: Roster | None,
    as_json: bool,
    sm_keys: tuple[str, ...],
    kept: Path | None,
    keep: Path | None,
    tree_only: bool,
    again: bool,
    ca: Path | None,
    token: Path | None,
    url: str,
) -> int:
    """The log that is served at URL (https://…/log): every tile, entry and record is fetched and hashed.  验证在线日志。"""
    resume = kept is not None and not again
    signatures = _signatures(roster, partial=resume)
    wanted = _wanted(policy, signatures, sm_keys, bodies=not tree_only, kept=_read(kept), resume=resume)
    return _judge(_served(url, ca, token), wanted, as_json=as_json, keep=keep)


@verify.command()
@trusting
@SM
@KEPT
@KEEP
@click.argument("dsn", envvar="MEDMESH_AUDIT_DSN")
def db(
    policy: Policy, roster: Roster | None, as_json: bool, sm_keys: tuple[str, ...], kept: Path | None, keep: Path | None, dsn: str
) -> int:
    """The log as it lies in PostgreSQL at DSN: records, leaves, tiles and every checkpoint.  验证数据库中的日志。"""
    wanted = _wanted(policy, _signatures(roster), sm_keys, kept=_read(kept))
    return _judge(_database(dsn), wanted, as_json=as_json, keep=keep)


@verify.command()
@trusting
@click.option("--tolerance", default=TOLERANCE, show_default=True, help="Seconds a clock may be set back.  允许的时钟回拨秒数。")
@click.option("--ca", type=FILE, help="For a URL: the authority of the server's certificate.")
@click.option("--token", type=FILE, help="For a URL: a token that is bound to no key.")
@click.argument("source")
def gaps(policy: Policy, roster: Roster | None, as_json: bool, tolerance: int, ca: Path | None, token: Path | None, source: str) -> int:
    """What each emitter counted, and entries whose dates run back, in a folder, a served log or a database.  完整性与倒签检查。"""
    folder = Path(source)
    copy = Folder(folder) if folder.is_dir() else _served(source, ca, token) if source.startswith("http") else _database(source)
    with closing(copy):
        report = verify_log(copy, Wanted(policy, partial=True, tolerance=tolerance), progress=_progress(as_json))
    code = report.code or (TAMPERED if report.backwards else WHOLE)
    if as_json:
        click.echo(json.dumps(report.document() | {"code": code, "verified": code == WHOLE}, ensure_ascii=False, indent=1))
        return code
    for name, counted in report.emitters.items():
        en = "{name}: {first} to {last}, {records} records, {gaps} gaps, {missing} missing"
        zh = "{name}：{first} 至 {last}，{records} 条，断号 {gaps} 处，缺 {missing} 条"
        click.secho(say(en, zh).format(name=name, **counted), fg="red" if counted["gaps"] else None)
    _show(report)
    return code


def _signatures(roster: Roster | None, *, partial: bool = False) -> Any:
    if roster is None:
        return None
    from medmesh.auditing.signatures import Signatures

    return Signatures(roster, whole=not partial)


def _wanted(policy: Policy, signatures: Any, sm_keys: tuple[str, ...], **how: Any) -> Wanted:
    inspect = signatures.inspect if signatures is not None else None
    return Wanted(policy, inspect=inspect, second=tuple(map(sm_key, sm_keys)), **how)


def _judge(copy: Copy, wanted: Wanted, *, as_json: bool, keep: Path | None, further: Callable[[Report], None] = lambda report: None) -> int:
    with closing(copy):
        report = verify_log(copy, wanted, progress=_progress(as_json))
    further(report)
    if keep is not None and report.code == WHOLE:
        keep.write_bytes(report.note)
    if as_json:
        click.echo(json.dumps(report.document(), ensure_ascii=False, indent=1))
    else:
        _show(report)
    return report.code


def _show(report: Report) -> None:
    for notice in report.notices:
        click.secho(notice.detail(language()), fg="yellow", err=True)
    for fault in report.faults:
        click.secho(f"{fault.check}: ", fg="red", nl=False, bold=True)
        _tell(fault.problem)
        if (more := report.counts[fault.check] - 1) > 0:
            click.echo(say(f"  and {more} more of this kind", f"  另有 {more} 处同类问题"), err=True)
    if report.first is not None:
        click.secho(say(f"first bad entry: {report.first}", f"最早的异常条目：{report.first}"), fg="red")
    if not report.verified:
        return
    since = say(f", {report.start} of them vouched for by the kept checkpoint", f"，其中前 {report.start} 条由保存的检查点担保")
    whole = say(f"whole and unaltered: {report.size} records", f"完整且未被篡改：{report.size} 条记录")
    own = say(f"; {report.signatures} signatures of own keys", f"；{report.signatures} 个本人或机构签名")
    click.secho(whole + (since if report.start else "") + (own if report.signatures else "") + _seen(report.witnesses), fg="green")
    if report.pruned:
        zh = "{seq} 之前的正文已按日志中的审批记录清理"
        click.secho(say("bodies below {seq} were pruned, as an approved record says", zh).format(seq=report.pruned), fg="green")
    if report.second:
        click.secho(say("SM3 tree: {size} of them, whole", "SM3 树：其中 {size} 条，完整").format(**report.second), fg="green")


def _seen(witnesses: Any) -> str:
    moments = [f"{name} {datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}Z" for name, time in sorted(witnesses.items())]
    return say("; seen by ", "；见证：") + ", ".join(moments) if moments else ""


def _tell(problem: Problem) -> None:
    click.secho(problem.detail(language()), fg="red")
    if hint := problem.hint(language()):
        click.echo(hint, err=True)


def _progress(quiet: bool) -> Callable[[int, int], None]:
    if quiet or not sys.stderr.isatty():
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        click.echo(f"\r{done:,}/{total:,}" + ("\r\033[K" if done == total else ""), nl=False, err=True)

    return show


def _read(kept: Path | None) -> bytes | None:
    return kept.read_bytes() if kept is not None else None


def _served(url: str, ca: Path | None, token: Path | None) -> Copy:
    from medmesh.ledger.remote import Served

    if token is not None:
        return Served(url, lambda _, __: {"Authorization": f"Bearer {token.read_text().strip()}"}, ca)
    from medmesh.cli.session import load, place

    if not place().exists():
        return Served(url, None, ca)
    from medmesh.cli.audit import DoorProof

    return Served(url, DoorProof(url), ca or Path(load()["ca"]))


def _database(dsn: str) -> Copy:
    from medmesh.store.audit_copy import Rows

    return Rows(dsn.replace("postgresql+asyncpg://", "postgresql://", 1))

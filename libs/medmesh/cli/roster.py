"""`medmesh roster`: what its keepers do, offline, on a file that holds no secret; and the operator, who lays it down.  签名名册。"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.key import new_passphrase, tell, unlock
from medmesh.cli.platform import DATA
from medmesh.cli.session import with_gateway
from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.security import roster as rosters
from medmesh.security import signing
from medmesh.security.roster import Member
from medmesh.security.roster_file import NAME, Workbook, begun, log_only
from medmesh.security.signing import Signer, key_fingerprint

FILE = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(NAME),
    show_default=True,
    help="The keepers' file.  保管人的名册文件。",
)


@click.group()
def roster() -> None:
    """Whose signatures count: signed by keepers whose keys are not on the platform.  签名名册：何人的签名有效。

    begin:   medmesh roster init --keeper zhao --keeper qian      (makes the keepers' keys; take them away)
    change:  medmesh roster add VKEY --role approver | collect | end NAME
    sign:    medmesh roster sign --key keepers/zhao.key           (until enough have)
    lay down: medmesh roster install --data FOLDER                (hospitals fetch it and believe the signatures alone)
    """


@roster.command()
@FILE
@DATA
@click.option("--keeper", "names", multiple=True, help="A keeper whose key is made here, under a passphrase; may be repeated.")
@click.option("--keeper-key", "vkeys", multiple=True, metavar="VKEY", help="A keeper who has a key (medmesh key create keeper:NAME).")
@click.option("--threshold", type=int, help="So many of them sign a version; more than half by default.")
@click.option("--policy", type=click.Path(exists=True, path_type=Path), help="Log and witnesses (tlog-policy); the platform's log alone.")
@click.option("--approvers", default=1, show_default=True, help="How many approvers an action needs at least.")
@click.option("--keys", type=click.Path(file_okay=False, path_type=Path), default=Path("keepers"), show_default=True)
def init(
    file: Path,
    data: Path,
    names: tuple[str, ...],
    vkeys: tuple[str, ...],
    threshold: int | None,
    policy: Path | None,
    approvers: int,
    keys: Path,
) -> int:
    """Begin a roster with its keepers, and sign its first version with the keys that are made here.  建立名册。"""
    if file.exists():
        raise Problem("signing.key_exists", file=file)
    trust = json.loads((data.absolute() / "trust.json").read_text())
    made = [Signer.create(f"keeper:{name}") for name in names]
    keepers = [*(signer.vkey for signer in made), *(str(note.parse_key(vkey)) for vkey in vkeys)]
    wanted = threshold or len(keepers) // 2 + 1
    text = policy.read_text() if policy else log_only(trust["log_key"])
    book = begun(trust["platform"], keepers, wanted, text, datetime.now(UTC), {"*": approvers})
    for signer in made:
        click.echo(say(f"keeper {signer.name}", f"保管人 {signer.name}"))
        target = keys / f"{signer.name.removeprefix('keeper:')}.key"
        signing.save(target, signer, new_passphrase())
        book = book.signed(signer) if book.draft is not None else book
        tell(signer.vkey)
    book.save(file)
    _state(book)
    if made:
        click.secho(
            say(
                f"Now carry each file of {keys}/ to its keeper on a medium of its own and delete it here: who has them all can forge.",
                f"请立即将 {keys}/ 中的密钥分别用独立介质交给各保管人，并从此处删除：同时持有全部密钥者等同于平台本身。",
            ),
            fg="yellow",
        )
    return 0


@roster.command()
@FILE
@click.option("--role", "roles", multiple=True, help="Of a person: approver, security_administrator; may be repeated.")
@click.option("--about", default="", help="Who that is, for people who read the roster.")
@click.argument("vkey")
def add(file: Path, roles: tuple[str, ...], about: str, vkey: str) -> int:
    """Put VKEY (a person's or a hospital's) into the next version. Its owner has read you the fingerprint.  添加公钥。"""
    path = Path(vkey)
    given = signing.public_of(path) if len(vkey) < 200 and path.is_file() else vkey
    book = Workbook.load(file).with_member(datetime.now(UTC), given, roles, about)
    book.save(file)
    tell(str(note.parse_key(given)))
    _state(book)
    return 0


@roster.command()
@FILE
@click.option("--role", "roles", multiple=True, default=("approver",), show_default=True, help="For the people among them.")
@click.option("--read-aloud", is_flag=True, help="Every fingerprint was compared already: ask no more.")
def collect(file: Path, roles: tuple[str, ...], read_aloud: bool) -> int:
    """Take what people and hospitals announced to the platform, one after the other, each against its fingerprint.  收集公钥。

    The platform may lie about every one of them: type y only when its owner reads you the same digits.
    """
    book, now = Workbook.load(file), datetime.now(UTC)
    present = book.newest()
    known = {member.key for member in (*present.people, *present.hospitals)}
    for one in with_gateway(lambda gateway: gateway.request("GET", "/v1/keys"))["keys"]:
        if one["key"] in known:
            continue
        tell(one["key"])
        if read_aloud or click.confirm(say("Does its owner read you these digits?", "持有人是否朗读了相同的数字？"), default=False):
            book = book.with_member(now, one["key"], roles if one["name"].startswith("person:") else ())
    book.save(file)
    _state(book)
    return 0


@roster.command()
@FILE
@click.option("--from", "until", type=click.DateTime(), help="From when it does not count (UTC); now by default.")
@click.option("--compromised", is_flag=True, help="Somebody else may have it: what it signed counts in no new place.")
@click.argument("name")
def end(file: Path, until: datetime | None, compromised: bool, name: str) -> int:
    """End every key of NAME. Signatures from before the date stay good, unless it was compromised.  终止密钥。"""
    now = datetime.now(UTC)
    book = Workbook.load(file).ended(now, name, until.replace(tzinfo=UTC) if until else now, compromised)
    book.save(file)
    _state(book)
    return 0


@roster.command()
@FILE
@click.option("--keeper-key", "vkeys", multiple=True, metavar="VKEY", help="All keepers from the next version on.")
@click.option("--threshold", type=int)
@click.option("--policy", type=click.Path(exists=True, path_type=Path), help="Another log, other witnesses.")
@click.option("--approvers", type=int, help="How many approvers an action needs at least.")
@click.option(
    "--signed-request",
    "signed",
    multiple=True,
    type=click.Choice(["none", *sorted(rosters.ASKED_FOR)]),
    help="Who asks for this action must sign, with a key of the roster (--role requester). All of them; none ends it.",
)
def change(
    file: Path, vkeys: tuple[str, ...], threshold: int | None, policy: Path | None, approvers: int | None, signed: tuple[str, ...]
) -> int:
    """Change keepers, threshold, witnesses or the number of approvers; also, with no option, just renew the date.  变更名册规则。"""
    changed: dict[str, Any] = {}
    if vkeys:
        changed["keepers"] = tuple(str(note.parse_key(vkey)) for vkey in vkeys)
    if threshold is not None:
        changed["threshold"] = threshold
    if policy is not None:
        changed["policy"] = policy.read_text()
    if approvers is not None:
        changed["approvals"] = {"*": approvers}
    if signed:
        changed["signed_requests"] = tuple(sorted(set(signed) - {"none"}))
    book = Workbook.load(file).edited(datetime.now(UTC), **changed)
    book.save(file)
    _state(book)
    return 0


@roster.command()
@FILE
@click.option("--key", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Your keeper's key file.")
def sign(file: Path, key: Path) -> int:
    """Sign the version that is being written, after you have read it.  签署名册。"""
    book = Workbook.load(file)
    if book.draft is None:
        raise Problem("roster.nothing_to_sign")
    _members(book)
    book = book.signed(unlock(key))
    book.save(file)
    _state(book)
    return 0


@roster.command(name="show")
@FILE
def show_roster(file: Path) -> int:
    """Everybody in the roster with the fingerprint of each key.  查看名册。"""
    book = Workbook.load(file)
    _members(book)
    _state(book)
    return 0


@roster.command()
@FILE
@click.option("--pin", metavar="DIGITS", help="The fingerprint that was read to you.")
def verify(file: Path, pin: str | None) -> int:
    """Check every signature from the first version, or the one with the fingerprint DIGITS, to the last.  验证名册。"""
    found = rosters.believe(rosters.notes_of(file.read_bytes()), pin)
    found.roster.check_fresh(datetime.now(UTC))
    click.echo(say(f"version {found.roster.version}, whole", f"第 {found.roster.version} 版，完整有效"))
    click.echo(say("  pinned   ", "  固定版本  ") + found.pin)
    click.echo(say("  present  ", "  当前版本  ") + found.present)
    return 0


@roster.command()
@FILE
@DATA
@click.option("--into", type=click.Path(path_type=Path), help="Where else: beside the trust bundle of a platform in parts.")
def install(file: Path, data: Path, into: Path | None) -> int:
    """Lay the signed roster down for the platform's services. It must continue the one that lies there.  安装名册。"""
    found = Workbook.load(file).believed()
    target = into or data.absolute() / NAME
    if target.exists():
        known = rosters.believe(rosters.notes_of(target.read_bytes()))
        if known.pin != found.pin:
            raise Problem("roster.not_successor", version=found.roster.version)
        found = known.extended(found.notes)
    files.write(target, found.document(), 0o644)
    click.echo(say(f"installed version {found.roster.version} at {target}", f"已安装第 {found.roster.version} 版：{target}"))
    click.echo(say("  fingerprint for hospitals and auditors  ", "  供医院与审计方核对的指纹  ") + click.style(found.pin, bold=True))
    return 0


@roster.command()
@FILE
@click.argument("copy", type=click.Path(path_type=Path))
def export(file: Path, copy: Path) -> int:
    """Copy FILE to COPY without an unfinished version, for hospitals and auditors.  导出名册。"""
    files.write(copy, Workbook.load(file).believed().document(), 0o644)
    return 0


def _members(book: Workbook) -> None:
    present = book.newest()
    for keeper in present.keepers:
        click.echo(f"  {note.parse_key(keeper).name:<28} {key_fingerprint(keeper)}")
    now = datetime.now(UTC)
    for member in (*present.people, *present.hospitals):
        click.echo(f"  {member.name:<28} {key_fingerprint(member.key)}  {_standing(member, now)}")


def _standing(member: Member, now: datetime) -> str:
    words = [*member.roles, member.about]
    if member.until is not None:
        words.append(say(f"until {member.until:%Y-%m-%d}", f"至 {member.until:%Y-%m-%d}"))
    if member.compromised:
        words.append(say("compromised", "已泄露"))
    return " ".join(filter(None, words))


def _state(book: Workbook) -> None:
    """What waits, or what is signed and by whom."""
    if book.draft is not None:
        content = rosters.text(book.draft)
        shown = say(
            f"version {book.draft.version}: {len(book.lines)} of {book.draft.threshold} signatures",
            f"第 {book.draft.version} 版：已有 {len(book.lines)} / {book.draft.threshold} 个签名",
        )
        click.secho(shown, fg="yellow")
        click.echo(say("  fingerprint  ", "  指纹  ") + rosters.fingerprint(content))
        return
    found = book.believed()
    by = ", ".join(rosters.signers(found.notes[-1], found.roster))
    click.secho(say(f"version {found.roster.version}, signed by {by}", f"第 {found.roster.version} 版，签署人：{by}"), fg="green")
    click.echo(say("  fingerprint of the first  ", "  首版指纹  ") + found.pin)
    click.echo(say("  fingerprint of this one   ", "  本版指纹  ") + found.present)

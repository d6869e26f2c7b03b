"""`medmesh user|hospital|approval`: what the security administrator and approvers do."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from medmesh.cli import key as keys
from medmesh.cli import language, say
from medmesh.cli.account import CA, GATEWAY, PASSWORD, where
from medmesh.cli.asking import request_approval
from medmesh.cli.platform import DATA
from medmesh.cli.session import show, with_gateway
from medmesh.client.gateway import Gateway
from medmesh.contracts.governance import FINDINGS
from medmesh.errors import Problem


@click.group()
def user() -> None:
    """Accounts.  账户。"""


@user.command()
@DATA
@GATEWAY
@CA
@click.option(
    "--code-file", type=click.Path(exists=True, path_type=Path), help="File with the one-time token; found by itself with --data."
)
@click.argument("name")
@click.option("--display-name", default="")
@PASSWORD
def bootstrap(data: Path, gateway: str | None, ca: Path | None, code_file: Path | None, name: str, display_name: str, password: str) -> int:
    """Create the first security administrator with the one-time token of this platform.  创建首位安全管理员。"""
    url, authority = where(data, gateway, ca)
    token = code_file or data.absolute() / "secrets" / "bootstrap.token"
    if not token.exists():
        raise Problem("governance.bootstrap_refused")
    body = {"token": token.read_text().strip(), "name": name, "display_name": display_name or name, "password": password}

    async def run() -> None:
        async with Gateway(url, ca=authority, language=language()) as client:
            await client.request("POST", "/v1/bootstrap", body)

    asyncio.run(run())
    token.unlink()
    click.echo(say(f"created; sign in with: medmesh login {name}", f"已创建，请登录：medmesh login {name}"))
    return 0


@user.command(name="create")
@click.argument("name")
@click.option("--role", "roles", multiple=True, required=True)
@click.option("--display-name", default="")
@click.option("--organisation", default="platform", show_default=True)
def create_user(name: str, roles: tuple[str, ...], display_name: str, organisation: str) -> int:
    """Create an account; hand its one-time activation code to its owner.  创建账户。"""
    body = {"name": name, "display_name": display_name or name, "organisation": organisation, "roles": roles}
    show(with_gateway(lambda gateway: gateway.request("POST", "/v1/users", body)))
    return 0


@user.command()
@DATA
@GATEWAY
@CA
@click.argument("name")
@click.option("--code", prompt=True)
@PASSWORD
def activate(data: Path, gateway: str | None, ca: Path | None, name: str, code: str, password: str) -> int:
    """Set the first password with the activation code.  激活账户。"""
    url, authority = where(data, gateway, ca)

    async def run() -> None:
        async with Gateway(url, ca=authority, language=language()) as client:
            await client.request("POST", "/v1/activations", {"name": name, "code": code, "password": password})

    asyncio.run(run())
    click.echo(say("activated", "已激活"))
    return 0


@user.command(name="list")
def list_users() -> int:
    """Every account with its roles."""
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/users"))["users"])
    return 0


@user.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, help="All roles the person has from now on.")
def roles(name: str, roles: tuple[str, ...]) -> int:
    """Give NAME exactly these roles; what the person had open ends.  变更角色。"""
    return _manage(name, "roles", {"roles": roles}, say(f"{name}: roles changed", f"{name}：角色已变更"))


@user.command()
@click.argument("name")
@click.argument("level", type=click.Choice(["public", "internal", "sensitive", "core"]))
@click.option("--of", "compartments", multiple=True, help="An organisation whose compartment they may read; '*' for every one.")
def clearance(name: str, level: str, compartments: tuple[str, ...]) -> int:
    """Clear NAME up to LEVEL, for exactly the organisations named.  设置安全许可级别。

    A new account is cleared for `internal` and for its own organisation. What the person had open ends. Nobody sets their own.

    \b
    medmesh user clearance wang sensitive --of renji --of xiehe
    """
    body = {"clearance": {"level": level, "compartments": compartments}}
    return _manage(name, "clearance", body, say(f"{name}: clearance set", f"{name}：许可级别已设置"))


@user.command()
@click.argument("name")
@click.option("--reason", default="")
def disable(name: str, reason: str) -> int:
    """Close the account of NAME.  停用账户。"""
    return _manage(name, "disabling", {"reason": reason}, say(f"{name}: disabled", f"{name}：已停用"))


@user.command()
@click.argument("name")
def enable(name: str) -> int:
    """Open the account of NAME again.  启用账户。"""
    return _manage(name, "enabling", {}, say(f"{name}: enabled", f"{name}：已启用"))


@user.command()
@click.argument("name")
def unlock(name: str) -> int:
    """Lift the lock after wrong passwords.  解除锁定。"""
    return _manage(name, "unlocking", {}, say(f"{name}: unlocked", f"{name}：已解锁"))


@user.command()
@click.argument("name")
@click.option("--second-factor", is_flag=True, help="The authenticator was lost too.")
def recover(name: str, second_factor: bool) -> int:
    """A new activation code for NAME, who lost the password.  账户恢复。"""
    body = {"second_factor": second_factor}
    show(with_gateway(lambda gateway: gateway.request("POST", f"/v1/users/{name}/recovery", body)))
    return 0


@user.command()
@click.option("--out", type=click.Path(path_type=Path), help="Write a sheet (CSV with Chinese headings) there.")
@click.option("--amiss", is_flag=True, help="Only accounts with something amiss.")
def report(out: Path | None, amiss: bool) -> int:
    """Every account with its rights and what is amiss: idle, over, shared, weak.  账户清单与核查。"""

    async def run(gateway: Gateway) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None:
            page = await gateway.request("POST", "/v1/users/report", {"after": after})
            found += page["accounts"]
            after = page["next"]
        return [entry for entry in found if entry["findings"] or not amiss]

    entries = with_gateway(run)
    if out is None:
        show([{**entry, "findings": [say(*FINDINGS[code]) for code in entry["findings"]]} for entry in entries])
    else:
        from medmesh.auditing.sheet import accounts

        out.write_text(accounts(entries), encoding="utf-8", newline="")
        click.echo(say(f"{out}: {len(entries)} accounts", f"{out}：{len(entries)} 个账户"))
    return 0


@user.command()
@click.argument("name")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="The last day, by UTC; never when it is not given.")
def limit(name: str, until: datetime | None) -> int:
    """Let the account of NAME end after a day.  设定账户有效期。"""
    ends = (until + timedelta(days=1)).replace(tzinfo=UTC).isoformat() if until else None
    return _manage(name, "limit", {"ends": ends}, say(f"{name}: until {until or 'ever'}", f"{name}：有效期至 {until or '永久'}"))


@user.command()
@click.argument("name")
@click.option("--csr", required=True, type=click.Path(exists=True, path_type=Path), help="The signing request NAME handed over.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the certificate there.")
def certificate(name: str, csr: Path, out: Path | None) -> int:
    """A client certificate for NAME's signing request.  签发个人证书。"""
    body = {"csr_pem": csr.read_text()}
    made = with_gateway(lambda gateway: gateway.request("POST", f"/v1/users/{name}/certificates", body))
    if out is None:
        click.echo(made["certificate_pem"], nl=False)
    else:
        out.write_text(made["certificate_pem"])
    return 0


@user.command(name="revoke-certificate")
@click.argument("name")
@click.option("--fingerprint", help="Only this one; all of NAME's by default.")
@click.option("--reason", required=True)
def revoke_certificate(name: str, fingerprint: str | None, reason: str) -> int:
    """Believe NAME's client certificates no longer, anywhere, within a minute.  吊销个人证书。"""
    body = {"fingerprint": fingerprint, "reason": reason}
    show(with_gateway(lambda gateway: gateway.command("POST", f"/v1/users/{name}/certificates/revocation", body)))
    return 0


def _manage(name: str, what: str, body: dict[str, Any], done: str) -> int:
    with_gateway(lambda gateway: gateway.command("POST", f"/v1/users/{name}/{what}", body))
    click.echo(done)
    return 0


@click.group()
def hospital() -> None:
    """Member hospitals.  成员医院。"""


@hospital.command()
@click.argument("name")
@click.option("--display-name", default="")
def register(name: str, display_name: str) -> int:
    """Register a hospital and get the one-time code for its node.  登记医院并获取注册码。"""
    body = {"hospital": name, "display_name": display_name or name}
    show(with_gateway(lambda gateway: gateway.request("POST", "/v1/hospitals", body)))
    return 0


@hospital.command(name="list")
def list_hospitals() -> int:
    """Every hospital with its nodes."""
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/hospitals"))["hospitals"])
    return 0


@hospital.command()
@click.argument("name")
@click.option("--node", help="Only this node; all of the hospital's by default.")
@click.option("--reason", required=True)
def revoke(name: str, node: str | None, reason: str) -> int:
    """Believe the certificates of NAME no longer, anywhere, within a minute.  吊销医院节点证书。"""
    body = {"node": node, "reason": reason}
    show(with_gateway(lambda gateway: gateway.command("POST", f"/v1/hospitals/{name}/revocation", body)))
    return 0


@hospital.command()
@click.argument("hospital_name")
@click.argument("name")
@click.option("--key", required=True, type=click.Path(exists=True, path_type=Path), help="Its public key (PEM, Ed25519 or P-256).")
def system(hospital_name: str, name: str, key: Path) -> int:
    """Register NAME, a system of a hospital that signs in with a key of its own.  登记医院信息系统。"""
    body = {"name": name, "public_key_pem": key.read_text()}
    show(with_gateway(lambda gateway: gateway.command("POST", f"/v1/hospitals/{hospital_name}/systems", body)))
    return 0


@click.group()
def approval() -> None:
    """Requests that need a second person.  审批。"""


@approval.command(name="list")
@click.option("--state", default="open", show_default=True)
def list_approvals(state: str) -> int:
    """Approvals in a state."""
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/approvals", query={"state": state}))["approvals"])
    return 0


@approval.command()
@click.argument("approval_id")
@click.option("--refuse", is_flag=True)
@click.option("--comment", default="")
@click.option("--roster", type=click.Path(exists=True, path_type=Path), envvar="MEDMESH_ROSTER", help="Against it who asked is verified.")
@click.option("--pin", metavar="DIGITS", envvar="MEDMESH_PIN", help="The roster's fingerprint, as it was read to you.")
@keys.KEY
def decide(approval_id: str, refuse: bool, comment: str, roster: Path | None, pin: str | None, file: Path) -> int:
    """Approve, or refuse, one request, signed with your own key. Nobody approves their own.  批准或拒绝（以本人密钥签名）。

    With --roster and --pin it is verified before that who asked signed the request; otherwise their name is what the platform says.

    What is shown is what gets signed. The key is made with `medmesh key create` and counts when it is in the roster.
    """
    from medmesh.client.approvals import look, statement

    async def run(gateway: Gateway) -> Any:
        view = await look(gateway, approval_id)
        for name in ("action", "target", "digest", "requester"):
            click.echo(f"  {name:<10} {getattr(view, name)}", err=True)
        for name, value in view.summary.items():
            click.echo(f"  {name:<10} {value}", err=True)
        _tell_asked(view, roster, pin)
        signed = statement(view, keys.unlock(file), approve=not refuse)
        body = {"approve": not refuse, "comment": comment, "statement": signed}
        return await gateway.command("POST", f"/v1/approvals/{approval_id}/decision", body)

    show(with_gateway(run))
    return 0


def _tell_asked(view: Any, roster: Path | None, pin: str | None) -> None:
    """Whether the requester's signature holds. Raises `Problem` when it does not."""
    from medmesh.client.approvals import asked
    from medmesh.security.roster import believe, notes_of

    if roster is None:
        click.echo(
            say("  the requester's name is the platform's word (--roster, --pin)", "  申请人姓名仅由平台声称（可用 --roster、--pin 核验）"),
            err=True,
        )
    elif asked(view, believe(notes_of(roster.read_bytes()), pin).roster):
        click.secho(say(f"  signed by {view.requester}", f"  申请人 {view.requester} 已签名"), fg="green", err=True)
    else:
        click.echo(say("  the requester signed nothing, and the roster does not ask for it", "  申请人未签名，名册亦未要求"), err=True)


@approval.command(name="revoke")
@click.argument("approval_id")
@click.option("--reason", default="")
def revoke_approval(approval_id: str, reason: str) -> int:
    """Take your own request back.  撤回申请。"""
    show(with_gateway(lambda gateway: gateway.command("POST", f"/v1/approvals/{approval_id}/revocation", {"reason": reason})))
    return 0


@approval.command()
@click.argument("action")
@click.argument("target")
@click.argument("digest")
def request(action: str, target: str, digest: str) -> int:
    """Ask for approval of ACTION on TARGET, bound to DIGEST.  申请审批。"""
    body = {"action": action, "target": target, "digest": digest}
    show(with_gateway(lambda gateway: request_approval(gateway, body)))
    return 0

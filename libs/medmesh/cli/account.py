"""`medmesh login|logout|account`: one's own session and secrets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from medmesh.cli import language, say
from medmesh.cli.platform import DATA
from medmesh.cli.session import ask_code, ask_password, certificates, forget, identity, load, save, show, with_gateway
from medmesh.client import people
from medmesh.client.credentials import Person
from medmesh.client.gateway import Gateway
from medmesh.errors import Problem

PASSWORD = click.option("--password", prompt=True, hide_input=True, help="Asked for when it is not given.")


def where(data: Path, gateway: str | None, ca: Path | None) -> tuple[str, Path]:
    """The gateway's address and CA: as given, or those of the platform running on `data`."""
    if gateway and ca:
        return gateway, ca
    from medmesh.embedded.run import running

    run = running(data.absolute())
    if run is None:
        raise Problem("platform.not_running", data=data)
    return gateway or run.urls["gateway"], ca or run.paths["ca"]


GATEWAY = click.option("--gateway", metavar="URL", help="Address; found by itself on the platform's own machine.")
CA = click.option("--ca", type=click.Path(exists=True, path_type=Path), help="The platform's CA certificate.")


@click.command()
@DATA
@GATEWAY
@CA
@click.argument("name")
@PASSWORD
@click.option("--code", help="Of the authenticator; asked for when the account has one.")
def login(data: Path, gateway: str | None, ca: Path | None, name: str, password: str, code: str | None) -> int:
    """Sign in as NAME; the session is kept for this account.  登录。

    What is due first is asked for: a new password when the old one expired, a second factor when a role needs one. A certificate of
    NAME on this machine (medmesh account certificate) is shown instead of a code.
    """
    url, authority = where(data, gateway, ca)
    shown = identity(name)

    async def run() -> str:
        async with Gateway(url, ca=authority, identity=shown, language=language()) as client:
            body: dict[str, Any] = {"name": name, "password": password, "code": code}
            try:
                opened = await client.request("POST", "/v1/sessions", body)
            except Problem as problem:
                if problem.code != "governance.code_needed":
                    raise
                opened = await client.request("POST", "/v1/sessions", {**body, "code": await ask_code()})
            person = client.acting_as(Person(opened["session"]))
            if "password" in opened["must"]:
                click.echo(say("Your password has expired.", "您的口令已过期。"), err=True)
                await _change_password(person, password)
            if "second_factor" in opened["must"]:
                click.echo(say("Your role needs a second factor.", "您的角色必须启用双因素认证。"), err=True)
                await _second_factor(person, None)
            return str(opened["session"])

    save(url, authority, asyncio.run(run()), name, certificate=shown is not None)
    click.echo(say(f"signed in as {name}", f"已登录：{name}"))
    return 0


@click.command()
def logout() -> int:
    """Sign out.  退出登录。"""
    with_gateway(lambda gateway: gateway.raw("DELETE", "/v1/sessions"))
    forget()
    click.echo(say("signed out", "已退出"))
    return 0


@click.group()
def account() -> None:
    """Your own account: password, second factor, sessions.  本人账户。"""


@account.command()
@click.option("--old", prompt=say("present password", "当前口令"), hide_input=True)
def password(old: str) -> int:
    """Change your password; your other sessions end.  修改口令。"""
    with_gateway(lambda gateway: _change_password(gateway, old))
    click.echo(say("changed", "已修改"))
    return 0


@account.command(name="factor")
@click.option("--code", help="Of the present authenticator, where there is one.")
def second_factor(code: str | None) -> int:
    """Set up an authenticator, or a new one.  设置双因素认证。"""
    with_gateway(lambda gateway: _second_factor(gateway, code))
    click.echo(say("set up; signing in needs its code from now on", "已启用；今后登录需输入动态口令"))
    return 0


@account.group()
def certificate() -> None:
    """A client certificate instead of an authenticator.  个人证书。

    Its key is made on this machine and never leaves it. From the first one on you sign in with password and certificate, and each
    session works on connections that show it alone.
    """


@certificate.command(name="request")
@click.option("--code", help="Of your authenticator, where you have one.")
@click.option("--new", is_flag=True, help="Forget a request that was begun: its key was refused.")
@click.option("--offline", metavar="NAME", help="Only print the signing request of NAME, for the security administrator.")
def request_certificate(code: str | None, new: bool, offline: str | None) -> int:
    """Make a key and get its certificate; again renews it.  申请个人证书。

    Not signed in: give the printed request to the security administrator (medmesh user certificate NAME --csr FILE), and install what
    comes back with medmesh account certificate install.
    """
    name = offline or load()["name"]
    if new:
        (certificates() / f"{name}.next.key").unlink(missing_ok=True)
    if offline:
        click.echo(people.signing_request(name, certificates()), nl=False)
        return 0
    bound = bool(load().get("certificate"))

    async def run(gateway: Gateway) -> None:
        try:
            shown = {"password": await ask_password()} if bound else {"code": code or ""}
            await people.request_certificate(gateway, name, certificates(), **shown)
        except Problem as problem:
            if problem.code != "governance.code_wrong" or code or bound:
                raise
            await people.request_certificate(gateway, name, certificates(), code=await ask_code())

    with_gateway(run)
    click.echo(say(f"installed; sign in with it: medmesh login {name}", f"已安装，请使用证书登录：medmesh login {name}"))
    return 0


@certificate.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
def install(name: str, file: Path) -> int:
    """Install the certificate that the security administrator issued for NAME's request.  安装个人证书。"""
    people.install_certificate(name, certificates(), file.read_text())
    click.echo(say("installed", "已安装"))
    return 0


@account.command()
def sessions() -> int:
    """Where you are signed in.  本人会话。"""
    show(with_gateway(lambda gateway: gateway.request("GET", "/v1/sessions"))["sessions"])
    return 0


@account.command(name="end")
@click.argument("session_id")
def end_session(session_id: str) -> int:
    """End one of your sessions.  结束会话。"""
    with_gateway(lambda gateway: gateway.request("DELETE", f"/v1/sessions/{session_id}"))
    click.echo(say("ended", "已结束"))
    return 0


async def _change_password(person: Gateway, old: str) -> None:
    new = click.prompt(say("new password", "新口令"), hide_input=True, confirmation_prompt=True, err=True)
    await person.request("POST", "/v1/password", {"old": old, "new": new})


async def _second_factor(person: Gateway, code: str | None) -> None:
    try:
        made = await person.request("POST", "/v1/second-factor", {"code": code})
    except Problem as problem:
        if problem.code != "governance.code_wrong" or code:
            raise
        made = await person.request("POST", "/v1/second-factor", {"code": await ask_code()})
    click.echo(say("Put this into your authenticator; it is shown once:", "请将以下内容录入认证器，仅显示一次："), err=True)
    click.echo(f"  {made['uri']}\n  {made['secret']}", err=True)
    await person.request("POST", "/v1/second-factor/confirmation", {"code": await ask_code()})

"""`medmesh up|down|status|logs|topology`: the platform on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click

from medmesh.cli import say
from medmesh.errors import Problem
from medmesh.figures import size


def data_folder() -> Path:
    """`$MEDMESH_DATA` or `~/.local/share/medmesh`."""
    return Path(os.environ.get("MEDMESH_DATA", Path.home() / ".local" / "share" / "medmesh"))


DATA = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=data_folder,
    show_default="$MEDMESH_DATA or ~/.local/share/medmesh",
    help="The data folder: everything lies below it.  数据目录。",
)


@click.command()
@DATA
@click.option("--nats", default="", metavar="URL", help="Use this NATS server instead of an embedded one.")
@click.option("--postgres", default="", metavar="URL", help="Use this PostgreSQL (an administrator's URL).")
@click.option("--s3", default="", metavar="URL", help="Use this S3 service.")
@click.option("--s3-credentials", type=click.Path(path_type=Path), help="JSON file with access_key and secret_key, mode 0600.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground; stop with Ctrl-C.")
def up(data: Path, nats: str, postgres: str, s3: str, s3_credentials: Path | None, foreground: bool) -> int:
    """Start the platform: servers, topology, migrations and every service.  启动平台。

    Embedded servers come from wheels and listen on 127.0.0.1 only. Running it again finds the same data and the same ports.
    """
    data = data.absolute()
    data.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-P", "-m", "medmesh.embedded.platform", "--data", str(data)]
    for name, value in (("--nats", nats), ("--postgres", postgres), ("--s3", s3), ("--s3-credentials", s3_credentials)):
        argv += [name, str(value)] if value else []
    began = time.monotonic()
    log = (data / "supervisor.log").open("ab")
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, start_new_session=not foreground)
    assert child.stdout is not None
    for line in child.stdout:
        step = json.loads(line)
        if "problem" in step:
            raise Problem.from_document(step["problem"])
        if step["step"] == "ready":
            break
        _show(step, time.monotonic() - began)
    else:
        raise Problem("embedded.start_failed", server="supervisor", reason=say("it ended", "已退出"), log=data / "supervisor.log")
    _summary(data, time.monotonic() - began)
    _recorded_before(data)
    if foreground:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.terminate()
            return child.wait()
    return 0


def _recorded_before(data: Path) -> None:
    """What was done on this machine while the platform did not run goes to the log now."""
    if (data / "maintenance").exists():
        from medmesh.cli.on_record import hand_in

        hand_in(data)


def _show(step: dict[str, str], seconds: float) -> None:
    words = {
        "prepared": say("keys, certificates and settings", "密钥、证书与配置"),
        "servers": say("nats-server, PostgreSQL, SeaweedFS", "nats-server、PostgreSQL、SeaweedFS"),
        "topology": say("streams, consumers, schemas", "消息流、消费者与数据库模式"),
    }
    text = words.get(step["step"], f"{step.get('name', '')}  {step.get('url', '')}")
    click.echo(f"  {seconds:5.1f} s  {text}")


def _summary(data: Path, seconds: float) -> None:
    from medmesh.embedded.run import running

    run = running(data)
    assert run is not None
    click.secho(say(f"medmesh is up after {seconds:.1f} s.", f"medmesh 已在 {seconds:.1f} 秒内启动。"), fg="green")
    click.echo(f"  gateway  {run.urls['gateway']}   CA {run.paths['ca']}")
    click.echo(f"  audit    {run.urls['audit']}   inference {run.urls['inference']}")
    token = data / "secrets" / "bootstrap.token"
    if token.exists():
        click.echo(
            say(
                f"  first administrator: medmesh user bootstrap --data {data} NAME",
                f"  创建首位安全管理员：medmesh user bootstrap --data {data} 名称",
            )
        )
    if not (data / "roster.json").exists():
        click.echo(
            say(
                "  nothing can be approved before there is a roster of signing keys: medmesh roster init --help",
                "  建立签名公钥名册之前无法进行任何审批：medmesh roster init --help",
            )
        )
    click.echo(say(f"  stop with: medmesh down --data {data}", f"  停止：medmesh down --data {data}"))


@click.command()
@DATA
def down(data: Path) -> int:
    """Stop the platform in order; data stay.  停止平台，数据保留。"""
    from medmesh.embedded.run import stop

    stopped = asyncio.run(stop(data.absolute()))
    click.echo(say("stopped", "已停止") if stopped else say("nothing was running", "没有正在运行的平台"))
    return 0


@click.command()
@DATA
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(data: Path, as_json: bool) -> int:
    """Show what runs, since when, where, and how much memory it takes.  查看运行状态。"""
    from medmesh.embedded.memory import pss
    from medmesh.embedded.run import running

    run = running(data.absolute())
    if run is None:
        click.echo("{}" if as_json else say("nothing is running", "没有正在运行的平台"))
        return 1
    if as_json:
        click.echo(run.model_dump_json(indent=1))
        return 0
    click.echo(
        say(
            f"since {run.since:%Y-%m-%d %H:%M:%S} UTC, process {run.supervisor.pid}",
            f"自 {run.since:%Y-%m-%d %H:%M:%S} UTC，进程 {run.supervisor.pid}",
        )
    )
    for name, process in run.processes.items():
        state = say("running", "运行中") if process.alive else say("restarting", "重启中")
        restarts = f"  {say('restarts', '重启次数')} {process.restarts}" if process.restarts else ""
        click.echo(f"  {name:<11} {state}  pid {process.pid:<7} {size(pss(process.pid)):>9}  {run.urls.get(name, '')}{restarts}")
    click.echo(f"  {say('all together', '合计')}: {size(pss(run.supervisor.pid, tree=True))} PSS")
    return 0


@click.command()
@DATA
@click.argument("name", required=False)
@click.option("-n", "lines", default=40, help="How many lines.")
def logs(data: Path, name: str | None, lines: int) -> int:
    """Show the last lines of a service's log, or name the logs.  查看日志。"""
    folder = data.absolute() / "logs"
    if name is None:
        for file in sorted(folder.glob("*.log")):
            click.echo(f"{file.stem:<12} {size(file.stat().st_size):>10}  {file}")
        return 0
    file = folder / f"{name}.log"
    if not file.exists():
        raise Problem("request.not_found", kind="log", id=name)
    for line in file.read_text(errors="replace").splitlines()[-lines:]:
        click.echo(line)
    return 0


@click.group()
def topology() -> None:
    """Streams, consumers and permissions, all derived from the services' declarations.  消息拓扑。"""


@topology.command()
def permissions() -> None:
    """Print what each service may publish and subscribe to."""
    from medmesh.bus import topology as declared
    from medmesh.service.spec import services

    for granted in [*(declared.permissions(spec) for spec in services().values()), *declared.administrators()]:
        click.secho(granted.identity, bold=True)
        for subject in granted.publish:
            click.echo(f"  publish    {subject}")
        for subject in granted.subscribe:
            click.echo(f"  subscribe  {subject}")


@topology.command(name="apply")
@DATA
def apply_topology(data: Path) -> int:
    """Create or update streams and consumers on the running platform."""
    from medmesh.bus.topology import TOPOLOGY
    from medmesh.embedded import install, platform
    from medmesh.embedded.run import running

    run = running(data.absolute())
    if run is None:
        raise Problem("platform.not_running", data=data)
    prepared = platform.prepare(data.absolute())
    asyncio.run(install.topology(prepared.layout.private(TOPOLOGY, "identity.nk"), run.urls["nats"], prepared.specs.values()))
    click.echo(say("applied", "已应用"))
    return 0

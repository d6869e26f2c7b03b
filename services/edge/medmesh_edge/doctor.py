"""What is amiss with a node, in both languages, and whom to ask."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.learning.environment import explain
from medmesh.security import programs
from medmesh_edge import continuity, environments
from medmesh_edge.ports import Site, site

QUIET_HOURS = 24
"""After so many without a record of anybody it is worth knowing that the log stood still, or was not shown."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` 0 fine, 1 worth knowing, 2 must be mended."""

    level: int
    en: str
    zh: str


async def examine(folder: Path) -> list[Finding]:
    """Every check, from the inside out; those that need an enrolled node are left out when there is none."""
    findings = [_isolation(), _disk(folder)]
    try:
        async with site(folder) as opened:
            findings += [_policy(opened.layout.policy), await _programs(opened), *_faces(opened.settings.deidentification)]
            findings += await _environments(opened)
            findings += [_certificate(opened), _roster(opened), await _log(opened)]
            findings += _network(opened.settings.gateway, opened.layout.ca, opened.settings.proxy)
    except Problem as problem:
        findings.append(Finding(2, str(problem), f"{problem.detail('zh')} {problem.hint('zh')}"))
    return findings


def _isolation() -> Finding:
    found = isolation.capability()
    if found.kind == "none":
        return Finding(
            2,
            f"Training code cannot be isolated here, so nothing will be trained: {found.reason}. Ask the system's administrator.",
            f"此处无法隔离训练代码，因此不会训练：{found.reason}。请联系系统管理员。",
        )
    return Finding(0, f"training code is isolated by {found.kind}", f"训练代码的隔离方式：{found.kind}")


def _disk(folder: Path) -> Finding:
    place = folder if folder.exists() else folder.parent
    free = shutil.disk_usage(place).free / 2**30
    level = 2 if free < 1 else 1 if free < 10 else 0
    return Finding(level, f"{free:.0f} GiB free on the node's disk", f"节点磁盘剩余 {free:.0f} GiB")


def _policy(path: Path) -> Finding:
    from medmesh_edge.policy import read

    try:
        read(path)
    except Problem as problem:
        return Finding(2, str(problem), f"{problem.detail('zh')} {problem.hint('zh')}")
    return Finding(0, "the policy file is valid", "策略文件有效")


def _faces(options: str) -> list[Finding]:
    """Whether faces can be removed, where that is asked for."""
    from medmesh.imaging.deidentify import Options, faces

    if not Options.parse(options).faces:
        return []
    if names := faces.installed():
        said = ", ".join(names)
        return [Finding(0, f"faces of heads are removed by {said}", f"去除面部的软件：{said}")]
    problem = Problem("imaging.face_no_software")
    return [Finding(2, f"{problem.detail()} {problem.hint()}", f"{problem.detail('zh')} {problem.hint('zh')}")]


def _certificate(opened: object) -> Finding:
    _, certificate = opened.credentials()  # type: ignore[attr-defined]
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    if days < 0:
        return Finding(2, "The node's certificate has expired; run 'medmesh edge renew'.", "节点证书已过期，请运行 medmesh edge renew。")
    return Finding(1 if days < 14 else 0, f"the certificate is good for {days} more days", f"证书剩余有效期 {days} 天")


def _roster(opened: Site) -> Finding:
    try:
        roster = opened.roster()
    except Problem as problem:
        return Finding(2, str(problem), f"{problem.detail('zh')} {problem.hint('zh')}")
    if not roster.has_hospital(opened.organisation().vkey):
        missing = Problem("edge.not_rostered")
        return Finding(1, str(missing), f"{missing.detail('zh')} {missing.hint('zh')}")
    days = (roster.expires - datetime.now(UTC)).days
    en = f"the roster's version {roster.version} has this hospital's key and counts for {days} more days"
    return Finding(1 if days < 30 else 0, en, f"名册第 {roster.version} 版含本院密钥，剩余有效期 {days} 天")


async def _log(opened: Site) -> Finding:
    try:
        row = await continuity.present(opened)
    except Problem as problem:
        return Finding(2, str(problem), f"{problem.detail('zh')} {problem.hint('zh')}")
    if row is None:
        return Finding(1, "the platform's log was not seen yet: run the node", "尚未查验平台日志：请运行节点")
    if found := continuity.against(row):
        return Finding(2, str(found), f"{found.detail('zh')} {found.hint('zh')}")
    hours = int((datetime.now(UTC) - row.at).total_seconds() // 3600)
    en = f"the platform's log only grew, to {row.size} records; seen {hours} h ago"
    return Finding(1 if hours >= QUIET_HOURS else 0, en, f"平台日志仅有增长，现 {row.size} 条；{hours} 小时前查验")


async def _programs(opened: Site) -> Finding:
    """Everything that is installed, which a running node does not look at."""
    try:
        path = opened.layout.trust.with_name(programs.NAME)
        if not path.exists():
            return Finding(
                1, "nobody signed for the programs of this node: medmesh program sign", "尚无已签署的程序清单：medmesh program sign"
            )
        found = await asyncio.to_thread(lambda: programs.verify(path, opened.roster(), datetime.now(UTC), programs.measured(), whole=True))
    except Problem as problem:
        return Finding(2, str(problem), f"{problem.detail('zh')} {problem.hint('zh')}")
    if found.changed:
        first, count = found.changed[0], len(found.changed)
        en = f"{count} files of programs are not those that {found.signer} signed for, the first: {first}"
        return Finding(2, en, f"{count} 个程序文件与 {found.signer} 签署的清单不符，首个为 {first}")
    return Finding(0, f"every file of programs is one that {found.signer} signed for", f"全部程序文件与 {found.signer} 签署的清单一致")


async def _environments(opened: Site) -> list[Finding]:
    """What training code would run in, and which federations wait for somebody to approve that it is another."""
    findings = []
    for framework in opened.interpreters.frameworks():
        try:
            found = await opened.interpreters.of(framework)
            findings.append(Finding(0, explain(found, "en", framework), explain(found, "zh", framework)))
        except Problem as problem:
            findings.append(Finding(2, str(problem), f"{problem.detail('zh')} {problem.hint('zh')}"))
    waiting = await environments.problems(opened)
    return [*findings, *(Finding(2, str(one), f"{one.detail('zh')} {one.hint('zh')}") for one in waiting)]


def _network(gateway: str, ca: Path, proxy: str | None) -> list[Finding]:
    where = urlsplit(gateway)
    host, port = where.hostname or "", where.port or 443
    if proxy is None:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except socket.gaierror:
            return [
                Finding(
                    2,
                    f"The name {host} is unknown here; ask the network's administrator (DNS).",
                    f"无法解析 {host}，请联系网络管理员（DNS）。",
                )
            ]
        except OSError:
            text = f"{host}:{port} cannot be reached; ask the network's administrator to allow outgoing connections to it."
            return [Finding(2, text, f"无法连接 {host}:{port}，请网络管理员放行对其的出站连接。")]
    return [Finding(0, f"{host}:{port} answers", f"{host}:{port} 可达"), *_tls(gateway, ca, proxy)]


def _tls(gateway: str, ca: Path, proxy: str | None) -> list[Finding]:
    try:
        context = ssl.create_default_context(cafile=str(ca))
        began = time.time()
        answer = httpx.get(f"{gateway}/health/live", verify=context, proxy=proxy, trust_env=False, timeout=10)
    except httpx.HTTPError as error:
        reason = "certificate" if "CERTIFICATE" in str(error).upper() else type(error).__name__
        en = f"The secure connection failed ({reason}): a wrong clock, a firewall that inspects TLS, or another CA. Ask the network people."
        return [Finding(2, en, f"安全连接失败（{reason}）：时钟错误、防火墙检查 TLS 或 CA 不符。请联系网络管理员。")]
    findings = [Finding(0, "the secure connection is trusted", "安全连接可信")]
    if "date" in answer.headers:
        off = parsedate_to_datetime(answer.headers["date"]).timestamp() - began
        level = 2 if abs(off) > 240 else 1 if abs(off) > 30 else 0
        findings.append(Finding(level, f"this clock is off by {abs(off):.0f} s", f"本机时钟偏差 {abs(off):.0f} 秒"))
    return findings

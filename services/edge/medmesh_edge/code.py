"""A package's code, judged by this hospital before anything of it runs: who read it, and whether it does only what it declares."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from medmesh.client import download
from medmesh.client.gateway import Gateway
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.learning import capabilities
from medmesh.learning.package import Package
from medmesh.learning.package import read as read_package
from medmesh.security import reviews
from medmesh_edge import roster as rosters
from medmesh_edge.policy import Policy
from medmesh_edge.ports import Site


async def fetch(site: Site, gateway: Gateway, ref: ObjectRef) -> Package:
    """The package with this hash, which stays here. Raises `Problem`."""
    path = await download(gateway, ref, site.layout.cached("objects") / ref.sha256)
    return _read(await asyncio.to_thread(path.read_bytes), ref.sha256)


def held(site: Site, digest: str) -> Package | None:
    """The package with this hash where it was fetched before."""
    path = site.layout.cache / "objects" / digest
    return _read(path.read_bytes(), digest) if path.exists() else None


def _read(archive: bytes, digest: str) -> Package:
    read = read_package(archive)
    if read.digest != digest:
        raise Problem("objects.digest", expected=digest, found=read.digest)
    return read


def judge(policy: Policy, plan: Plan, package: Package, signed: Sequence[str], site: Site) -> tuple[str, ...]:
    """The reviewers of a package's code; none where it has no code, or the hospital asks for none. Raises `Problem` (`review.*`,
    `package.*`, `roster.*`, `statement.*`) where it may not run."""
    if not package.manifest.custom or not policy.reviewers or package.digest in policy.packages:
        return ()
    capabilities.check(package)
    now = datetime.now(UTC)
    return reviews.check(signed, site.roster(), policy.reviewers, package=package.digest, initiator=plan.initiator, seen=now)


async def allowed(site: Site, gateway: Gateway, plan: Plan, package: Package, signed: Sequence[str]) -> None:
    """As `judge`, with a newer roster where the one here does not know a reviewer yet. Raises `Problem`."""
    try:
        judge(site.policy(), plan, package, signed, site)
    except Problem as problem:
        if not problem.code.startswith("roster.") or not await rosters.refresh(site, gateway):
            raise
        judge(site.policy(), plan, package, signed, site)


def described(site: Site, row: Any, language: str) -> list[str]:
    """What a person who decides about a federation is told of its code: what it declares, and who read it; a sentence a line."""
    zh = language == "zh"
    if (package := held(site, row.package["sha256"])) is None:
        return [
            "训练包尚未下载：节点连接平台后可见其代码。"
            if zh
            else "The package is not here yet: its code is shown once the node was connected."
        ]
    lines = capabilities.explain(package.manifest, language)
    if not package.manifest.custom:
        return lines
    try:
        about = {"package": package.digest, "initiator": row.plan["initiator"], "seen": datetime.now(UTC)}
        names = ", ".join(reviews.reviewers(row.reviews, site.roster(), **about))
    except Problem as problem:
        return [*lines, problem.detail(language)]
    told = f"Its code was read and signed for by: {names or 'nobody'}."
    return [*lines, f"审查并签署其代码的人：{names or '无'}。" if zh else told]

"""One-time links of invited hospitals: of one hospital and one plan, opened once, revocable; they consent to nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from tests.federations import make_plan, view
from tests.platform import Platform

from medmesh.contracts.federation import CancelFederation, FederationView, GetFederation, LinkInvitation, OpenLink, RevokeLink
from medmesh.contracts.message import Command
from medmesh.federated.invitation import link_digest, link_of, new_secret, parts
from medmesh_federation.tables import links


async def test_a_link_opens_once_for_its_hospital_and_its_plan_and_consents_to_nothing(p: Platform) -> None:
    late = datetime.now(UTC) + timedelta(minutes=5)
    li, eve = p.person("li", "researcher"), p.person("eve", "researcher")

    async def code(command: Command, token: str) -> str:
        """Of the problem, with its reason; empty where it was done."""
        found = (await p.send(command, token)).problem or {}
        return " ".join(filter(None, (found.get("code", ""), found.get("params", {}).get("reason", ""))))

    async def created() -> tuple[str, str]:
        done = await p.send(await make_plan(p, ("huashan", "renji"), accept_by=late), li)
        assert done.result, done.problem
        return done.result["federation"], done.result["plan_hash"]

    federation, plan = await created()
    other, _ = await created()
    secrets = [new_secret() for _ in range(4)]

    def made(secret: str, hospital: str = "huashan", **changed: Any) -> LinkInvitation:
        digest = link_digest(federation, hospital, plan, secret)
        return LinkInvitation(**{"federation": federation, "hospital": hospital, "digest": digest, **changed})

    def opening(secret: str, of: str = federation) -> OpenLink:
        return OpenLink(federation=of, secret=secret)

    async def expired() -> None:
        async with p.runtimes["federation"].unit() as uow:
            await uow.execute(update(links).values(expires=datetime.now(UTC) - timedelta(seconds=1)))

    huashan, renji, stranger = p.hospital("huashan"), p.hospital("renji"), p.hospital("xiehe")
    assert "not made for this hospital" in await code(opening(secrets[0]), huashan), "before there is one"
    assert (await code(made(secrets[0]), eve)).split()[0] == "federation.initiator"
    assert "not invited" in await code(made(secrets[0], "xiehe"), li)
    assert await code(made(secrets[0]), li) == ""
    for token, of in ((renji, federation), (huashan, other)):
        assert "not made for this hospital" in await code(opening(secrets[0], of), token)
    assert (await code(opening(secrets[0]), stranger)).split()[0] in ("access.denied", "request.not_found")
    assert "not made for this hospital" in await code(opening(new_secret()), huashan)

    async def seen() -> tuple[str, ...]:
        """Of which state the links are to the initiator, another researcher, and the other hospital."""
        asked = GetFederation(federation=federation)
        views = [await p.ask(asked, FederationView, token) for token in (li, eve, renji)]
        return tuple(next(one.link for one in found.participants if one.hospital == "huashan") for found in views)

    assert await seen() == ("waiting", "", "")
    opened = await p.send(opening(secrets[0]), huashan)
    assert opened.result == {"plan_hash": plan}
    assert "opened already" in await code(opening(secrets[0]), huashan)
    assert await seen() == ("opened", "", "")
    states = {one.hospital: one.state for one in (await view(p, federation)).participants}
    assert states == {"huashan": "invited", "renji": "invited"}, "whoever opens a link has consented to nothing"

    # Another takes its place; it is revoked; a third expires.
    assert await code(made(secrets[1]), li) == ""
    assert "another has taken its place" in await code(opening(secrets[0]), huashan)
    assert await code(RevokeLink(federation=federation, hospital="huashan"), eve) != ""
    assert await code(RevokeLink(federation=federation, hospital="huashan"), li) == ""
    assert "revoked" in await code(opening(secrets[1]), huashan)
    assert "none for this hospital" in await code(RevokeLink(federation=federation, hospital="renji"), li)
    assert await code(made(secrets[2], seconds=60), li) == ""
    await expired()
    assert (await seen())[0] == "expired"
    assert "expired" in await code(opening(secrets[2]), huashan)
    assert await code(made(secrets[3]), li) == ""
    assert await code(CancelFederation(federation=federation, reason="no more"), li) == ""
    assert (await code(opening(secrets[3]), huashan)).split()[0] == "federation.closed"
    assert (await code(made(secrets[3]), li)).split()[0] == "federation.closed"

    async with p.runtimes["federation"].unit() as uow:
        kept = repr(await uow.all(select(links)))
    assert not any(secret in kept for secret in secrets), "only digests are kept"
    records = await p.audited("federation")
    said = [
        (r["sub"], r["act"], r["entities"][1]["id"])
        for r in records
        if r["sub"] in ("federation.invite", "federation.open") and r["out"] == 0
    ]
    assert said == [
        ("federation.invite", "C", "huashan"),
        ("federation.open", "R", "huashan"),
        ("federation.invite", "C", "huashan"),
        ("federation.invite", "D", "huashan"),
        ("federation.invite", "C", "huashan"),
        ("federation.invite", "C", "huashan"),
    ]
    refused = [r["why"] for r in records if r["sub"] == "federation.respond" and r["out"]]
    assert refused.count("federation.link") == 8
    assert not any(secret in repr(records) for secret in secrets)


def test_a_link_is_a_federation_and_a_secret() -> None:
    assert parts(f" {link_of('01a2-bc', 's3cret')}\n") == ("01a2-bc", "s3cret")

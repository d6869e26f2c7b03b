"""Hospitals whose update a robust algorithm set aside are in no model: nobody says they are, people see it, and each learns what is so."""

from __future__ import annotations

import pytest
from tests.federations import living, opened, start, view
from tests.integration.test_bad_updates import give, int8
from tests.platform import Platform

from medmesh.cli import views
from medmesh.contracts.federation import FederationCompleted, RoundCommitted, WithdrawFromFederation
from medmesh.contracts.screening import Verdict

THREE = ("huashan", "renji", "xiehe")
CHOSEN = THREE[:2]
KRUM = {"algorithm": "multi-krum", "parameters": {"tolerate": "0", "keep": "2"}, "min_participants": 3}
CLIPPING = {"algorithm": "norm-clipping", "parameters": {"factor": "1"}}


@pytest.mark.parametrize(
    ("changed", "verdict", "parties", "en", "zh"),
    [
        (
            KRUM,
            Verdict.ASIDE,
            CHOSEN,
            "round 1: the update of xiehe was set aside by multi-krum",
            "第 1 轮：xiehe 的更新被 multi-krum 算法舍弃",
        ),
        (
            CLIPPING,
            Verdict.CLIPPED,
            THREE,
            "round 1: the update of xiehe was shortened by norm-clipping",
            "第 1 轮：xiehe 的更新经 norm-clipping",
        ),
    ],
    ids=["aside", "clipped"],
)
async def test_who_is_in_a_model_is_who_is_named(
    p: Platform,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, object],
    verdict: Verdict,
    parties: tuple[str, ...],
    en: str,
    zh: str,
) -> None:
    federation = await start(p, THREE, rounds=2, baseline=False, codec="int8", **changed)
    async with living(p, *THREE):
        for number in (1, 2):
            round_ = (await opened(p, number)).data
            assert round_.continues == ({} if number == 1 else dict.fromkeys(parties, "1.1"))
            for hospital, scale in zip(THREE, (0.01, 0.0101, 0.1), strict=True):
                assert (await give(p, round_, hospital, int8(scale * number))).succeeded
            done = (await p.wait(RoundCommitted, lambda e, number=number: e.data.round == number, timeout=30)).data
            assert done.participants == parties
        assert (await p.wait(FederationCompleted, timeout=30)).data.contributors == parties
    seen = await view(p, federation)
    assert [{a.hospital: a.verdict for a in one.answers if a.verdict} for one in seen.rounds] == [{"xiehe": verdict}] * 2
    assert views.flagged(seen)[0].startswith(en)
    views.show_result(seen, None)
    assert en in capsys.readouterr().out
    monkeypatch.setattr(views, "say", lambda _, chinese: chinese)
    assert views.flagged(seen)[0].startswith(zh)
    records = [r["detail"] for r in await p.audited("federation") if r["sub"] == "federation.round"]
    assert [(r["parties"], r.get("flagged")) for r in records] == [(len(parties), f"xiehe: {verdict}")] * 2
    left = await p.send(WithdrawFromFederation(federation=federation, reason="enough"), p.hospital("xiehe"))
    assert left.result == {"state": "withdrawn", "rounds": 0 if verdict is Verdict.ASIDE else 2}

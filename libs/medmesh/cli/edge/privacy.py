"""`medmesh edge privacy`: what federations have spent of this hospital's privacy.  隐私账本。"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show


@click.command(name="privacy")
@FOLDER
@click.option("--json", "as_json", is_flag=True)
def ledger(folder: Path, as_json: bool) -> int:
    """What each federation has spent of this hospital's privacy, and of what budget.

    各联邦消耗了本院多少隐私预算，预算又是多少。

    Written before an attempt at a round trains, and never taken back. Then what all of them spent together on the same patients, which is
    less than the sum of the lines, and with what they may still spend; the policy's `total_epsilon` bounds it.

    每次尝试训练前记账，永不撤销。其后为同一患者在全部联邦中合计的支出（小于各行之和）及尚可支出的上限，由策略 total_epsilon 限定。
    """
    from medmesh_edge.privacy import ledger, totals

    async def work(site: Any) -> Any:
        return {"federations": await ledger(site), "totals": await totals(site)}

    found = on_site(folder, work)
    if as_json:
        show(found)
        return 0
    for one in found["federations"]:
        unit = say(f"a {one['unit']}", {"hospital": "医院", "patient": "患者"}[one["unit"]])
        en = f"of {unit}: epsilon {one['epsilon']} of {one['budget']} at delta {one['delta']}, {one['attempts']} attempts"
        zh = f"保护单位 {unit}：ε={one['epsilon']}，预算 {one['budget']}，δ={one['delta']}，已计 {one['attempts']} 次尝试"
        click.echo(f"{one['federation']}  {one['name']}  {say(en, zh)}")
    for one in found["totals"]:
        _total(one)
    return 0


def _total(one: dict[str, Any]) -> None:
    """One account."""
    hospital = one["unit"] == "hospital"
    whose = say("this hospital", "本院") if hospital else say(f"a patient ({one['modality']})", f"单个患者（{one['modality']}）")
    en = f"together, {whose}: epsilon {one['epsilon']} of {one['budget']} at delta {one['delta']}, {one['federations']} federations"
    zh = f"合计，{whose}：ε={one['epsilon']}，总预算 {one['budget']}，δ={one['delta']}，共 {one['federations']} 个联邦"
    if one["days"]:
        en, zh = f"{en} in {one['days']} days", f"{zh}（{one['days']} 天内）"
    if one["reserved"] != one["epsilon"]:
        en, zh = f"{en}; up to {one['reserved']} as signed", f"{zh}；按已签方案最多至 {one['reserved']}"
    click.echo(say(en, zh))
    if one["without"]:
        en = f"  {one['without']} more without differential privacy: nothing bounds what they tell"
        click.secho(say(en, f"  另有 {one['without']} 个联邦不含差分隐私：其所泄露的信息无上限保证"), fg="yellow")

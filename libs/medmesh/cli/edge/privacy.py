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
    """What each federation has spent of this hospital's privacy, and of what budget.  查看隐私账本。

    Written before an attempt at a round trains, and never taken back. The lines do not add up to one figure: what two federations spend
    on the same patients together is at most the sum of both.  每次尝试训练前记账，永不撤销；各联邦之和为同一患者合计支出的上限。
    """
    from medmesh_edge.privacy import ledger

    async def work(site: Any) -> Any:
        return await ledger(site)

    found = on_site(folder, work)
    if as_json:
        show(found)
        return 0
    for one in found:
        unit = say(f"a {one['unit']}", {"hospital": "医院", "patient": "患者"}[one["unit"]])
        en = f"of {unit}: epsilon {one['epsilon']} of {one['budget']} at delta {one['delta']}, {one['attempts']} attempts"
        zh = f"保护单位 {unit}：ε={one['epsilon']}，预算 {one['budget']}，δ={one['delta']}，已计 {one['attempts']} 次尝试"
        click.echo(f"{one['federation']}  {one['name']}  {say(en, zh)}")
    return 0

"""`medmesh edge key|roster`: the hospital's own key, and whose signatures count at the hospital.  本院密钥与签名名册。"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medmesh.cli import say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.errors import Problem


def tell_key(file: Path) -> None:
    """The public half of the hospital's key, and its fingerprint."""
    from medmesh.cli.key import tell
    from medmesh.security import signing

    click.echo(say("The hospital's own key; read its fingerprint to the keepers of the roster:", "本院密钥；请将指纹朗读给名册保管人："))
    tell(signing.public_of(file))


@click.command(name="key")
@FOLDER
def own_key(folder: Path) -> int:
    """The hospital's own key and its fingerprint, to be read to the keepers of the roster.

    本院自己的密钥及其指纹，用于读给名册保管人核对。
    """
    from medmesh_edge.settings import Layout

    file = Layout(folder.absolute()).organisation_key
    if not file.exists():
        raise Problem("edge.not_enrolled", folder=folder)
    tell_key(file)
    return 0


@click.command(name="roster")
@FOLDER
@click.option(
    "--pin",
    metavar="DIGITS",
    help="Pin the version with this fingerprint, as it was read to you.  固定具有此指纹的版本；指纹须经口头核对。",
)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take it, or newer versions, from a file.  从文件读取名册或其新版本。",
)
def own_roster(folder: Path, pin: str | None, file: Path | None) -> int:
    """Whose signatures count at this hospital: pin the roster once; later versions are believed by their signatures alone.

    本院认可谁的签名：名册只需固定一次，之后的版本凭其签名即可信任。

    With neither option it says what is pinned and fetches what is newer.

    不带选项时，显示已固定的版本并获取更新的版本。
    """
    from medmesh.security.roster import notes_of
    from medmesh.security.roster_file import RosterFile
    from medmesh_edge import roster as rosters

    async def work(site: Any) -> Any:
        known = site.layout.roster.exists()
        async with site.gateway(attempts=1) as gateway:
            if pin is None and file is None:
                await rosters.refresh(site, gateway)
            elif known and pin is None and file is not None:
                await rosters.hand_over(site, file.read_bytes())
            else:
                notes = notes_of(file.read_bytes()) if file is not None else await rosters.served(gateway)
                await rosters.record(site, rosters.pin(site.layout, notes, pin), pinned=True)
        return RosterFile(site.layout.roster).chain()

    found = on_site(folder, work)
    click.echo(say(f"version {found.roster.version}", f"第 {found.roster.version} 版"))
    click.echo(say("  pinned   ", "  固定版本  ") + found.pin)
    click.echo(say("  present  ", "  当前版本  ") + found.present)
    for member in (*found.roster.people, *found.roster.hospitals):
        click.echo(f"  {member.name:<28} {' '.join(member.roles)}")
    return 0

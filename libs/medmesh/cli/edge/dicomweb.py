"""`medmesh edge dicomweb`: the hospital's systems that may use the node's DICOMweb.  DICOMweb 客户端令牌。"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from medmesh.cli import say
from medmesh.cli.edge.site import FOLDER, on_site
from medmesh.cli.session import show


@click.group()
def dicomweb() -> None:
    """Tokens of the systems that use the node's DICOMweb.  DICOMweb 令牌。

    使用节点 DICOMweb 的系统的令牌。

    The node answers QIDO-RS, WADO-RS and STOW-RS at http://HOST:PORT/dicom-web/PROJECT (PORT is in edge.port of its folder). A system sends
    `Authorization: Bearer TOKEN`. docs/hospital/dicomweb.md goes through it.

    节点在 http://HOST:PORT/dicom-web/PROJECT 提供 QIDO-RS、WADO-RS 与 STOW-RS（PORT 见其文件夹中的 edge.port）。系统发送
    `Authorization: Bearer TOKEN`。说明见 docs/hospital/dicomweb.md。

    \b
    medmesh edge dicomweb create viewer --project brain-mri           a viewer that reads originals
    medmesh edge dicomweb create ris --project brain-mri --write      a system that stores, too
    medmesh edge dicomweb create lab --project brain-mri --clean      de-identified objects only
    medmesh edge dicomweb list
    medmesh edge dicomweb revoke viewer

    \b
    medmesh edge dicomweb create viewer --project brain-mri           读取原始影像的阅片系统
    medmesh edge dicomweb create ris --project brain-mri --write      也可存入的系统
    medmesh edge dicomweb create lab --project brain-mri --clean      仅读取去标识影像
    medmesh edge dicomweb list
    medmesh edge dicomweb revoke viewer
    """


@dicomweb.command()
@FOLDER
@click.argument("name")
@click.option("--project", required=True, help="The data set it is for.  数据集。")
@click.option("--write", is_flag=True, help="It may store objects, too.  允许写入。")
@click.option("--clean", is_flag=True, help="It sees de-identified objects instead of originals.  仅可见去标识化对象，看不到原始影像。")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3660), help="How long its token holds.  有效天数。")
def create(folder: Path, name: str, project: str, write: bool, clean: bool, days: int) -> int:
    """Make a system's token, which is shown this once.  发放令牌（仅显示一次）。"""
    from medmesh_edge import clients

    rights: tuple[Literal["read", "write"], ...] = ("read", "write") if write else ("read",)
    realm: Literal["clean", "original"] = "clean" if clean else "original"
    token = on_site(folder, lambda site: clients.create(site, name, project, realm, rights, days))
    click.echo(say("The token, shown this once:", "令牌（仅显示这一次）："), err=True)
    click.echo(token)
    return 0


@dicomweb.command("list")
@FOLDER
def list_clients(folder: Path) -> int:
    """Which systems have a token, for what, and how long.

    哪些系统持有令牌、用途为何、有效期多久。
    """
    from medmesh_edge import clients

    found = on_site(folder, clients.all_clients)
    show(
        [
            {"name": c.name, "project": c.project, "realm": c.realm, "rights": " ".join(c.rights), "expires": f"{c.expires:%Y-%m-%d}"}
            for c in found
        ]
    )
    return 0


@dicomweb.command()
@FOLDER
@click.argument("name")
def revoke(folder: Path, name: str) -> int:
    """Its token opens nothing from now on.

    该系统的令牌自此失效。
    """
    from medmesh_edge import clients

    on_site(folder, lambda site: clients.revoke(site, name))
    click.echo(say("revoked", "已撤销"))
    return 0

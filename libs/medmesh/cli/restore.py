"""`medmesh audit restore`: the log back from its sealed segments, verified before anything goes on from it.  从封存分段恢复日志。"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from medmesh.cli import language, say
from medmesh.cli.verify import FILE, key_of
from medmesh.ledger.copies import Folder
from medmesh.ledger.policy import demanding
from medmesh.ledger.report import WHOLE, Report
from medmesh.ledger.verify import Wanted, verify_log


@click.command()
@click.option("--s3", required=True, metavar="URL", help="The S3 service with the sealed segments.")
@click.option("--s3-credentials", required=True, type=FILE, help="JSON file with access_key and secret_key, mode 0600.")
@click.option("--bucket", default="sealed", show_default=True)
@click.option("--key", required=True, help="The log's verifier key, as handed over at installation (or a file holding it).  日志公钥。")
@click.option("--checkpoint", type=FILE, help="The newest checkpoint anybody has seen: an auditor's, or a witness's.  最新的已知检查点。")
@click.option(
    "--database", default="", metavar="DSN", envvar="MEDMESH_AUDIT_DSN", help="An empty, migrated schema to fill, as medmesh_audit."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def restore(
    s3: str, s3_credentials: Path, bucket: str, key: str, checkpoint: Path | None, database: str, as_json: bool, folder: Path
) -> int:
    """Read the log back from its sealed segments into FOLDER, verify it, and fill an empty database with it.  恢复日志。

    Everything is hashed anew. When the checkpoint of --checkpoint is not in what was sealed, it says how many records are missing and
    fills nothing: a log that went on would be a second history under the same name. Ends with 0 whole, 1 altered or shorter, 2 unreadable.
    """
    report = asyncio.run(_copy(s3, s3_credentials, bucket, key_of(key), checkpoint, folder))
    if as_json:
        click.echo(json.dumps(report.document(), ensure_ascii=False, indent=1))
    else:
        for fault in report.faults:
            click.secho(fault.problem.detail(language()), fg="red")
        click.echo(say(f"{report.size} records read back", f"已读回 {report.size} 条记录"))
    if report.code != WHOLE or not database:
        return report.code
    filled = asyncio.run(_fill(database, folder))
    if not as_json:
        click.secho(say(f"{filled} records in the database; start audit", f"数据库中已有 {filled} 条记录，可启动 audit"), fg="green")
    return WHOLE


async def _copy(s3: str, credentials: Path, bucket: str, vkey: str, checkpoint: Path | None, folder: Path) -> Report:
    from medmesh.store.objects.sealed import SealedStore
    from medmesh_audit.restore import restore as read_back

    store = await SealedStore.open(s3, bucket, credentials, retain_days=180)
    try:
        await read_back(store, vkey, folder)
    finally:
        store.close()
    kept = checkpoint.read_bytes() if checkpoint is not None else None
    return await asyncio.to_thread(verify_log, Folder(folder), Wanted(demanding(vkey), kept=kept))


async def _fill(dsn: str, folder: Path) -> int:
    from medmesh.store.database import Database
    from medmesh_audit.restore import fill

    database = Database.postgres(dsn, application="medmesh-restore")
    try:
        return await fill(database, folder)
    finally:
        await database.close()

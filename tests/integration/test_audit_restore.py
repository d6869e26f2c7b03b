"""The drill: the database is gone, the log comes back from its sealed segments and continues itself, or says what is missing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from tests.contract.test_sealed import keys
from tests.integration.test_audit_sealing import sealing
from tests.logs import audit_service, copied, hand_in, records, vkey
from tests.platform import PASSWORD
from tests.store import service_postgres

from medmesh.embedded.testing import RunningServers
from medmesh.ledger.copies import Folder
from medmesh.ledger.policy import demanding
from medmesh.ledger.verify import Wanted, verify_log
from medmesh.store.migrate import Schema
from medmesh_audit.sealing import Sealer
from medmesh_audit.service import SERVICE

pytestmark = pytest.mark.xdist_group("audit-restore")
SCHEMA = Schema("audit", SERVICE.metadata, SERVICE.migrations)


async def restored(servers: RunningServers, private: Path, bucket: str, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """`medmesh audit restore`."""
    command = [sys.executable, "-P", "-m", "medmesh", "audit", "restore", "--json", "--s3", servers.s3_url]
    command += ["--s3-credentials", str(keys(servers, private)), "--bucket", bucket, "--key", vkey(private), *options, str(folder)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, timeout=90)
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


async def test_it_comes_back_and_continues_itself(servers: RunningServers, private: Path, unique: str, tmp_path: Path) -> None:
    async with sealing(servers, private, unique) as (p, store):
        await hand_in(p.bus, "governance", records("governance", 1, 400))
        await hand_in(p.bus, "registry", records("registry", 1, 200))
        await Sealer(p.runtimes["audit"], store).run()
        seen = tmp_path / "seen.checkpoint"
        async with p.runtimes["audit"].unit() as uow:
            seen.write_text((await p.runtimes["audit"].ports.witnesses.newest(uow)).note)
    # The database of above is forgotten; another one is empty.
    name = f"restored_{unique}"
    async with service_postgres(servers.postgres_url, SCHEMA, name):
        where = make_url(servers.postgres_url).set(database=name, username="medmesh_audit", password=PASSWORD)
        dsn = where.render_as_string(hide_password=False)
        bucket = f"log-{unique}"
        code, said = await restored(servers, private, bucket, tmp_path / "copy", "--checkpoint", str(seen), "--database", dsn)
        assert (code, said["size"], said["bodies"]) == (0, 600, 600)
        again, _ = await restored_twice(servers, private, bucket, tmp_path / "twice", dsn)
        assert again != 0, "it is not empty any more"
        (private / "again").mkdir(mode=0o700)
        key = private / "log.nk"
        async with audit_service(servers, private / "again", log_key=key, database_url=dsn) as p:
            first = await hand_in(p.bus, "governance", records("governance", 401, 5))
            assert [receipt.seq for receipt in first] == [600, 601, 602, 603, 604]
            copy = await copied(p.runtimes["audit"], tmp_path / "after")
        report = verify_log(Folder(copy), Wanted(demanding(vkey(private)), kept=seen.read_bytes()))
        assert (report.faults, report.size >= 605) == ([], True), "what the auditor saw is its beginning"
        assert report.emitters["governance"] == {"first": 1, "last": 405, "records": 405, "gaps": 0, "missing": 0}


async def restored_twice(servers: RunningServers, private: Path, bucket: str, folder: Path, dsn: str) -> tuple[int, dict[str, Any]]:
    return await restored(servers, private, bucket, folder, "--database", dsn)


async def test_what_was_not_sealed_is_named_and_nothing_goes_on_from_less(
    servers: RunningServers, private: Path, unique: str, tmp_path: Path
) -> None:
    async with sealing(servers, private, unique) as (p, store):
        await hand_in(p.bus, "governance", records("governance", 1, 300))
        await Sealer(p.runtimes["audit"], store).run()
        await hand_in(p.bus, "governance", records("governance", 301, 7))
        seen = tmp_path / "seen.checkpoint"
        async with p.runtimes["audit"].unit() as uow:
            seen.write_text((await p.runtimes["audit"].ports.witnesses.newest(uow)).note)
    name = f"short_{unique}"
    async with service_postgres(servers.postgres_url, SCHEMA, name) as database:
        where = make_url(servers.postgres_url).set(database=name, username="medmesh_audit", password=PASSWORD)
        options = ("--checkpoint", str(seen), "--database", where.render_as_string(hide_password=False))
        code, said = await restored(servers, private, f"log-{unique}", tmp_path / "copy", *options)
        assert code == 1
        assert [(fault["code"], fault["kept"], fault["size"]) for fault in said["faults"]] == [("ledger.rolled_back", 307, 300)]
        async with database.engine.connect() as sql:
            assert (await sql.exec_driver_sql("SELECT count(*) FROM entries")).scalar_one() == 0

"""What is installed on the servers before services start, each part by the one identity that may; all of it safe to run again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sqlalchemy.engine import make_url

from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.topology import TOPOLOGY, apply
from medmesh.service.spec import ServiceSpec
from medmesh.store import migrate
from medmesh.store.objects.s3 import S3Store
from medmesh.store.objects.sealed import SealedStore

BUCKETS = ("kept", "scratch")
SEALED = "sealed"
RETAIN_DAYS = 1095


async def topology(seed: Path, nats: str, specs: Iterable[ServiceSpec], replicas: int = 1) -> None:
    """Streams, each on `replicas` servers, and consumers."""
    bus = await NatsBus.connect(nats, name=TOPOLOGY, seed=seed)
    try:
        await apply(bus, specs, replicas)
    finally:
        await bus.close()


async def schemas(database: str, password: str | None, specs: Iterable[ServiceSpec], passwords: dict[str, str]) -> None:
    """Roles, schemas and migrations. `password` is the administrator's where `database` does not hold it."""
    url = make_url(database)
    if password is not None and url.password is None:
        url = url.set(password=password)
    found = [migrate.Schema(spec.name, spec.metadata, spec.migrations) for spec in specs]
    await migrate.apply(url.render_as_string(hide_password=False), found, passwords)


async def buckets(s3: str, credentials: Path) -> None:
    """The buckets, which services may fill and not make."""
    for bucket in BUCKETS:
        (await S3Store.open(s3, bucket, credentials)).close()
    (await SealedStore.open(s3, SEALED, credentials, retain_days=RETAIN_DAYS)).close()

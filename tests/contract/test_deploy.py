"""The image, the Compose files and the servers' configuration, checked without Docker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from medmesh.security.authority import Authority
from medmesh.service.listener import respond
from medmesh.service.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SERVICES = sorted(PROJECT["entry-points"]["medmesh.services"])
PUBLIC = {"gateway", "inference", "audit"}
COMPOSE = {"platform": ("compose",), "observe": ("compose", "compose.observe"), "hospital": ("compose.hospital",)}

# The parts of the Compose Specification in use; anything else is a typing error until it is added here.
SERVICE_KEYS = {
    *("build", "cap_drop", "command", "configs", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "image", "logging"),
    *("network_mode", "networks", "pids_limit", "ports", "read_only", "restart", "security_opt", "shm_size", "stop_grace_period"),
    *("stop_signal", "tmpfs", "user", "volumes"),
}
MOUNT_KEYS = {"type", "source", "target", "read_only", "volume", "bind"}
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period", "start_interval"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def load(path: Path) -> Any:
    """A document that may not say the same thing twice, which YAML readers pass over in silence."""
    text = path.read_text(encoding="utf-8")
    todo: list[Any] = [yaml.compose(text, yaml.SafeLoader)]
    while todo:
        node = todo.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"said twice:{node.start_mark}"
            todo += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value
    return yaml.safe_load(text)


@cache
def compose(name: str) -> dict[str, dict[str, Any]]:
    """The files of one way to run, merged as `docker compose -f A -f B` does with parts of different names."""
    merged: dict[str, dict[str, Any]] = {part: {} for part in ("services", "networks", "volumes", "configs", "secrets")}
    for file in COMPOSE[name]:
        document = load(ROOT / "compose" / f"{file}.yaml")
        assert {key for key in document if not key.startswith("x-")} <= {"name", *merged}
        for part, found in merged.items():
            assert not found.keys() & document.get(part, {}).keys()
            found.update(document.get(part, {}))
    return merged


def containers(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from compose(name)["services"].items()


async def known(path: str) -> bool:
    """Whether a service answers `path`; probes speak to no other route."""

    async def ready() -> dict[str, str]:
        return {}

    return (await respond(path, ready))[0] == 200


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_refers_only_to_what_exists(name: str) -> None:
    parts = compose(name)
    for service, said in parts["services"].items():
        assert not said.keys() - SERVICE_KEYS, service
        assert re.search(r":v?\d+\.\d", said["image"]), f"{service}: pin the version"
        if "build" in said:
            context = (ROOT / "compose" / said["build"]["context"]).resolve()
            assert (context / "Dockerfile").is_file()
            assert set(said["build"]["args"]["EXTRAS"].split(",")) <= PROJECT["optional-dependencies"].keys()
        for needed, how in said.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS
            assert how["condition"] != "service_healthy" or parts["services"][needed]["healthcheck"]
            assert how["condition"] != "service_completed_successfully" or parts["services"][needed]["restart"] == "no"
        assert set(said.get("networks", ())) <= parts["networks"].keys()
        assert not ("networks" in said and "network_mode" in said)
        if (mode := said.get("network_mode", "none")) != "none":
            assert mode.removeprefix("service:") in parts["services"]
        for config in said.get("configs", ()):
            assert (ROOT / "compose" / parts["configs"][config["source"]]["file"]).is_file()
        for mount in said.get("volumes", ()):
            if isinstance(mount, str):
                assert mount.split(":")[0] in parts["volumes"]
                continue
            assert not mount.keys() - MOUNT_KEYS
            assert mount["target"].startswith("/")
            if mount["type"] == "volume":
                assert mount["source"] in parts["volumes"]
            elif not mount["source"].startswith("${"):
                assert (ROOT / "compose" / mount["source"]).exists(), mount["source"]
        assert not said.get("healthcheck", {}).keys() - HEALTH_KEYS


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_contains_every_container(name: str) -> None:
    for service, said in containers(name):
        assert said["read_only"] is True, service
        assert said["cap_drop"] == ["ALL"], service
        assert said["security_opt"] == ["no-new-privileges:true"], service
        assert not said.get("privileged") and not said.keys() & {"devices", "pid", "ipc"}, service
        assert said.get("network_mode") != "host", service
        assert "docker.sock" not in str(said.get("volumes", ())), service
        assert service == "postgres" or not said.get("user", "0").startswith("0"), service
        assert said["user"].split(":")[0].isdigit(), service
        assert said["restart"] == "no" or (said["healthcheck"] and said["deploy"]["resources"]["limits"]["memory"]), service
        for variable in said.get("environment", {}):
            assert not re.search(r"(PASSWORD|SECRET|TOKEN|SEED)$", variable), f"{service}: secrets are files"
        for port in said.get("ports", ()):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), f"{service}: published beyond this machine"


def test_only_what_people_use_is_published() -> None:
    assert {service for service, said in containers("platform") if said.get("ports")} == PUBLIC
    published = [port for _, said in containers("observe") for port in said.get("ports", ())]
    assert len({port.split(":")[1] for port in published}) == len(published)
    assert compose("platform")["networks"]["inside"] == {"internal": True}
    outside = {service for service, said in containers("platform") if set(said.get("networks", ())) - {"inside"}}
    assert outside == PUBLIC


@pytest.mark.parametrize("service", SERVICES)
async def test_every_service_runs_under_compose(service: str) -> None:
    said = compose("platform")["services"][service]
    folder = f"/srv/medmesh/{service}"
    assert said["command"] == [service, "--settings", f"{folder}/settings.json"]
    assert "entrypoint" not in said
    assert said["depends_on"]["setup"]["condition"] == "service_completed_successfully"
    # It sees its own secrets and what is public, and can change neither.
    mine = {(m["volume"]["subpath"], m["target"], m["read_only"]) for m in said["volumes"] if m["source"] == "medmesh"}
    domains = {"governance": ["authority", "seal"], "audit": ["log"], "registry": ["release"], "ingestion": ["pseudonyms"]}.get(service, [])
    domains += [] if service == "governance" else ["objects"]
    assert mine == {(name, f"/srv/medmesh/{name}", True) for name in ("trust", service, *domains)}
    environment = said["environment"]
    fields = {name.removeprefix("MEDMESH_").lower() for name in environment if name.startswith("MEDMESH_")}
    assert fields <= ServiceSettings.model_fields.keys()
    (probed,) = re.findall(r"https?://[^']+", said["healthcheck"]["test"][-1])
    address = urlsplit(probed)
    assert await known(address.path)
    assert str(address.port) == environment["MEDMESH_PORT"]
    assert (address.scheme == "https") == ("MEDMESH_TLS_CERTIFICATE" in environment) == (service in PUBLIC)
    assert "".join(said.get("ports", ())).endswith(environment["MEDMESH_PORT"] if service in PUBLIC else "")


async def test_the_edge_page_is_only_for_this_machine() -> None:
    ((_, edge),) = containers("hospital")
    assert edge["ports"] == ["127.0.0.1:8600:8600"]
    (probed,) = re.findall(r"http://[^']+", edge["healthcheck"]["test"][-1])
    assert await known(urlsplit(probed).path)


def test_the_image_is_unprivileged_and_knows_its_extras() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM (\S+)", text, re.M) == ["python:3.11-slim-trixie"] * 2
    assert re.search(r"^USER 10001:10001$", text, re.M)
    assert re.search(r'^ENTRYPOINT \["python", "-m", "medmesh.service"\]$', text, re.M)
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.M)
    assert set(SERVICES) <= set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        assert set(copied.split()) <= allowed
        assert all((ROOT / name).exists() for name in copied.split())


@pytest.mark.parametrize("file", ["compose/nats.conf", "k8s/base/nats.conf", "k8s/overlays/ha/nats.conf"])
def test_nats_accepts_its_configuration(file: str, tmp_path: Path) -> None:
    secrets = tmp_path / ("srv/medmesh/nats" if file.startswith("compose") else "run/secrets/nats")
    authority = Authority.create(secrets)
    certificate, key = authority.issue_server(["nats", "localhost"])
    for name in ("tls", "route"):
        (secrets / f"{name}.crt").write_bytes(certificate)
        (secrets / f"{name}.key").write_bytes(key)
    (secrets / "authorization.conf").write_text("authorization { users: [] }\n")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(r"^\s*sync_interval: always$", text, re.M)
    placed = tmp_path / "etc" / "nats" / "nats.conf"
    placed.parent.mkdir(parents=True)
    placed.write_text(text.replace('"/', f'"{tmp_path}/'))
    command: list[str | Path] = [BIN / "nats-server", "-t", "-c", placed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "SERVER_NAME": "nats-0"})
    assert done.returncode == 0, done.stderr

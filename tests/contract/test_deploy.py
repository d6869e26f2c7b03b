"""The deployment files, checked without Docker and without a cluster."""

from __future__ import annotations

import importlib
import importlib.util
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

import kubernetes_validate  # type: ignore[import-untyped]
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
OVERLAYS = ("base", "overlays/single", "overlays/ha", "overlays/hospital", "monitoring")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "Cluster"}
"""Kinds of operators that a cluster may have; they have no schema here."""
GIVEN = {"medmesh-trust"}
"""ConfigMaps the operator makes."""

# The parts of the Compose Specification in use; anything else is a typing error until it is added here.
SERVICE_KEYS = set(
    "build cap_drop command configs depends_on deploy entrypoint environment healthcheck image logging network_mode networks pids_limit "
    "ports read_only restart security_opt shm_size stop_grace_period stop_signal tmpfs user volumes".split()
)
MOUNT_KEYS = {"type", "source", "target", "read_only", "volume", "bind"}
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period", "start_interval"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


class Strict(yaml.SafeLoader):
    """YAML that may not say the same thing twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        # Merging puts the inherited keys first, so that only a mapping that merges nothing can be judged.
        if not hasattr(node, "judged"):
            assert len(keys) == len(set(keys)), f"said twice in {node.start_mark}"
            node.judged = True  # type: ignore[attr-defined]
        return super().construct_mapping(node, deep)


def load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Strict)


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


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    done = subprocess.run([BIN / "kubectl", "kustomize", ROOT / "k8s" / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.load_all(done.stdout, Strict))


def pods(overlay: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, labels, pod specification) of every workload."""
    for thing in rendered(overlay):
        if thing["kind"] in {"Deployment", "StatefulSet", "Job"}:
            template = thing["spec"]["template"]
            yield thing["metadata"]["name"], template["metadata"]["labels"], template["spec"]


def named(overlay: str, kind: str) -> dict[str, dict[str, Any]]:
    return {thing["metadata"]["name"]: thing for thing in rendered(overlay) if thing["kind"] == kind}


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
    assert mine == {("trust", "/srv/medmesh/trust", True), (service, folder, True)}
    environment = said["environment"]
    fields = {name.removeprefix("MEDMESH_").lower() for name in environment if name.startswith("MEDMESH_")}
    assert fields <= ServiceSettings.model_fields.keys()
    found = re.search(r"https?://[^']+", said["healthcheck"]["test"][-1])
    assert found
    address = urlsplit(found.group())
    assert await known(address.path)
    assert str(address.port) == environment["MEDMESH_PORT"]
    assert (address.scheme == "https") == ("MEDMESH_TLS_CERTIFICATE" in environment) == (service in PUBLIC)
    assert "".join(said.get("ports", ())).endswith(environment["MEDMESH_PORT"] if service in PUBLIC else "")


async def test_the_edge_page_is_only_for_this_machine() -> None:
    ((_, edge),) = containers("hospital")
    assert edge["ports"] == ["127.0.0.1:8600:8600"]
    assert await known(urlsplit(re.search(r"http://[^']+", edge["healthcheck"]["test"][-1]).group()).path)  # type: ignore[union-attr]


def test_the_image_is_unprivileged_and_knows_its_extras() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM (\S+)", text, re.M) == ["python:3.11-slim-trixie"] * 2
    assert re.search(r"^USER 10001:10001$", text, re.M)
    assert re.search(r'^ENTRYPOINT \["python", "-m", "medmesh.service"\]$', text, re.M)
    assert (
        set(SERVICES)
        <= set(re.search(r"^ARG EXTRAS=(\S+)$", text, re.M).group(1).split(","))
        <= PROJECT[  # type: ignore[union-attr]
            "optional-dependencies"
        ].keys()
    )
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        assert set(copied.split()) <= allowed
        assert all((ROOT / name).exists() for name in copied.split())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_accepts_every_object(overlay: str) -> None:
    seen = set()
    for thing in rendered(overlay):
        key = (thing["kind"], thing["metadata"]["name"])
        assert key not in seen
        seen.add(key)
        assert thing["kind"] != "Secret", "secrets are made by the operator"
        if thing["kind"] not in CUSTOM:
            kubernetes_validate.validate(thing, "1.34", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
async def test_pods_refer_only_to_what_exists(overlay: str) -> None:
    text = (ROOT / "k8s" / "README.md").read_text(encoding="utf-8")
    for name, _, pod in pods(overlay):
        assert pod["serviceAccountName"] in named(overlay, "ServiceAccount"), name
        sources = [source for volume in pod["volumes"] for source in [volume, *volume.get("projected", {}).get("sources", ())]]
        for source in sources:
            if map_ := source.get("configMap"):
                assert map_["name"] in named(overlay, "ConfigMap").keys() | GIVEN, name
            if secret := source.get("secret"):
                wanted = secret.get("secretName") or secret["name"]
                assert wanted in text or re.sub(r"-(" + "|".join(SERVICES) + r")$", "-SERVICE", wanted) in text, wanted
            if claim := source.get("persistentVolumeClaim"):
                assert claim["claimName"] in named(overlay, "PersistentVolumeClaim").keys() | {"hospital-data"}
        templates = {
            t["metadata"]["name"] for t in named(overlay, "StatefulSet").get(name, {"spec": {}})["spec"].get("volumeClaimTemplates", ())
        }
        volumes = {volume["name"] for volume in pod["volumes"]} | templates
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
            assert re.search(r":v?\d+\.\d", container["image"]), "pin the version"
            ports = {port["name"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if get := container.get(probe, {}).get("httpGet"):
                    assert get["port"] in ports, (name, probe)
                    assert not container["image"].startswith("medmesh") or await known(get["path"]), (name, get["path"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_contained(overlay: str) -> None:
    """Pod Security `restricted`, and a read-only root."""
    for name, _, pod in pods(overlay):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            context = container["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["limits"]["memory"], name
    for namespace in named(overlay, "Namespace").values():
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", ())
    )


@pytest.mark.parametrize("overlay", ["base", "overlays/single", "overlays/ha", "overlays/hospital"])
def test_the_network_is_closed_but_for_what_is_needed(overlay: str) -> None:
    all_labels = [labels for _, labels, _ in pods(overlay)]
    all_labels += [{**c["spec"]["inheritedMetadata"]["labels"], "cnpg.io/cluster": n} for n, c in named(overlay, "Cluster").items()]
    policies = [policy["spec"] for policy in named(overlay, "NetworkPolicy").values()]
    assert any(p["podSelector"] == {} and set(p["policyTypes"]) == {"Ingress", "Egress"} and not p.get("ingress") for p in policies)
    for policy in policies:
        selectors = [policy["podSelector"]]
        selectors += [peer["podSelector"] for way in ("from", "to") for rule in policy.get("ingress", []) + policy.get("egress", [])
                      for peer in rule.get(way, ()) if "podSelector" in peer]  # fmt: skip
        for selector in selectors:
            assert any(matches(selector, labels) for labels in all_labels), f"selects nothing: {selector}"
    # Every port a service offers is opened to somebody, but health and metrics, which monitoring/ opens.
    for name, service in named(overlay, "Service").items():
        labels = next(labels for labels in all_labels if labels["app.kubernetes.io/name"] == name.removesuffix("-peers"))
        opened = {
            p["port"]
            for policy in policies
            if matches(policy["podSelector"], labels)
            for r in policy.get("ingress", ())
            for p in r["ports"]
        }
        assert {port["port"] for port in service["spec"]["ports"]} <= opened | {8080}, name


@pytest.mark.parametrize("overlay", ["base", "overlays/single", "overlays/ha"])
@pytest.mark.parametrize("service", SERVICES)
def test_every_service_runs_on_kubernetes(service: str, overlay: str) -> None:
    spec = named(overlay, "Deployment")[service]["spec"]
    labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
    assert matches(spec["selector"], labels)
    offered = named(overlay, "Service")[service]["spec"]
    assert matches({"matchLabels": offered["selector"]}, labels)
    (container,) = pod["containers"]
    assert container["args"] == [service, "--settings", "/etc/medmesh/settings/settings.json"]
    assert "command" not in container
    assert {v["name"]: v for v in pod["volumes"]}["secret"]["secret"]["secretName"] == f"medmesh-{service}"
    assert pod["serviceAccountName"] == service
    (port,) = container["ports"]
    assert [p["port"] for p in offered["ports"]] == [port["containerPort"]]
    assert container["readinessProbe"]["httpGet"].get("scheme", "HTTP") == ("HTTPS" if service in PUBLIC else "HTTP")
    if service == "audit":
        assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_accepts_its_settings(service: str) -> None:
    name = f"medmesh_{service}.settings"
    kind = importlib.import_module(name).Settings if importlib.util.find_spec(name) else ServiceSettings
    settings = kind.load(ROOT / "k8s" / "base" / "settings" / f"{service}.json", {})
    container = named("base", "Deployment")[service]["spec"]["template"]["spec"]["containers"][0]
    assert settings.port == container["ports"][0]["containerPort"]
    assert settings.host == "0.0.0.0"  # the kubelet and Prometheus come from outside the pod
    assert settings.database_url.startswith(f"postgresql://medmesh_{service}@postgres:5432/")
    assert (settings.tls_certificate is not None) == (service in PUBLIC)
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    for value in settings.model_dump().values():
        assert not isinstance(value, Path) or any(value.is_relative_to(path) for path in mounted), value


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
    command = [BIN / "nats-server", "-t", "-c", placed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "SERVER_NAME": "nats-0"})
    assert done.returncode == 0, done.stderr

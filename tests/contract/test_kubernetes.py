"""The Kubernetes manifests, rendered and checked without a cluster."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from medmesh.service.listener import respond
from medmesh.service.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
KUBECTL = Path(sys.executable).parent / "kubectl"
SERVICES = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["medmesh.services"])
PUBLIC = {"gateway", "inference", "audit"}
OVERLAYS = ("base", "overlays/single", "overlays/ha", "overlays/hospital", "monitoring")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "Cluster"}
"""Kinds of operators that a cluster may have; they have no schema here."""
GIVEN = {"medmesh-trust"}
"""ConfigMaps the operator makes."""


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    done = subprocess.run([KUBECTL, "kustomize", ROOT / "k8s" / overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


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
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), (name, container["name"])
            for variable in container.get("env", ()):
                assert "secretKeyRef" not in variable.get("valueFrom", {}), f"{name}: secrets are files"
            assert not any("secretRef" in source for source in container.get("envFrom", ())), name
        assert not any(pod.get(shared) for shared in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")), name
        assert not any("hostPath" in volume for volume in pod.get("volumes", ())), name
    for namespace in named(overlay, "Namespace").values():
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_shut_in_but_for_what_a_policy_opens(overlay: str) -> None:
    """Of the pods in every overlay: a policy for all of its namespace denies, and one that is about the pod opens what it needs."""
    policies = [policy["spec"] for policy in named(overlay, "NetworkPolicy").values()]
    found = list(pods(overlay))
    denied = any(p["podSelector"] == {} and set(p["policyTypes"]) == {"Ingress", "Egress"} for p in policies)
    assert denied or not found
    for name, labels, _ in found:
        assert any((p.get("ingress") or p.get("egress")) and matches(p["podSelector"], labels) for p in policies), (
            f"no policy says what {name} may reach"
        )


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
    sources = {v["name"]: v for v in pod["volumes"]}["secret"]["projected"]["sources"]
    domains = {"governance": ["authority", "seal"], "audit": ["log"], "registry": ["release"], "ingestion": ["pseudonyms"]}.get(service, [])
    domains += [] if service == "governance" else ["objects"]
    assert [source["secret"]["name"] for source in sources] == [f"medmesh-{name}" for name in (service, *domains)]
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

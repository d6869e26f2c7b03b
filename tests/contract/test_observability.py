"""Alert rules and dashboards speak of metrics, labels and buckets that the code has."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from medmesh.telemetry import metrics

ROOT = Path(__file__).parents[2]
OBSERVE = ROOT / "compose" / "observe"
SERVICES = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["medmesh.services"])
WORDS = {
    *("absent", "and", "by", "count", "histogram_quantile", "ignoring", "increase", "label_values", "max", "offset", "on", "or", "rate"),
    *("sum", "unless", "without"),
}
"""Of PromQL and of Grafana's variables."""
TARGET = {"job", "instance"}
"""Labels Prometheus adds."""


def exposed() -> dict[str, set[str]]:
    """The labels of every series the processes expose, by its name."""
    found: dict[str, set[str]] = {family.name: set() for family in metrics.REGISTRY.collect() if family.name.startswith("process_")}
    for family in metrics.REGISTRY.collect():
        found |= {sample.name: set() for sample in family.samples if sample.name.startswith("process_")}
    for metric in vars(metrics).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        name, labels = metric._name, set(metric._labelnames)
        if isinstance(metric, Counter):
            found[f"{name}_total"] = labels
        elif isinstance(metric, Histogram):
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


EXPOSED = exposed()
BUCKETS = {str(float(bound)) for bound in metrics._QUICK} | {"+Inf"}


def mistakes(expression: str) -> list[str]:
    """What an expression speaks of and the code does not have."""
    wrong = []
    for name, body in re.findall(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', body):
            if label not in EXPOSED.get(name, set()) | TARGET:
                wrong.append(f"{name} has no label {label}")
            if label == "le" and value not in BUCKETS:
                wrong.append(f"{name} has no bucket {value}")
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", expression)
    used = set(re.findall(r"(?<![\w.$])[a-zA-Z_:][\w:]*", re.sub(r"\b(?:by|without)\s*\([^)]*\)|offset\s+\w+", " ", bare))) - WORDS
    if label_values := re.search(r"label_values\((\w+),\s*(\w+)\)", expression):
        used.discard(label_values.group(2))
    wrong += [f"no metric {name}" for name in sorted(used - EXPOSED.keys())]
    if not used & EXPOSED.keys():
        wrong.append("no metric at all")
    known = {label for name in used for label in EXPOSED.get(name, ())} | TARGET
    for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", bare):
        wrong += [f"no label {label.strip()}" for label in group.split(",") if label.strip() not in known]
    return wrong


@pytest.mark.parametrize(
    "wrong",
    [
        "rate(medmesh_bus_consumed[5m])",
        "medmesh_outbox_size",
        'medmesh_outbox_pending{hospital="a"}',
        'rate(medmesh_bus_age_seconds_bucket{le="3.0"}[5m])',
        "sum by (route) (medmesh_outbox_pending)",
        "1 > 0",
    ],
)
def test_a_mistake_would_be_seen(wrong: str) -> None:
    assert mistakes(wrong)


def groups() -> Any:
    return yaml.safe_load((OBSERVE / "rules.yml").read_text(encoding="utf-8"))["groups"]


RULES: list[dict[str, Any]] = [rule for group in groups() for rule in group["rules"]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    assert mistakes(rule["expr"]) == []
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
    assert {"summary", "summary_zh", "action"} <= rule["annotations"].keys()
    # What a text mentions must survive the aggregation.
    kept = {label.strip() for group in re.findall(r"by\s*\(([^)]*)\)", rule["expr"]) for label in group.split(",")}
    kept |= TARGET | set(re.findall(r"absent\(\w+\{(\w+)=", rule["expr"]))
    assert set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))) <= kept


def test_a_silent_service_is_noticed_whichever_it_is() -> None:
    (rule,) = (rule for rule in RULES if rule["alert"] == "ServiceSilent")
    assert set(re.findall(r'service="(\w+)"', rule["expr"])) == SERVICES


def test_what_must_never_happen_is_alarmed() -> None:
    text = " ".join(rule["expr"] for rule in RULES)
    for name in (
        "medmesh_audit_dropped_total",
        "medmesh_dead_letters_total",
        "medmesh_outbox_oldest_seconds",
        "medmesh_bus_age_seconds_bucket",
    ):
        assert name in text


def test_every_anomaly_of_the_log_is_an_alert_of_its_severity() -> None:
    from medmesh_audit.rules import SEVERITY

    told = {
        name: rule["labels"]["severity"]
        for rule in RULES
        for names in re.findall(r'medmesh_audit_alerts_total\{rule=~"([^"]+)"', rule["expr"])
        for name in names.split("|")
    }
    assert told == SEVERITY


def dashboards() -> list[tuple[str, dict[str, Any]]]:
    files = sorted((OBSERVE / "grafana" / "dashboards").glob("*.json"))
    return [(file.name, json.loads(file.read_text(encoding="utf-8"))) for file in files]


@pytest.mark.parametrize(("name", "dashboard"), dashboards(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_dashboard_shows_what_there_is(name: str, dashboard: dict[str, Any]) -> None:
    sources = yaml.safe_load((OBSERVE / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for variable in dashboard["templating"]["list"]:
        assert mistakes(variable["query"]["query"]) == []
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) > 0
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] in {source["uid"] for source in sources}
        for target in panel["targets"]:
            assert mistakes(target["expr"]) == [], panel["title"]
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= {label for metric, labels in EXPOSED.items() if metric in target["expr"] for label in labels} | TARGET


def test_every_panel_has_its_own_place() -> None:
    for _, dashboard in dashboards():
        taken: set[tuple[int, int]] = set()
        for place in (panel["gridPos"] for panel in dashboard["panels"]):
            mine = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
            assert not mine & taken
            assert place["x"] + place["w"] <= 24
            taken |= mine


def test_prometheus_scrapes_every_service() -> None:
    config = yaml.safe_load((OBSERVE / "prometheus.yml").read_text(encoding="utf-8"))
    compose = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    found = {}
    for job in config["scrape_configs"]:
        assert job["metrics_path"] == "/metrics"
        for target in (target for static in job["static_configs"] for target in static["targets"]):
            service, port = target.split(":")
            found[service] = (port, job.get("scheme", "http") == "https")
    assert found.keys() == SERVICES
    for service, (port, tls) in found.items():
        environment = compose[service]["environment"]
        assert (port, tls) == (environment["MEDMESH_PORT"], "MEDMESH_TLS_CERTIFICATE" in environment)


def test_kubernetes_has_the_same_alerts_and_scrapes_the_same() -> None:
    monitoring = ROOT / "k8s" / "monitoring"
    rules = yaml.safe_load((monitoring / "rules.yaml").read_text(encoding="utf-8"))
    assert (rules["apiVersion"], rules["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rules["spec"] == {"groups": groups()}
    monitors = list(yaml.safe_load_all((monitoring / "servicemonitor.yaml").read_text(encoding="utf-8")))
    scraped = {}
    for service in SERVICES:
        _, offered, _ = yaml.safe_load_all((ROOT / "k8s" / "base" / "services" / f"{service}.yaml").read_text(encoding="utf-8"))
        for monitor in monitors:
            wanted = monitor["spec"]["selector"]["matchLabels"]
            if wanted.items() <= offered["metadata"]["labels"].items():
                (endpoint,) = monitor["spec"]["endpoints"]
                assert endpoint["path"] == "/metrics"
                assert endpoint["honorLabels"] is True  # the operator's own label `service` must not hide ours
                assert endpoint["port"] in {port["name"] for port in offered["spec"]["ports"]}
                scraped[service] = endpoint.get("scheme", "http")
    assert scraped == {service: "https" if service in {"gateway", "inference", "audit"} else "http" for service in SERVICES}

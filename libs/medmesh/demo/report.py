"""`demo-report/`: a page to look at, and `summary.json` for programs."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment

from medmesh.federated.plan import explain

if TYPE_CHECKING:
    from medmesh.demo.stage import Stage


KEPT = (
    "hospital_rejoined",
    "coordinator_resumed",
    "audit_verified",
    "own_signatures_verified",
    "pipeline_verified",
    "export_verified",
    "hospital_view_verified",
    "fork_refused",
    "tamper_detected",
)
"""Promises that are simply kept or not."""


def write(stage: Stage, folder: Path) -> Path:
    """Write the report; answers the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(stage.summary, indent=1, ensure_ascii=False))
    if stage.proof:
        (folder / "evidence.json").write_text(json.dumps(stage.proof["evidence"], indent=1))
        (folder / "lineage.json").write_text(json.dumps(stage.proof["lineage"], indent=1, ensure_ascii=False))
        (folder / "mlps.html").write_text(stage.proof["mlps"], encoding="utf-8")
        shutil.copyfile(stage.folder / "export.zip", folder / "export.zip")
        shutil.copyfile(stage.policy, folder / "witnesses.policy")
    page = folder / "index.html"
    page.write_text(_render(stage), encoding="utf-8")
    return page


def _figure(draw: Any, height: float = 2.8) -> str:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, height), layout="constrained")
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _accuracy(stage: Stage) -> Any:
    def draw(axes: Any) -> None:
        hospitals = stage.summary["hospitals"]
        for place, hospital in enumerate(hospitals):
            for offset, name, colour in ((-0.15, "local", "#888"), (0.15, "federated", "#06c")):
                value, (low, high) = hospital[f"{name}_acc"], hospital[f"{name}_interval"]
                label = name if place == 0 else None
                axes.errorbar(place + offset, value, [[value - low], [high - value]], fmt="o", color=colour, capsize=4, label=label)
        axes.axhline(stage.summary["pooled_acc"], color="#0a0", linestyle="--", label="pooled reference")
        axes.set_xticks(range(len(hospitals)), [h["name"] for h in hospitals])
        axes.set_ylabel("balanced accuracy")
        axes.legend(loc="lower right")

    return draw


def _rounds(stage: Stage) -> Any:
    def draw(axes: Any) -> None:
        found = stage.summary["round_acc"]
        axes.plot(range(1, len(found) + 1), found, marker="o", color="#06c", label="federated, after each round")
        local = [h["local_acc"] for h in stage.summary["hospitals"]]
        axes.axhspan(min(local), max(local), color="#888", alpha=0.25, label="alone, least to best hospital")
        axes.axhline(stage.summary["pooled_acc"], color="#0a0", linestyle="--", label="pooled reference")
        axes.set_xlabel("round")
        axes.set_ylabel("balanced accuracy")
        axes.legend(loc="lower right")

    return draw


def _loss(stage: Stage) -> Any:
    def draw(axes: Any) -> None:
        assert stage.view is not None
        for name in stage.nodes:
            points = [
                (r.round, a.metrics["loss"])
                for r in stage.view.rounds
                for a in r.answers
                if r.kind == "train" and a.hospital == name and not a.late and "loss" in a.metrics
            ]
            axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=name)
        axes.set_xlabel("round")
        axes.set_ylabel("training loss")
        axes.legend()

    return draw


def _bytes(stage: Stage) -> Any:
    def draw(axes: Any) -> None:
        assert stage.view is not None
        rounds = [r for r in stage.view.rounds if r.state == "committed"]
        up = [sum(a.bytes for a in r.answers) / 2**20 for r in rounds]
        down = [r.base.bytes * len(r.answers) / 2**20 for r in rounds]
        axes.bar([r.round - 0.2 for r in rounds], up, 0.4, label="from hospitals")
        axes.bar([r.round + 0.2 for r in rounds], down, 0.4, label="to hospitals")
        axes.set_xlabel("round")
        axes.set_ylabel("MiB moved")
        axes.legend()

    return draw


def _timeline(stage: Stage) -> Any:
    def draw(axes: Any) -> None:
        shown = [entry for entry in stage.timeline if not entry["what"].startswith("round")]
        for place, entry in enumerate(shown):
            axes.plot(entry["seconds"], place, "o", color="#c00" if "killed" in entry["what"] else "#06c")
            axes.annotate(f" {entry['what']}", (entry["seconds"], place), va="center", fontsize=8)
        axes.set_yticks([])
        axes.invert_yaxis()
        axes.set_xlim(0, stage.timeline[-1]["seconds"] * 1.35)
        axes.set_xlabel("seconds")

    return draw


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>medmesh demo</title>
<style>body{font:15px/1.5 system-ui;margin:2em auto;max-width:60em;color:#222}table{border-collapse:collapse}
td,th{border:1px solid #ccc;padding:.3em .7em;text-align:right}td:first-child,th:first-child{text-align:left}
img{max-width:100%}pre{background:#f6f6f6;padding:1em;overflow:auto;font-size:12px}.good{color:#070}.bad{color:#b00}</style>
<h1>数据不出院，模型集中训 · Data stay, the model is trained together</h1>
<p>{{ s.hospitals|length }} hospitals, {{ s.hospitals|sum(attribute='samples') }} images, {{ s.rounds }} rounds,
{{ s.held_out }} held-out images, {{ s.seconds }} s.</p>
<h2>Balanced accuracy on the union of all held-out images (95 % interval)</h2>
<table><tr><th>hospital<th>images<th>alone<th>federated<th>pooled reference</tr>
{% for h in s.hospitals %}<tr><td>{{ h.name }}<td>{{ h.samples }}
<td>{{ '%.3f'|format(h.local_acc) }} [{{ '%.3f'|format(h.local_interval[0]) }}, {{ '%.3f'|format(h.local_interval[1]) }}]
<td>{{ '%.3f'|format(h.federated_acc) }} [{{ '%.3f'|format(h.federated_interval[0]) }}, {{ '%.3f'|format(h.federated_interval[1]) }}]
<td>{{ '%.3f'|format(s.pooled_acc) }} [{{ '%.3f'|format(s.pooled_interval[0]) }}, {{ '%.3f'|format(s.pooled_interval[1]) }}]</tr>
{% endfor %}</table>
{% for name, image in images %}<h2>{{ name }}</h2><img alt="{{ name }}" src="data:image/png;base64,{{ image }}">{% endfor %}
<h2>What was done with the images before training · 处理流程</h2>
<p>Pipeline {{ s.pipeline.name }}, hash <code>{{ s.pipeline.hash }}</code>: {{ s.pipeline.steps|join('; ') }}. Each node applied it
to its own images, once; the plan, every training in the log and the model's lineage name this hash.</p>
<h2>What was checked</h2><table>
{% for name, good, shown in checks %}<tr><td>{{ name }}<td class="{{ 'good' if good else 'bad' }}">{{ shown }}</tr>{% endfor %}</table>
<h2>The plan, as the hospitals read it · 医院所见方案</h2><pre>{{ plan }}</pre>
<h2>Who did what to the federation, from the audit log</h2><table><tr><th>action<th>by</tr>
{% for verb, names in who.items() %}<tr><td>{{ verb }}<td>{{ names|join(', ') }}</tr>{% endfor %}</table>
<h2>Where the model comes from (YY/T 1833.4) · 追溯</h2><table><tr><th>part<th>question<th>records</tr>
{% for part, name, count in lineage %}<tr><td>{{ part }}<td>{{ name }}<td>{{ count }}</tr>{% endfor %}</table>
<p>All of it: <a href="lineage.json">lineage.json</a>. MLPS Level 3, clause by clause: <a href="mlps.html">mlps.html</a>
({% for state, number in s.mlps.items() %}{{ state }} {{ number }}{{ ", " if not loop.last }}{% endfor %}).</p>
<h2>Verify it yourself</h2><p>The log's key is <code>{{ key }}</code>; <a href="witnesses.policy">witnesses.policy</a> demands two of three
witnesses beside it. No network and no account is needed:</p>
<pre>medmesh audit verify export --policy witnesses.policy export.zip
medmesh audit verify proof --policy witnesses.policy evidence.json</pre>
<h2>One record with its proof</h2><pre>{{ record }}</pre><pre>{{ proof }}</pre></html>"""


def _render(stage: Stage) -> str:
    s = stage.summary
    names = ("Accuracy per round", "Accuracy by hospital", "Loss per round", "Bytes moved", "Timeline")
    draws = ((_rounds(stage), 2.8), (_accuracy(stage), 2.8), (_loss(stage), 2.8), (_bytes(stage), 2.4), (_timeline(stage), 4.2))
    checks = [(name, bool(s[name]), str(s[name])) for name in KEPT]
    checks += [
        ("parity_max_abs_diff", s["parity_max_abs_diff"] < 1e-3, f"{s['parity_max_abs_diff']:.2e}"),
        ("edge_installs", s["edge_installs"] == len(s["hospitals"]), str(s["edge_installs"])),
        ("canary_hits", s["canary_hits"] == 0, f"{s['canary_hits']} of {s['canaries']} ({s['bytes_scanned'] / 2**20:.0f} MiB scanned)"),
    ]
    assert stage.view is not None
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(
        s=s,
        images=[(name, _figure(draw, height)) for name, (draw, height) in zip(names, draws, strict=True)],
        checks=checks,
        plan="\n".join([*explain(stage.view.plan, "zh"), "", *explain(stage.view.plan, "en")]),
        who=stage.proof["who"],
        record=json.dumps(stage.proof["record"], indent=1, ensure_ascii=False),
        lineage=[(part["en"], cell["en"], cell["count"]) for part in stage.proof["lineage"]["parts"] for cell in part["cells"]],
        proof=stage.proof["evidence"]["proof"],
        key=stage.log_key,
    )


def table(summary: dict[str, Any]) -> list[str]:
    """The lines of the closing table."""

    def cell(value: float, interval: Any) -> str:
        return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"

    lines = [f"{'hospital':<10}{'images':>8}  {'alone':<22}{'federated':<22}{'pooled reference'}"]
    for h in summary["hospitals"]:
        lines.append(
            f"{h['name']:<10}{h['samples']:>8}  {cell(h['local_acc'], h['local_interval']):<22}"
            f"{cell(h['federated_acc'], h['federated_interval']):<22}{cell(summary['pooled_acc'], summary['pooled_interval'])}"
        )
    return lines


def failures(summary: dict[str, Any]) -> list[str]:
    """What did not come out as promised; the demonstration fails when there is anything."""
    wanted = {name: summary.get(name) for name in KEPT}
    wrong = [name for name, value in wanted.items() if value is not True]
    local = sum(h["local_acc"] for h in summary["hospitals"]) / len(summary["hospitals"])
    if summary["hospitals"][0]["federated_acc"] <= local:
        wrong.append("federated_acc")
    if summary["canary_hits"] or summary["canaries_planted"] != summary["canaries_planted_found"]:
        wrong.append("canary_hits")
    if summary["edge_installs"] != len(summary["hospitals"]):
        wrong.append("edge_installs")
    return wrong

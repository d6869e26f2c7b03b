"""The report as one HTML file: no script, nothing from elsewhere, thumbnails and histograms in it. For people inside the hospital only."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from medmesh.quality.report import Report

_BINS = 24
_STYLE = (
    "body{font:15px/1.5 system-ui,'Noto Sans SC',sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;width:100%}"
    "td,th{border-bottom:1px solid #d5d9de;padding:.35rem .6rem;text-align:left;vertical-align:top}"
    ".stop{color:#a40e26;font-weight:600}.grid{display:flex;flex-wrap:wrap;gap:.6rem}figure{margin:0;width:104px}"
    "figure img{width:100%;background:#000}figcaption{font-size:11px;overflow-wrap:anywhere}.bad img{outline:3px solid #a40e26}"
    "small{color:#57606a}details{margin:.2rem 0}svg{background:#f4f6f8}"
)
_WORDS = {
    "en": {
        "quality": "Quality report", "inside": "Names of files may name patients: this page stays inside the hospital.", "kind": "Kind",
        "items": "Items", "rule": "Rule", "count": "Found", "blocks": "keeps items out", "tells": "for judgement", "where": "Where",
        "blocked": "Items kept out", "fit": "Nothing was found.", "pictures": "Pictures", "spread": "Distributions",
        "near": "Near-duplicate pictures", "clusters": "clusters", "largest": "largest", "more": "more",
        "held": "Held back in quarantine",
    },
    "zh": {
        "quality": "质量报告", "inside": "文件名可能包含患者信息：本页面仅限院内使用。", "kind": "类型", "items": "数量", "rule": "规则",
        "count": "发现",
        "blocks": "阻止入库", "tells": "供判断", "where": "位置", "blocked": "被阻止的条目", "fit": "未发现问题。", "pictures": "缩略图",
        "spread": "分布", "near": "近似重复图像", "clusters": "组", "largest": "最大组", "more": "其余", "held": "隔离区中",
    },
}  # fmt: skip


def page(report: Report, language: str = "en") -> str:
    """The whole page."""
    say = _WORDS[language]
    document = report.document(language)
    parts = [f"<h1>{escape(say['quality'])}: {escape(report.title)}</h1><p><small>{escape(say['inside'])}</small></p>"]
    rows = "".join(f"<tr><td>{escape(kind)}</td><td>{count}</td></tr>" for kind, count in document["items"].items())
    parts.append(f"<table><tr><th>{say['kind']}</th><th>{say['items']}</th></tr>{rows}</table>")
    parts.append(f"<p>{say['blocked']}: <b>{report.blocked}</b></p>")
    if report.held:
        rows = "".join(
            f"<tr><td><code>{escape(reason)}</code></td><td>{count}</td></tr>" for reason, count in document["held_back"].items()
        )
        parts.append(f"<p>{say['held']}: <b>{sum(report.held.values())}</b></p><table>{rows}</table>")
    if document["rules"]:
        rows = "".join(_rule(rule, say) for rule in document["rules"])
        heads = "".join(f"<th>{head}</th>" for head in (say["rule"], say["count"], "", say["where"]))
        parts.append(f"<table><tr>{heads}</tr>{rows}</table>")
    else:
        parts.append(f"<p>{say['fit']}</p>")
    near = document["near_duplicates"]
    if near["clusters"]:
        parts.append(
            f"<h2>{say['near']}</h2><p>{near['items']}, {near['clusters']} {say['clusters']}, {say['largest']} {near['largest']}</p>"
        )
    if report.measures:
        drawn = "".join(_histogram(name, values) for name, values in sorted(report.measures.items()))
        parts.append(f"<h2>{say['spread']}</h2><div class=grid>{drawn}</div>")
    if report.pictures:
        drawn = "".join(
            f'<figure class="{"bad" if one.codes else ""}"><img alt="" src="data:image/png;base64,{base64.b64encode(one.png).decode()}">'
            f"<figcaption>{escape(one.place)}{escape(' · ' + ', '.join(one.codes) if one.codes else '')}</figcaption></figure>"
            for one in report.pictures
        )
        parts.append(f"<h2>{say['pictures']}</h2><div class=grid>{drawn}</div>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(report.title)}</title>'
    return f'<!doctype html><html lang="{language}"><head>{head}<style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>\n'


def _rule(rule: dict[str, object], say: dict[str, str]) -> str:
    places = rule["places"]
    assert isinstance(places, list)
    lines = "".join(f"<div>{escape(one['place'])}: {escape(one['detail'])}</div>" for one in places)
    more = int(str(rule["count"])) - len(places)
    lines += f"<div>+{more} {say['more']}</div>" if more else ""
    kind = f"<span class=stop>{say['blocks']}</span>" if rule["blocking"] else say["tells"]
    shown = f"<details><summary>{escape(places[0]['detail'])}</summary>{lines}</details>"
    return f"<tr><td><code>{rule['code']}</code></td><td>{rule['count']}</td><td>{kind}</td><td>{shown}</td></tr>"


def _histogram(name: str, values: Sequence[float]) -> str:
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return ""
    low, high = float(numbers.min()), float(numbers.max())
    span = (low, high) if high > low else (low - 0.5, low + 0.5)
    counts, _ = np.histogram(numbers, bins=_BINS, range=span)
    bars = "".join(
        f'<rect x="{4 + 8 * place}" y="{70 - height:.1f}" width="7" height="{height:.1f}" fill="#2f6f9f"/>'
        for place, height in enumerate(64 * counts / counts.max())
        if height
    )
    label = f"{escape(name)}<br><small>{low:.4g} – {high:.4g}, n = {numbers.size}</small>"
    return f'<div><svg width="200" height="74" role="img" aria-label="{escape(name)}">{bars}</svg><div>{label}</div></div>'

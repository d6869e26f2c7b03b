"""Records as CSV with Chinese headings (RFC 4180, UTF-8 with a byte order mark, which spreadsheet programs need to see Chinese)."""

from __future__ import annotations

import csv
import io
from typing import Any

from medmesh.auditing.vocabulary import CODES, PURPOSES, VERBS
from medmesh.canonical import canonical

BOM = "\ufeff"
HEADINGS = (
    "序号", "记录编号", "发生时间", "记录时间", "事件类型", "事件名称", "操作", "动作", "结果", "原因", "主体", "角色", "机构",
    "使用目的", "客体", "所属机构", "访问决策", "规则", "策略摘要", "审批编号", "关联编号", "记录服务", "服务内计数", "明细", "规范记录",
)  # fmt: skip
_ACTIONS = {"C": "新建", "R": "读取", "U": "修改", "D": "删除", "E": "执行"}
_OUTCOMES = {0: "成功", 4: "轻微失败", 8: "严重失败", 12: "重大失败"}
_DECISIONS = {"permit": "允许", "deny": "拒绝", "internal": "内部"}


def head() -> str:
    """The byte order mark and the line of headings."""
    return BOM + _line(HEADINGS)


def line(seq: int, record: dict[str, Any]) -> str:
    """One record, with its line break."""
    agent, kind, policy = record["agents"][0], record["type"]["code"], record["policy"]
    entities = " ".join(f"{e['type']}:{e['id']}" + (f"@{e['ver']}" if e["ver"] else "") for e in record["entities"])
    detail = "；".join(f"{name}={value}" for name, value in sorted(record["detail"].items()))
    return _line(
        (
            seq, record["id"], record["t"], record["tr"], kind, CODES[kind][2], VERBS[record["sub"]].zh, _ACTIONS[record["act"]],
            _OUTCOMES[record["out"]], record["why"], agent["who"], agent["role"], agent["org"], PURPOSES[record["pou"]][1], entities,
            "、".join(record["orgs"]), _DECISIONS[policy["decision"]], " ".join(policy["rules"]), policy["bundle"],
            record["approval"].get("id", ""), record["ctx"]["correlation"], record["src"]["service"], record["n"], detail,
            canonical(record).decode(),
        )
    )  # fmt: skip


def _line(cells: tuple[Any, ...]) -> str:
    target = io.StringIO()
    csv.writer(target, lineterminator="\r\n").writerow([_harmless(cell) for cell in cells])
    return target.getvalue()


def _harmless(cell: Any) -> Any:
    """A text that a spreadsheet would take for a formula is marked as text."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell

"""Records as CSV with Chinese headings (RFC 4180, UTF-8 with a byte order mark, which spreadsheet programs need to see Chinese)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from medmesh.auditing.vocabulary import CODES, PURPOSES, VERBS
from medmesh.canonical import canonical
from medmesh.contracts.governance import FINDINGS

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


ACCOUNT_HEADINGS = (
    "账户名", "类型", "显示名", "所属机构", "角色", "状态", "第二因素", "创建时间", "最近登录", "口令到期", "证书有效期至", "账户有效期至",
    "当前会话数", "待处理事项",
)  # fmt: skip
_KINDS = {"person": "人员", "system": "系统"}
_STATES = {"active": "正常", "new": "未激活", "locked": "锁定", "disabled": "停用"}
_FACTORS = {"": "无", "otp": "动态口令", "certificate": "个人证书", "key": "密钥"}
ROLE_NAMES = {
    "system_administrator": "系统管理员", "security_administrator": "安全管理员", "audit_administrator": "审计管理员",
    "researcher": "研究人员", "approver": "审批人", "annotator": "标注员", "reviewer": "审核人", "auditor": "审计员",
    "clinician": "临床医生", "system": "医院信息系统",
}  # fmt: skip


def accounts(entries: Iterable[Mapping[str, Any]]) -> str:
    """The accounts of a report (`governance.report-accounts`) as a sheet for evaluators."""
    return BOM + _line(ACCOUNT_HEADINGS) + "".join(map(_account, entries))


def _account(entry: Mapping[str, Any]) -> str:
    roles = "、".join(ROLE_NAMES.get(role, role) for role in entry["roles"])
    times = (entry.get(name) or "" for name in ("created", "signed_in", "password_due", "certificate_until", "ends"))
    state, factor = _STATES[entry["state"]], _FACTORS[entry["factor"]]
    amiss = "；".join(FINDINGS[code][1] for code in entry["findings"])
    head = (entry["name"], _KINDS[entry["kind"]], entry["display_name"], entry["organisation"], roles, state, factor)
    return _line((*head, *times, entry["sessions"], amiss))


def _line(cells: tuple[Any, ...]) -> str:
    target = io.StringIO()
    csv.writer(target, lineterminator="\r\n").writerow([_harmless(cell) for cell in cells])
    return target.getvalue()


def _harmless(cell: Any) -> Any:
    """A text that a spreadsheet would take for a formula is marked as text."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell

"""The clauses of GB/T 22239-2019 8.1.4, 8.1.5 and 8.1.10.6, each with the judgement that decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medmesh_audit.judgements import (
    Judgement,
    absent,
    accounts,
    administered,
    audited_audit,
    backed_up,
    central,
    changed,
    collected,
    confidential,
    contents,
    covered,
    defaults,
    disabled,
    encrypted,
    factors,
    granularity,
    identity,
    kept,
    labels,
    lawful,
    lockout,
    necessary,
    one_policy,
    placed,
    procedural,
    protected,
    remote,
    separation,
    stored_whole,
    trusted,
    undumped,
    validated,
    watched,
    wiped,
)

if TYPE_CHECKING:
    from medmesh_audit.evidence import Facts


@dataclass(frozen=True)
class Clause:
    """`links` are verbs or codes whose newest record is shown, `routes` further places to look."""

    number: str
    zh: str
    en: str
    judge: Callable[[Facts], Judgement]
    links: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()


CLAUSES: tuple[Clause, ...] = (
    Clause("8.1.2.2 a)", "通信传输：完整性", "communication keeps its integrity", encrypted),
    Clause("8.1.2.2 b)", "通信传输：保密性", "communication is confidential", encrypted),
    Clause(
        "8.1.3.5 a)", "边界审计覆盖每个用户", "audit at the boundary covers every user", covered, ("access.unproven",), ("/v1/coverage",)
    ),
    Clause("8.1.3.5 b)", "边界审计记录内容", "what boundary records contain", contents),
    Clause("8.1.3.5 c)", "边界审计记录的保护与备份", "boundary records are protected and backed up", protected, (), ("/log/checkpoint",)),
    Clause("8.1.3.5 d)", "远程访问用户行为单独审计分析", "remote users are audited by themselves", remote, ("node.enrolled",)),
    Clause(
        "8.1.4.1 a)", "身份标识唯一，鉴别信息有复杂度并定期更换", "unique identity, complexity, periodic change", identity, ("user.create",)
    ),
    Clause(
        "8.1.4.1 b)",
        "登录失败处理、锁定、超时退出",
        "failed sign-ins, lock, time-out",
        lockout,
        ("governance.locked", "governance.sign_in_refused"),
    ),
    Clause("8.1.4.1 c)", "远程管理防窃听", "remote management cannot be overheard", encrypted),
    Clause("8.1.4.1 d)", "两种或以上组合鉴别", "two factors, one of them cryptographic", factors, ("session.open",)),
    Clause("8.1.4.2 a)", "分配账户和权限", "accounts and rights are given", accounts, ("user.create",)),
    Clause("8.1.4.2 b)", "无默认账户与默认口令", "no default accounts", defaults, ("governance.bootstrap",)),
    Clause(
        "8.1.4.2 c)",
        "停用多余、过期、共享账户",
        "expired accounts are disabled",
        disabled,
        ("governance.disabled",),
    ),
    Clause("8.1.4.2 d)", "最小权限，管理权限分离", "least privilege, divided administrators", separation),
    Clause("8.1.4.2 e)", "授权主体配置访问控制策略", "policy is set by whom it is given to", one_policy, ("access.denied",)),
    Clause("8.1.4.2 f)", "主体到用户或进程级，客体到文件或表级", "subjects are users, objects tables", granularity),
    Clause("8.1.4.2 g)", "安全标记与强制控制", "security labels", labels, ("label.change", "clearance.set", "request.not_found")),
    Clause("8.1.4.3 a)", "审计覆盖每个用户和重要行为", "audit covers every user and event", covered, (), ("/v1/coverage",)),
    Clause("8.1.4.3 b)", "记录含时间、用户、类型、结果", "time, user, kind, outcome", contents),
    Clause("8.1.4.3 c)", "保护审计记录并定期备份", "records are protected and backed up", protected, (), ("/log/checkpoint",)),
    Clause(
        "8.1.4.3 d)",
        "保护审计进程",
        "the audit process is protected",
        procedural("rights on the host and in the cluster", "主机与集群权限"),
    ),
    Clause("8.1.4.4 a)", "最小安装", "minimal installation", procedural("the image's list of packages", "镜像软件清单")),
    Clause(
        "8.1.4.4 b)",
        "关闭不需要的服务和端口",
        "no needless ports",
        procedural("network policies in k8s/base/network.yaml", "k8s/base/network.yaml 网络策略"),
    ),
    Clause(
        "8.1.4.4 c)",
        "限制管理终端地址",
        "addresses of administrators are limited",
        placed,
        ("security.address",),
    ),
    Clause("8.1.4.4 d)", "数据有效性检验", "input is validated", validated),
    Clause(
        "8.1.4.4 e)",
        "漏洞发现与修补",
        "vulnerabilities are found and mended",
        procedural("scans and patches by the operator", "由运营方扫描与修补"),
    ),
    Clause("8.1.4.4 f)", "检测入侵并报警", "intrusion is detected and alarmed", watched, ("audit.alert",)),
    Clause(
        "8.1.4.5",
        "恶意代码防范",
        "malicious code",
        procedural("anti-virus of the hosts; uploads hold no executable formats", "主机防病毒；上传内容不含可执行格式"),
    ),
    Clause("8.1.4.6", "可信验证", "trusted verification", trusted, ("program.verify",)),
    Clause("8.1.4.7 a)", "传输完整性", "integrity in transit", encrypted),
    Clause("8.1.4.7 b)", "存储完整性", "integrity at rest", stored_whole, (), ("/log/checkpoint",)),
    Clause("8.1.4.8 a)", "传输保密性", "confidentiality in transit", encrypted),
    Clause("8.1.4.8 b)", "存储保密性", "confidentiality at rest", confidential),
    Clause(
        "8.1.4.9 a)",
        "本地数据备份与恢复",
        "local backup and restore",
        backed_up,
        ("backup.create", "backup.verify", "backup.restore"),
    ),
    Clause(
        "8.1.4.9 b)",
        "异地实时备份",
        "remote backup",
        procedural("replication of PostgreSQL and S3 by the operator", "运营方数据库与对象存储异地复制"),
    ),
    Clause("8.1.4.9 c)", "热冗余", "hot standby", procedural("k8s/overlays/ha", "k8s/overlays/ha 部署")),
    Clause(
        "8.1.4.10 a)",
        "鉴别信息空间清除",
        "credentials are wiped",
        undumped,
    ),
    Clause("8.1.4.10 b)", "敏感数据空间清除", "sensitive data are wiped", wiped, ("patient.forget",)),
    Clause("8.1.4.11 a)", "仅采集必需的个人信息", "only what is needed", necessary),
    Clause("8.1.4.11 b)", "禁止未授权访问和非法使用", "no unauthorised use", lawful, ("access.denied",)),
    Clause(
        "8.1.5.1 a)",
        "系统管理员鉴别且操作被审计",
        "system administrators are audited",
        administered("system_administrator", "system administrator", "系统管理员"),
    ),
    Clause(
        "8.1.5.1 b)",
        "由系统管理员管理资源与启停",
        "system administrators manage resources",
        procedural("the operator's command line", "运营方命令行"),
    ),
    Clause("8.1.5.2 a)", "审计管理员鉴别且操作被审计", "audit administrators are audited", audited_audit, ("audit.search", "audit.read")),
    Clause("8.1.5.2 b)", "按策略存储、管理、查询审计记录", "records are stored, managed, queried by policy", kept),
    Clause(
        "8.1.5.3 a)",
        "安全管理员鉴别且操作被审计",
        "security administrators are audited",
        administered("security_administrator", "security administrator", "安全管理员"),
    ),
    Clause(
        "8.1.5.3 b)",
        "统一安全标记、授权、可信验证策略",
        "labels and policies are set centrally",
        central,
        ("clearance.set", "label.change", "policy.change"),
    ),
    Clause("8.1.5.4 a)", "特定管理区域", "a management zone", procedural("network zones of the operator", "运营方网络分区")),
    Clause("8.1.5.4 b)", "安全的信息传输路径", "safe paths", encrypted),
    Clause(
        "8.1.5.4 c)",
        "集中监测运行状况",
        "central monitoring",
        procedural("Prometheus and its rules in compose/observe and k8s/monitoring", "compose/observe 与 k8s/monitoring 监测"),
    ),
    Clause("8.1.5.4 d)", "审计数据集中收集，留存合规", "audit data are collected centrally and kept", collected, (), ("/v1/coverage",)),
    Clause(
        "8.1.5.4 e)",
        "策略、恶意代码、补丁集中管理",
        "policies and patches are managed centrally",
        procedural("updates by the operator", "运营方统一升级"),
    ),
    Clause("8.1.5.4 f)", "安全事件识别、报警、分析", "events are recognised and alarmed", watched, ("audit.alert",)),
    Clause(
        "8.1.10.6 变更性运维",
        "变更经审批，保留不可更改的审计日志",
        "changes are approved, the log is unalterable",
        changed,
        ("model.release", "federation.approved"),
    ),
    Clause(
        "8.1.10.6 运维工具",
        "运维工具经审批，日志不可更改，用后删除敏感数据",
        "tools are approved and cleaned",
        procedural("the operator's tools", "运营方运维工具管理"),
    ),
    Clause(
        "8.1.10.6 远程运维",
        "远程运维经审批，日志不可更改，用后关闭",
        "remote operation is approved and closed",
        procedural("the operator's remote access", "运营方远程接入管理"),
    ),
    Clause(
        "8.1.10.9",
        "密码管理：国家密码主管部门认证核准的密码技术和产品",
        "certified cryptographic products",
        absent("the software is no certified product; keys may lie in one", "本软件并非经认证的密码产品；密钥可置于密码机"),
    ),
    Clause(
        "8.1.10.10",
        "变更管理：申报审批控制程序，记录实施过程",
        "changes are asked for, approved, recorded",
        changed,
        ("approval.decide", "approval.request"),
    ),
)

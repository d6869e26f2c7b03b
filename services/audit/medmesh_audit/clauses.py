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
        procedural(
            "the operator shows who may stop or trace the audit service on its host or in its cluster (accounts, RBAC); a "
            "log that falls silent alarms by audit_pulse",
            "由运营方出示可停止或调试审计服务的主机账户与集群权限；日志停顿由 audit_pulse 告警",
        ),
    ),
    Clause(
        "8.1.4.4 a)",
        "最小安装",
        "minimal installation",
        procedural(
            "the operator shows the list of packages of each host and image, and why each is needed",
            "由运营方出示各主机与镜像的软件清单及必要性说明",
        ),
    ),
    Clause(
        "8.1.4.4 b)",
        "关闭不需要的服务和端口",
        "no needless ports",
        procedural(
            "the operator shows the ports that listen on each host (ss -tlnp) and the network policies in force "
            "(k8s/base/network.yaml is a start)",
            "由运营方出示各主机监听端口（ss -tlnp）与生效的网络策略（可参照 k8s/base/network.yaml）",
        ),
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
        procedural(
            "the operator shows scans of hosts and images, their findings, and when each was mended",
            "由运营方出示主机与镜像的漏洞扫描结果及修补时间",
        ),
    ),
    Clause("8.1.4.4 f)", "检测入侵并报警", "intrusion is detected and alarmed", watched, ("audit.alert",)),
    Clause(
        "8.1.4.5",
        "恶意代码防范",
        "malicious code",
        procedural(
            "the operator shows the hosts' protection and its updates; programs of ours are compared with a signed list "
            "(8.1.4.6), models and data are read as data and never run",
            "由运营方出示主机恶意代码防护及其更新；本平台程序按签署清单核验（见 8.1.4.6），模型与数据仅作数据读取、从不执行",
        ),
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
        procedural(
            "the operator shows the replication of PostgreSQL and of the object store to another place, and how far behind it is",
            "由运营方出示数据库与对象存储的异地实时复制及其延迟",
        ),
    ),
    Clause(
        "8.1.4.9 c)",
        "热冗余",
        "hot standby",
        procedural(
            "the operator shows that two instances of each service run and that one was switched off; the audit log has one "
            "writer and a standby by itself",
            "由运营方出示各服务双实例运行及切换演练；审计日志自身为单写者加热备",
        ),
    ),
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
        procedural(
            "the operator shows that only system administrators have accounts on the hosts; what they do there to keys and "
            "backups is in this log",
            "由运营方出示仅系统管理员拥有主机账户；其对密钥与备份的操作记入本日志",
        ),
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
    Clause(
        "8.1.5.4 a)",
        "特定管理区域",
        "a management zone",
        procedural(
            "the operator shows the network zone of the administrators' machines; 8.1.4.4 c) limits the platform's own "
            "administrators to it",
            "由运营方出示管理终端所在网络区域；平台管理员地址限制见 8.1.4.4 c)",
        ),
    ),
    Clause("8.1.5.4 b)", "安全的信息传输路径", "safe paths", encrypted),
    Clause(
        "8.1.5.4 c)",
        "集中监测运行状况",
        "central monitoring",
        procedural(
            "the operator shows a running Prometheus with the rules and dashboards of this release (compose/observe, k8s/monitoring)",
            "由运营方出示运行中的 Prometheus 及本版本的规则与面板（compose/observe、k8s/monitoring）",
        ),
    ),
    Clause("8.1.5.4 d)", "审计数据集中收集，留存合规", "audit data are collected centrally and kept", collected, (), ("/v1/coverage",)),
    Clause(
        "8.1.5.4 e)",
        "策略、恶意代码、补丁集中管理",
        "policies and patches are managed centrally",
        procedural(
            "the operator shows how releases, signatures of malicious code and patches reach every host; access policy "
            "itself is central (8.1.5.3 b)",
            "由运营方出示版本、恶意代码库与补丁的统一下发；访问策略的集中管理见 8.1.5.3 b)",
        ),
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
        procedural(
            "the operator shows which tools were approved, and that what they wrote was deleted; medmesh's own commands "
            "leave records before they act",
            "由运营方出示已审批的运维工具及用后清除记录；medmesh 自身的运维命令先记录后执行",
        ),
    ),
    Clause(
        "8.1.10.6 远程运维",
        "远程运维经审批，日志不可更改，用后关闭",
        "remote operation is approved and closed",
        procedural(
            "the operator shows each approval of a remote access to the hosts, its recording, and that it was closed",
            "由运营方出示每次主机远程接入的审批、操作记录与关闭",
        ),
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

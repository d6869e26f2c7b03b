"""What decides a clause. A judgement takes `evidence.Facts` and answers (state, English, Chinese); `met` and `part` come of facts alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medmesh_audit.evidence import Facts

Judgement = tuple[str, str, str]


def procedural(en: str, zh: str) -> Callable[[Facts], Judgement]:
    """Software cannot show it; who shows what is said."""
    return lambda facts: ("procedural", f"procedural: {en}", f"制度：{zh}")


def absent(en: str, zh: str) -> Callable[[Facts], Judgement]:
    """The platform does not do it."""
    return lambda facts: ("not_met", en, zh)


def decided(shown: bool, en: str, zh: str, *, best: str = "met", otherwise: tuple[str, str] = ("", "")) -> Judgement:
    """`best` when it is shown, else not met."""
    return (best, en, zh) if shown else ("not_met", otherwise[0] or f"not shown: {en}", otherwise[1] or f"未能证明：{zh}")


def intact(f: Facts) -> bool:
    """The log verifies now: signature, root, every body of the sample, no gap, nothing missing."""
    return f.signature and f.rooted and f.bodies and not f.gaps and f.stored == f.size > 0


def encrypted(f: Facts) -> Judgement:
    plain = ", ".join(f.plain)
    return decided(
        not f.plain,
        "TLS 1.2 or later on every connection of this service outside loopback",
        "本服务除本机回环外的所有连接均为 TLS 1.2 以上",
        otherwise=(f"without TLS: {plain}", f"未加密连接：{plain}"),
    )


def confidential(f: Facts) -> Judgement:
    return decided(
        f.sealed,
        "an object stored just now lay encrypted under a key of its own; so do authenticators' secrets and hospitals' images. "
        "Rows of the database and scratch files are the operator's to encrypt (disk encryption)",
        "刚写入的对象以独立密钥加密存放；验证器密文与医院影像亦同。数据库行与临时文件由运营方以磁盘加密保护",
        best="part",
    )


def trusted(f: Facts) -> Judgement:
    bad, nodes = ", ".join(sorted(f.unverified)), sum(name.startswith("edge:") for name in f.verified)
    return decided(
        bool(f.verified) and not bad,
        f"{len(f.verified) - nodes} services and {nodes} hospitals' nodes verified the programs they loaded against a list a person of "
        "the roster signed, and do so every hour; the boot chain below the interpreter is the host's (secure boot)",
        f"{len(f.verified) - nodes} 个服务与 {nodes} 个医院节点启动时及每小时按名册人员签署的清单核验已加载程序；"
        "解释器以下的引导链由主机保证（安全启动）",
        best="part",
        otherwise=(
            f"programs that were not verified: {bad}" if bad else "nobody signed a list of programs: medmesh program sign",
            f"未通过核验的程序：{bad}" if bad else "尚无已签署的程序清单：medmesh program sign",
        ),
    )


BACKUP_DAYS, DRILL_DAYS = 7, 92
"""How old the newest backup may be, and its verification and restore drill."""


def backed_up(f: Facts) -> Judgement:
    """8.1.4.9 a: made, read back, and restored from, as the log tells."""
    made, checked, drill = (f.backups.get(f"backup.{act}") for act in ("create", "verify", "restore"))
    if made is None:
        return (
            "procedural",
            "procedural: no backup was made with medmesh backup; the operator shows their own and the restore drill",
            "制度：未使用 medmesh backup 备份；由运营方出示其备份与恢复演练",
        )
    if made.outcome or made.days > BACKUP_DAYS:
        return (
            "not_met",
            f"the newest backup is {made.days} days old" if not made.outcome else "the newest backup failed",
            f"最近一次备份已过 {made.days} 天" if not made.outcome else "最近一次备份失败",
        )
    en = f"backed up {made.days} days ago, {made.log_size} of {f.size} records of the log in it"
    zh = f"{made.days} 天前已备份，含日志 {f.size} 条记录中的 {made.log_size} 条"
    if checked is None or checked.outcome or checked.days > DRILL_DAYS:
        return "part", f"{en}; no backup was verified in {DRILL_DAYS} days", f"{zh}；{DRILL_DAYS} 天内未成功校验备份"
    en, zh = f"{en}; every part was read back {checked.days} days ago", f"{zh}；{checked.days} 天前逐块读回校验"
    if drill is None or drill.outcome or drill.days > DRILL_DAYS:
        return (
            "part",
            f"{en}; a drill on another machine is in that one's log: none is in this",
            f"{zh}；在其他机器上的恢复演练记入该机日志，本日志中没有",
        )
    return "met", f"{en}; restored from one {drill.days} days ago", f"{zh}；{drill.days} 天前曾由备份恢复"


def undumped(f: Facts) -> Judgement:
    return decided(
        f.undumpable,
        "this process leaves no core dump and shows its memory to nobody; swap is the operator's to switch off",
        "本进程不产生内存转储，其内存不可被其他进程读取；交换分区由运营方禁用",
        best="part",
    )


def wiped(f: Facts) -> Judgement:
    return decided(
        f.wiped,
        "temporary files are overwritten before they go, tried just now; a forgotten patient's key is destroyed. Disks are the operator's",
        "临时文件删除前被覆写（刚刚验证）；被遗忘患者的密钥即被销毁。磁盘销毁由运营方负责",
        best="part",
    )


def identity(f: Facts) -> Judgement:
    changes = f.verbs.get("password.change", 0)
    en = f"{f.accounts} accounts in the log, each name once; weak passwords are refused; {changes} changes of passwords"
    zh = f"日志中共 {f.accounts} 个账户，标识唯一；弱口令被拒绝；口令更换 {changes} 次"
    return decided(f.accounts > 0 and not f.doubled and f.weak_refused, en, zh, best="met" if changes else "part")


def lockout(f: Facts) -> Judgement:
    locked, failed = f.refused.get("governance.locked", 0), f.refused.get("governance.sign_in_refused", 0)
    en = f"{failed} refused sign-ins and {locked} refusals of locked accounts among the newest records; time-outs are not in the log"
    zh = f"最近记录中有 {failed} 次登录失败、{locked} 次因锁定被拒；超时退出未记入日志"
    return decided(locked > 0 and failed > 0, en, zh, best="part")


def factors(f: Facts) -> Judgement:
    single = sum(n for method, n in f.factors.items() if "+" not in method and method != "private_key_jwt")
    total = sum(f.factors.values())
    en, zh = (
        f"{total - single} of {total} sign-ins in 90 days with two factors or a private key",
        f"90 天内 {total} 次登录中 {total - single} 次采用双因素或私钥",
    )
    return decided(total > 0 and single == 0, en, zh)


def accounts(f: Facts) -> Judgement:
    return decided(f.accounts > 0, f"{f.accounts} accounts with their roles in the log", f"日志记录了 {f.accounts} 个账户及其角色")


def defaults(f: Facts) -> Judgement:
    en = f"{f.bootstraps} account by the one-time token, {f.nameless} accounts made by nobody; no account comes with the software"
    zh = f"一次性令牌创建 {f.bootstraps} 个账户，无来源账户 {f.nameless} 个；软件不含默认账户"
    return decided(f.bootstraps == 1 and f.nameless == 0, en, zh)


def disabled(f: Facts) -> Judgement:
    n = f.refused.get("governance.disabled", 0)
    en, zh = (
        f"{n} sign-ins of disabled accounts were refused; which are shared is procedural",
        f"{n} 次停用账户登录被拒；共享账户排查属制度",
    )
    return decided(n > 0, en, zh, best="part", otherwise=("no disabled account was refused yet", "尚无停用账户被拒的记录"))


def separation(f: Facts) -> Judgement:
    en = f"the running rules refuse every pair of the three administrators; {f.administrators} accounts were made with two"
    zh = f"运行中的规则拒绝三类管理员角色两两兼任；兼任账户 {f.administrators} 个"
    return decided(f.exclusive and f.administrators == 0, en, zh)


def one_policy(f: Facts) -> Judgement:
    en = f"every one of the newest {f.sample} records was decided by rules that an approval put in force; now {f.bundle[:16]}…"
    zh = f"最近 {f.sample} 条记录均由经审批生效的规则判定，现行规则 {f.bundle[:16]}…"
    other = len(f.bundles - f.adopted)
    shown = f.sample > 0 and f.bundle in f.adopted and not other
    return decided(shown, en, zh, otherwise=(f"{other} sets of rules that nobody approved are in use", f"存在 {other} 套未经审批的规则"))


def labels(f: Facts) -> Judgement:
    """8.1.4.2 g: labels are on objects and persons, and nothing gets past them."""
    en = (
        "the running rules refuse at every level what somebody is not cleared for, whatever their roles; "
        f"a label was asked in {f.labelled} of the newest {f.sample} decisions and refused {f.hidden}; "
        f"{f.lowered} labels were lowered with an approval, {f.laundered} without"
    )
    zh = (
        "运行中的规则在各级别均拒绝超出许可级别的访问，与角色无关；"
        f"最近 {f.sample} 条记录中 {f.labelled} 次依据安全标记判定、{f.hidden} 次据此拒绝；"
        f"经审批降低标记 {f.lowered} 次，未经审批 {f.laundered} 次"
    )
    if f.laundered:
        return "not_met", en, zh
    return decided(f.mandatory and f.labelled > 0, en, zh, best="met" if f.hidden else "part")


def central(f: Facts) -> Judgement:
    """8.1.5.3 b: labels, rights and trusted verification are one policy each, set by whom it is given to."""
    signed = bool(f.verified) and not f.unverified
    en = (
        f"labels, clearances ({f.clearances} set) and the access policy are set by the security administrator or by an approval, "
        f"{f.ungranted} by others; the list of programs that may run is "
        + ("signed by a person of the roster" if signed else "signed by nobody yet, or not held by every service (8.1.4.6)")
    )
    zh = f"安全标记、许可级别（已设置 {f.clearances} 次）与访问策略均由安全管理员设置或经审批，其他途径 {f.ungranted} 次；" + (
        "可运行程序清单由名册人员签署" if signed else "可运行程序清单尚未签署或未全部通过核验（见 8.1.4.6）"
    )
    best = "met" if signed else "part"
    return decided(f.mandatory and f.clearances > 0 and not f.ungranted and not f.bundles - f.adopted, en, zh, best=best)


def granularity(f: Facts) -> Judgement:
    names = ", ".join(f.foreign) or "-"
    en = (
        "subjects are persons, services and nodes, objects single data sets, jobs and models "
        f"({f.labelled} of the newest {f.sample} decisions were about one); "
        f"the database role sees no other service's schema ({names}) and is no superuser"
    )
    zh = (
        f"主体为人员、服务与节点，客体为单个数据集、任务与模型（最近 {f.sample} 条记录中 {f.labelled} 次按客体判定）；"
        f"数据库角色不可见其他服务的模式（{names}），且非超级用户"
    )
    return decided(not f.foreign and not f.superuser, en, zh)


def covered(f: Facts) -> Judgement:
    silent = sorted(f.expected - f.emitting)
    if f.gaps or not f.emitting:
        return "not_met", f"gaps: {', '.join(f.gaps) or 'no records'}", f"缺号：{', '.join(f.gaps) or '无记录'}"
    if silent:
        return "part", f"no record yet from: {', '.join(silent)}", f"尚无记录的服务：{', '.join(silent)}"
    return "met", f"all {len(f.expected)} services emit, without a gap", f"全部 {len(f.expected)} 个服务均有记录且无缺号"


def contents(f: Facts) -> Judgement:
    en = f"time, user, kind, outcome in each of the newest {f.sample} records"
    return decided(f.fields, en, f"最近 {f.sample} 条记录均含时间、用户、类型、结果")


def protected(f: Facts) -> Judgement:
    rights, copy = ", ".join(f.writable), f.backups.get("backup.create")
    fresh = copy is not None and not copy.outcome and copy.days <= BACKUP_DAYS
    en = f"signature, root and {f.sample} bodies verify; the service's role cannot change rows; " + (
        f"backed up {copy.days} days ago with {copy.log_size} records"
        if fresh and copy
        else f"no backup in {BACKUP_DAYS} days with medmesh backup: the operator shows their own"
    )
    zh = f"签名、根哈希及 {f.sample} 条正文验证通过；服务角色无权改写；" + (
        f"{copy.days} 天前已备份，含 {copy.log_size} 条记录"
        if fresh and copy
        else f"{BACKUP_DAYS} 天内无 medmesh backup 备份：由运营方出示其备份"
    )
    other = (
        f"the log verifies: {intact(f)}; the role may {rights or 'not change rows'}",
        f"日志验证：{intact(f)}；角色权限：{rights or '不可改写'}",
    )
    return decided(intact(f) and not f.writable, en, zh, best="met" if fresh else "part", otherwise=other)


def validated(f: Facts) -> Judgement:
    return decided(f.strict, "unknown fields and impossible values are refused at this moment", "此刻对未知字段与非法取值均予拒绝")


def watched(f: Facts) -> Judgement:
    n = f.verbs.get("audit.alert", 0) + sum(count for code, count in f.refused.items() if code.startswith("alert."))
    return decided(
        f.watched, f"the watcher looked within the last minute; {n} alerts in the newest records", f"监视器一分钟内运行过；最近告警 {n} 条"
    )


def stored_whole(f: Facts) -> Judgement:
    en, zh = (
        "audit data: signature, root and bodies verify now. Other data: objects by their hash",
        "审计数据：签名、根哈希与正文此刻验证通过；其他数据以哈希命名",
    )
    return decided(intact(f), en, zh, best="part", otherwise=("the log does not verify", "日志验证不通过"))


def necessary(f: Facts) -> Judgement:
    en = f"{f.identifiers} identity or telephone numbers in the newest {f.sample} records"
    return decided(f.sample > 0 and f.identifiers == 0, en, f"最近 {f.sample} 条记录中身份证号或手机号 {f.identifiers} 个")


def lawful(f: Facts) -> Judgement:
    en = f"a purpose of use in each of the newest {f.sample} records; unauthorised access is denied and recorded"
    return decided(f.purposes, en, f"最近 {f.sample} 条记录均含使用目的；越权访问被拒并记录")


def administered(role: str, en: str, zh: str) -> Callable[[Facts], Judgement]:
    """Everything an administrator changes leaves a record."""

    def judge(f: Facts) -> Judgement:
        if role not in f.silent_actions:
            return "not_met", "not looked at", "未检查"
        silent = ", ".join(f.silent_actions[role])
        if silent:
            return "part", f"not recorded when it succeeds: {silent}", f"成功时未记录：{silent}"
        return "met", f"every action of the {en} that changes something is recorded", f"{zh}的每项变更操作均有记录"

    return judge


def audited_audit(f: Facts) -> Judgement:
    silent = ", ".join(f.silent_actions.get("audit_administrator", ("?",)))
    read = sum(f.verbs.get(verb, 0) for verb in ("audit.search", "audit.read", "audit.copy", "audit.prove"))
    return decided(not silent and read > 0, f"reading the log is recorded: {read} times so far", f"读取日志均有记录：迄今 {read} 次")


def kept(f: Facts) -> Judgement:
    en = f"all {f.size} records are stored; bodies are kept {f.retention} days at least"
    zh = f"全部 {f.size} 条记录均在；正文至少留存 {f.retention} 天"
    other = (
        f"{f.stored} of {f.size} records are stored, kept {f.retention} days",
        f"{f.size} 条中现存 {f.stored} 条，留存 {f.retention} 天",
    )
    return decided(f.stored == f.size > 0 and f.retention >= 180, en, zh, otherwise=other)


def collected(f: Facts) -> Judgement:
    state, en, zh = kept(f)
    hospitals = sum(name.startswith("edge:") for name in f.emitting)
    if state == "met" and not hospitals:
        return "part", f"{en}; no hospital's node has handed records in yet", f"{zh}；尚无医院节点上报"
    return state, f"{en}; {hospitals} hospitals' nodes hand theirs in", f"{zh}；{hospitals} 家医院节点上报"


def changed(f: Facts) -> Judgement:
    if f.approved + f.unapproved == 0:
        return "not_met", "nothing was executed yet that needs an approval", "尚无需审批的操作被执行"
    en = f"{f.approved} privileged actions, each with its approval, in a log that verifies; {f.unapproved} without"
    zh = f"{f.approved} 项特权操作均附审批，且日志不可更改；无审批 {f.unapproved} 项"
    return decided(f.unapproved == 0 and intact(f), en, zh)


def placed(f: Facts) -> Judgement:
    """8.1.4.4 c: set, and somebody was refused by it."""
    if not f.networks:
        return (
            "not_met",
            "administrator_networks is not set: administrators may come from anywhere",
            "未设置 administrator_networks：管理员可从任意地址访问",
        )
    nets, tried = ", ".join(f.networks), f.refused.get("security.address", 0)
    en, zh = f"administrators come from {nets} only; {tried} refused", f"管理员仅可从 {nets} 访问；已拒绝 {tried} 次"
    if not f.elsewhere_refused:
        return "part", f"{en}; elsewhere is recorded and not refused", f"{zh}；其他地址仅记录、未拒绝"
    if not tried:
        return "part", f"{en}; nobody has tried from elsewhere", f"{zh}；尚未以其他地址测试"
    return "met", en, zh


def remote(f: Facts) -> Judgement:
    """8.1.3.5 d: what those who come from outside did is looked at by itself."""
    nodes = sorted(name.removeprefix("edge:") for name in f.emitting if name.startswith("edge:"))
    if not nodes:
        return "not_met", "no hospital has come in from outside yet", "尚无医院从外部接入"
    shown = ", ".join(nodes[:8])
    return decided(
        f.watched and not f.gaps,
        f"each remote hospital is searched by itself (--actor hospital:NAME, --org NAME): {shown}; the watcher looks at all of them",
        f"远程医院用户可单独检索（--actor hospital:名称，--org 名称）：{shown}；监视器持续分析",
    )

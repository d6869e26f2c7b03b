"""One table of verbs: what each of our actions is called in DICOM and FHIR, what it is for, and how long its record is kept.

Codes: DICOM PS3.16 CID 400 (audit event id) and CID 401 (audit event type code), as IHE BALP uses them; `rest` with the FHIR
interaction where DICOM has no word. Purposes: HL7 v3 PurposeOfUse. A verb that is not here cannot be recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

DCM = "http://dicom.nema.org/resources/ontology/DCM"
AUDIT_EVENT_TYPE = "http://terminology.hl7.org/CodeSystem/audit-event-type"
INTERACTION = "http://hl7.org/fhir/restful-interaction"
PURPOSE = "http://terminology.hl7.org/CodeSystem/v3-ActReason"

CODES: dict[str, tuple[str, str, str]] = {
    "110100": (DCM, "Application Activity", "应用活动"),
    "110101": (DCM, "Audit Log Used", "审计日志使用"),
    "110106": (DCM, "Export", "导出"),
    "110107": (DCM, "Import", "导入"),
    "110112": (DCM, "Query", "查询"),
    "110113": (DCM, "Security Alert", "安全告警"),
    "110114": (DCM, "User Authentication", "用户鉴别"),
    "rest": (AUDIT_EVENT_TYPE, "RESTful Operation", "业务操作"),
}
"""Event id -> (code system, English, Chinese)."""

SUBCODES: dict[str, tuple[str, str]] = {
    "110122": (DCM, "Login"),
    "110123": (DCM, "Logout"),
    "110126": (DCM, "Node Authentication"),
    "110127": (DCM, "Emergency Override Started"),
    "110129": (DCM, "Security Configuration"),
    "110131": (DCM, "Software Configuration"),
    "110132": (DCM, "Use of Restricted Function"),
    "110135": (DCM, "Object Security Attributes Changed"),
    "110137": (DCM, "User Security Attributes Changed"),
    "110138": (DCM, "Emergency Override Stopped"),
    "create": (INTERACTION, "create"),
    "read": (INTERACTION, "read"),
    "search": (INTERACTION, "search"),
    "update": (INTERACTION, "update"),
    "operation": (INTERACTION, "operation"),
}
"""Event type code -> (code system, English)."""

PURPOSES: dict[str, tuple[str, str]] = {
    "TREAT": ("treatment", "诊疗"),
    "BTG": ("break the glass", "紧急访问（破窗）"),
    "HRESCH": ("healthcare research", "医学研究"),
    "HOPERAT": ("healthcare operations", "业务运营"),
    "HSYSADMIN": ("health system administration", "系统管理"),
    "HCOMPL": ("health compliance", "合规审计"),
    "HQUALIMP": ("health quality improvement", "质量改进"),
}
"""HL7 v3 PurposeOfUse -> (English, Chinese)."""

RETENTION_DAYS: dict[str, int] = {"security": 1095, "clinical": 2190, "operations": 180}
"""Class -> days a body is kept at least; 180 is what the Cybersecurity Law asks for, 2190 HIPAA's six years."""


@dataclass(frozen=True, slots=True)
class Verb:
    """`code` of `CODES`, `sub` of `SUBCODES`, `purpose` of `PURPOSES` unless the action names another, `retention` class."""

    code: str
    sub: str
    purpose: str
    retention: str
    zh: str


_RESEARCH, _OPERATE, _ADMIN, _COMPLY = "HRESCH", "HOPERAT", "HSYSADMIN", "HCOMPL"
_SECURITY, _CLINICAL, _OPERATIONS = "security", "clinical", "operations"

VERBS: dict[str, Verb] = {
    "access.denied": Verb("110113", "110132", _ADMIN, _SECURITY, "访问被拒绝"),
    "access.elsewhere": Verb("110113", "110132", _ADMIN, _SECURITY, "管理员从非许可地址访问"),
    "access.unproven": Verb("110114", "110122", _ADMIN, _SECURITY, "身份未证实，访问被拒绝"),
    "annotation.create": Verb("rest", "create", _RESEARCH, _CLINICAL, "创建标注项目"),
    "annotation.export": Verb("110106", "operation", _RESEARCH, _CLINICAL, "导出标注"),
    "annotation.label": Verb("rest", "update", _RESEARCH, _CLINICAL, "标注"),
    "annotation.review": Verb("rest", "update", "HQUALIMP", _CLINICAL, "复核标注"),
    "approval.decide": Verb("110113", "110135", _COMPLY, _SECURITY, "审批"),
    "approval.expire": Verb("110113", "110135", _COMPLY, _SECURITY, "审批过期"),
    "approval.request": Verb("110113", "110135", _COMPLY, _SECURITY, "申请审批"),
    "approval.revoke": Verb("110113", "110135", _COMPLY, _SECURITY, "撤销审批"),
    "audit.alarm.ddl": Verb("110113", "110129", _COMPLY, _SECURITY, "日志库结构变更告警"),
    "audit.alarm.inconsistent": Verb("110113", "110132", _COMPLY, _SECURITY, "日志与检查点不一致告警"),
    "audit.alarm.rewritten": Verb("110113", "110132", _COMPLY, _SECURITY, "记录被改写告警"),
    "audit.alarm.seal_altered": Verb("110113", "110132", _COMPLY, _SECURITY, "封存分段被改告警"),
    "audit.alarm.sealed_twice": Verb("110113", "110132", _COMPLY, _SECURITY, "重复封存告警"),
    "audit.alarm.seal_refused": Verb("110113", "110132", _COMPLY, _SECURITY, "封存写入被拒告警"),
    "audit.alarm.second": Verb("110113", "110132", _COMPLY, _SECURITY, "第二棵树与条目不一致告警"),
    "audit.alarm.weakened": Verb("110113", "110129", _COMPLY, _SECURITY, "日志表保护被削弱告警"),
    "audit.alert": Verb("110113", "110132", _COMPLY, _SECURITY, "安全告警"),
    "audit.copy": Verb("110101", "read", _COMPLY, _SECURITY, "复制日志"),
    "audit.coverage": Verb("110101", "read", _COMPLY, _SECURITY, "查看日志覆盖情况"),
    "audit.download": Verb("110106", "read", _COMPLY, _SECURITY, "下载审计导出"),
    "audit.evidence": Verb("110101", "read", _COMPLY, _SECURITY, "查看等保证据"),
    "audit.export": Verb("110106", "operation", _COMPLY, _SECURITY, "导出审计日志"),
    "audit.heartbeat": Verb("110100", "operation", _COMPLY, _OPERATIONS, "审计日志心跳"),
    "audit.lineage": Verb("110101", "search", _COMPLY, _SECURITY, "查询追溯关系"),
    "audit.prove": Verb("110101", "read", _COMPLY, _SECURITY, "获取审计证明"),
    "audit.read": Verb("110101", "read", _COMPLY, _SECURITY, "读取审计记录"),
    "audit.search": Verb("110101", "search", _COMPLY, _SECURITY, "查询审计日志"),
    "audit.witness_policy": Verb("110113", "110129", _COMPLY, _SECURITY, "更换见证策略"),
    "audit.witness_refused": Verb("110113", "110132", _COMPLY, _SECURITY, "见证方拒签"),
    "backup.create": Verb("110106", "operation", _ADMIN, _SECURITY, "创建备份"),
    "backup.restore": Verb("110107", "operation", _ADMIN, _SECURITY, "从备份恢复"),
    "backup.verify": Verb("110100", "operation", _ADMIN, _SECURITY, "校验备份"),
    "catalogue.publish": Verb("rest", "update", _RESEARCH, _OPERATIONS, "发布数据目录"),
    "clearance.set": Verb("110113", "110137", _ADMIN, _SECURITY, "设置安全许可级别"),
    "dataset.release": Verb("110113", "110135", _RESEARCH, _SECURITY, "发布数据集版本"),
    "certificate.issue": Verb("110113", "110137", _ADMIN, _SECURITY, "签发个人证书"),
    "certificate.revoke": Verb("110113", "110137", _ADMIN, _SECURITY, "吊销个人证书"),
    "governance.request-certificate": Verb("110113", "110137", _ADMIN, _SECURITY, "申请个人证书被拒"),
    "program.verify": Verb("110100", "110131", _ADMIN, _SECURITY, "程序可信验证"),
    "session.foreign": Verb("110113", "110132", _ADMIN, _SECURITY, "会话未出示所绑定证书"),
    "dataset.create": Verb("110107", "create", _RESEARCH, _CLINICAL, "创建数据集版本"),
    "dicomweb.retrieve": Verb("rest", "read", "TREAT", _CLINICAL, "DICOMweb 调阅"),
    "dicomweb.search": Verb("110112", "search", "TREAT", _CLINICAL, "DICOMweb 查询"),
    "dicomweb.store": Verb("110107", "create", "TREAT", _CLINICAL, "DICOMweb 入库"),
    "dicomweb.token_create": Verb("110113", "110137", _ADMIN, _SECURITY, "发放 DICOMweb 令牌"),
    "dicomweb.token_revoke": Verb("110113", "110137", _ADMIN, _SECURITY, "撤销 DICOMweb 令牌"),
    "dead.read": Verb("110100", "read", _ADMIN, _SECURITY, "查看死信内容"),
    "dead.replay": Verb("110100", "operation", _ADMIN, _SECURITY, "重放死信"),
    "edge.ingest": Verb("110107", "create", _RESEARCH, _CLINICAL, "院内数据导入"),
    "quarantine.drop": Verb("rest", "operation", _RESEARCH, _CLINICAL, "删除隔离的影像"),
    "quarantine.release": Verb("rest", "update", _RESEARCH, _CLINICAL, "放行隔离的影像"),
    "edge.quality": Verb("110100", "read", _RESEARCH, _CLINICAL, "检查院内数据质量"),
    "patient.forget": Verb("110113", "operation", _COMPLY, _SECURITY, "遗忘患者"),
    "patient.forget_ask": Verb("110113", "operation", _COMPLY, _SECURITY, "申请遗忘患者"),
    "patient.readmit": Verb("110113", "operation", _COMPLY, _SECURITY, "恢复患者导入"),
    "ethics.record": Verb("110113", "create", _COMPLY, _SECURITY, "登记伦理批件"),
    "ethics.end": Verb("110113", "update", _COMPLY, _SECURITY, "终止伦理批件"),
    "ethics.consent": Verb("110113", "update", _COMPLY, _SECURITY, "登记或撤回知情同意"),
    "patient.infer": Verb("110100", "operation", "TREAT", _CLINICAL, "对患者影像推理"),
    "patient.ingest": Verb("110107", "create", _RESEARCH, _CLINICAL, "患者数据入库"),
    "emergency.end": Verb("110113", "110138", "BTG", _SECURITY, "结束紧急访问"),
    "emergency.heard": Verb("110113", "110132", _COMPLY, _SECURITY, "医院获知紧急访问"),
    "emergency.open": Verb("110113", "110127", "BTG", _SECURITY, "开启紧急访问"),
    "emergency.overdue": Verb("110113", "110132", _COMPLY, _SECURITY, "紧急访问逾期未审查"),
    "emergency.restore": Verb("110113", "110137", _ADMIN, _SECURITY, "恢复紧急访问权限"),
    "emergency.review": Verb("110113", "110135", _COMPLY, _SECURITY, "审查紧急访问"),
    "escrow.create": Verb("110113", "110135", _COMPLY, _SECURITY, "密钥份额生成"),
    "escrow.drill": Verb("110113", "110135", _COMPLY, _SECURITY, "密钥恢复演练"),
    "escrow.restore": Verb("110113", "110135", _COMPLY, _SECURITY, "密钥恢复"),
    "federation.adjust": Verb("rest", "update", _RESEARCH, _CLINICAL, "在范围内调整联邦"),
    "federation.approved": Verb("110113", "110135", _RESEARCH, _SECURITY, "联邦获批"),
    "federation.cancel": Verb("rest", "update", _RESEARCH, _SECURITY, "取消联邦"),
    "federation.consent": Verb("110113", "110135", _RESEARCH, _SECURITY, "医院对联邦表态"),
    "federation.create": Verb("rest", "create", _RESEARCH, _SECURITY, "创建联邦"),
    "federation.drop": Verb("rest", "update", _RESEARCH, _SECURITY, "参与方掉线"),
    "federation.evaluate": Verb("110100", "operation", _RESEARCH, _CLINICAL, "院内评估"),
    "federation.evaluation": Verb("110107", "create", _RESEARCH, _CLINICAL, "收到评估结果"),
    "federation.extend": Verb("rest", "update", _RESEARCH, _SECURITY, "延长本轮时限"),
    "federation.failure": Verb("rest", "create", _RESEARCH, _SECURITY, "参与方报告失败"),
    "federation.flag": Verb("110113", "110135", _RESEARCH, _SECURITY, "模型更新异常"),
    "federation.invitation": Verb("rest", "create", _RESEARCH, _SECURITY, "收到联邦邀请"),
    "federation.invite": Verb("rest", "update", _RESEARCH, _SECURITY, "联邦邀请链接的签发与撤销"),
    "federation.move": Verb("rest", "update", _RESEARCH, _SECURITY, "联邦状态变更"),
    "federation.open": Verb("rest", "read", _RESEARCH, _SECURITY, "医院打开邀请链接"),
    "federation.pause": Verb("rest", "update", _RESEARCH, _SECURITY, "暂停或恢复联邦"),
    "federation.privacy": Verb("rest", "create", _RESEARCH, _CLINICAL, "隐私预算支出"),
    "federation.quarantine": Verb("110113", "110135", _RESEARCH, _SECURITY, "隔离参与医院"),
    "federation.rejoin": Verb("rest", "update", _RESEARCH, _SECURITY, "参与方重新加入"),
    "federation.release": Verb("110113", "110135", _RESEARCH, _SECURITY, "解除医院隔离"),
    "federation.respond": Verb("rest", "update", _RESEARCH, _SECURITY, "收到医院答复"),
    "federation.rollback": Verb("110113", "110135", _RESEARCH, _SECURITY, "联邦回退到先前轮次"),
    "federation.round": Verb("110100", "operation", _RESEARCH, _CLINICAL, "联邦训练轮次"),
    "federation.secure": Verb("rest", "create", _RESEARCH, _CLINICAL, "安全聚合步骤"),
    "federation.submit": Verb("rest", "create", _RESEARCH, _CLINICAL, "提交轮次结果"),
    "federation.train": Verb("110100", "operation", _RESEARCH, _CLINICAL, "院内训练"),
    "federation.unapproved": Verb("110113", "110135", _RESEARCH, _SECURITY, "联邦审批被撤销"),
    "federation.update": Verb("110107", "create", _RESEARCH, _CLINICAL, "收到模型更新"),
    "federation.upload": Verb("110106", "create", _RESEARCH, _CLINICAL, "模型更新出院"),
    "federation.void": Verb("rest", "update", _RESEARCH, _SECURITY, "轮次作废"),
    "federation.witnessed": Verb("110112", "read", _COMPLY, _SECURITY, "核验联邦启动记录"),
    "federation.withdraw": Verb("110113", "110135", _RESEARCH, _SECURITY, "医院退出联邦"),
    "governance.activate-user": Verb("110113", "110137", _ADMIN, _SECURITY, "激活账户被拒"),
    "governance.bootstrap": Verb("110113", "110137", _ADMIN, _SECURITY, "创建首位安全管理员"),
    "governance.change-password": Verb("110113", "110137", _ADMIN, _SECURITY, "修改口令被拒"),
    "governance.close-session": Verb("110114", "110123", _ADMIN, _SECURITY, "退出登录被拒"),
    "governance.confirm-second-factor": Verb("110113", "110137", _ADMIN, _SECURITY, "确认第二因素被拒"),
    "governance.end-session": Verb("110114", "110123", _ADMIN, _SECURITY, "结束会话被拒"),
    "governance.enrol": Verb("110113", "110126", _ADMIN, _SECURITY, "节点注册被拒"),
    "governance.enrol-second-factor": Verb("110113", "110137", _ADMIN, _SECURITY, "登记第二因素被拒"),
    "governance.open-session": Verb("110114", "110122", _ADMIN, _SECURITY, "登录被拒"),
    "governance.open-system-session": Verb("110114", "110122", _ADMIN, _SECURITY, "系统登录被拒"),
    "governance.renew-certificate": Verb("110113", "110126", _ADMIN, _SECURITY, "证书续期被拒"),
    "governance.step-up": Verb("110114", "110122", _ADMIN, _SECURITY, "二次验证被拒"),
    "hospital.enrol": Verb("110113", "110126", _ADMIN, _SECURITY, "医院节点申请注册"),
    "hospital.register": Verb("110113", "110129", _ADMIN, _SECURITY, "登记医院"),
    "hospital.revoke": Verb("110113", "110126", _ADMIN, _SECURITY, "吊销医院证书被拒"),
    "inference.infer": Verb("110100", "operation", "TREAT", _CLINICAL, "模型推理"),
    "key.register": Verb("110113", "110137", _ADMIN, _SECURITY, "登记签名公钥"),
    "label.change": Verb("110113", "110135", _ADMIN, _SECURITY, "变更安全标记"),
    "label.propose": Verb("110113", "110135", _ADMIN, _SECURITY, "申请降低安全标记"),
    "log.hold": Verb("110113", "110129", _COMPLY, _SECURITY, "审计日志法律保留"),
    "log.prune": Verb("110113", "110129", _COMPLY, _SECURITY, "批准清理审计正文"),
    "log.pruned": Verb("110113", "110129", _COMPLY, _SECURITY, "审计正文已清理"),
    "model.artefact": Verb("rest", "update", _RESEARCH, _CLINICAL, "登记模型制品"),
    "model.convert": Verb("110100", "operation", _RESEARCH, _CLINICAL, "模型转换"),
    "model.install": Verb("110100", "110131", _OPERATE, _CLINICAL, "安装模型"),
    "model.prepare-release": Verb("rest", "create", _OPERATE, _CLINICAL, "准备发布模型"),
    "model.register": Verb("rest", "create", _RESEARCH, _CLINICAL, "登记模型版本"),
    "model.reject": Verb("110113", "110131", _OPERATE, _CLINICAL, "拒绝加载模型"),
    "model.release": Verb("110113", "110135", _OPERATE, _CLINICAL, "发布模型"),
    "model.remove": Verb("110100", "110131", _OPERATE, _CLINICAL, "移除模型"),
    "model.serve": Verb("110100", "110131", _OPERATE, _CLINICAL, "模型上线"),
    "model.withdraw": Verb("110113", "110135", _OPERATE, _CLINICAL, "撤回模型"),
    "node.enrolled": Verb("110113", "110126", _ADMIN, _SECURITY, "医院节点注册完成"),
    "node.renew": Verb("110113", "110126", _ADMIN, _SECURITY, "节点证书续期"),
    "node.revoke": Verb("110113", "110126", _ADMIN, _SECURITY, "吊销节点证书"),
    "object.read": Verb("110106", "read", _RESEARCH, _CLINICAL, "读取对象"),
    "object.write": Verb("110107", "create", _RESEARCH, _CLINICAL, "存入对象"),
    "package.approve": Verb("110113", "110131", _RESEARCH, _SECURITY, "批准训练代码"),
    "password.change": Verb("110113", "110137", _ADMIN, _SECURITY, "修改口令"),
    "policy.change": Verb("110113", "110129", _ADMIN, _SECURITY, "变更访问控制策略"),
    "policy.propose": Verb("110113", "110129", _ADMIN, _SECURITY, "提出访问控制策略"),
    "request.replayed": Verb("110113", "110126", _ADMIN, _SECURITY, "重放请求"),
    "retention.change": Verb("110113", "110129", _COMPLY, _SECURITY, "变更保存期限"),
    "retention.request": Verb("110113", "110129", _COMPLY, _SECURITY, "申请变更保存期限或清理"),
    "roster.pin": Verb("110113", "110129", _COMPLY, _SECURITY, "固定签名名册"),
    "roster.update": Verb("110113", "110129", _COMPLY, _SECURITY, "更新签名名册"),
    "second_factor.confirm": Verb("110113", "110137", _ADMIN, _SECURITY, "确认第二因素"),
    "second_factor.enrol": Verb("110113", "110137", _ADMIN, _SECURITY, "登记第二因素"),
    "session.close": Verb("110114", "110123", _ADMIN, _SECURITY, "退出登录"),
    "session.end": Verb("110114", "110123", _ADMIN, _SECURITY, "结束会话"),
    "session.open": Verb("110114", "110122", _ADMIN, _SECURITY, "登录"),
    "session.step_up": Verb("110114", "110122", _ADMIN, _SECURITY, "二次验证"),
    "system.register": Verb("110113", "110137", _ADMIN, _SECURITY, "登记医院系统"),
    "training.cancel": Verb("rest", "update", _RESEARCH, _CLINICAL, "取消训练"),
    "training.fail": Verb("110100", "operation", _RESEARCH, _CLINICAL, "训练失败"),
    "training.finish": Verb("110100", "operation", _RESEARCH, _CLINICAL, "训练完成"),
    "training.rehearse": Verb("110100", "operation", _RESEARCH, _CLINICAL, "演练训练包"),
    "training.submit": Verb("rest", "create", _RESEARCH, _CLINICAL, "提交训练"),
    "user.activate": Verb("110113", "110137", _ADMIN, _SECURITY, "激活账户"),
    "user.create": Verb("110113", "110137", _ADMIN, _SECURITY, "创建账户"),
    "user.disable": Verb("110113", "110137", _ADMIN, _SECURITY, "停用账户"),
    "user.enable": Verb("110113", "110137", _ADMIN, _SECURITY, "启用账户"),
    "user.limit": Verb("110113", "110137", _ADMIN, _SECURITY, "设定账户期限"),
    "user.list": Verb("110112", "search", _COMPLY, _SECURITY, "账户清单被拒"),
    "user.report": Verb("110112", "search", _COMPLY, _SECURITY, "导出账户清单"),
    "user.locked": Verb("110113", "110137", _ADMIN, _SECURITY, "账户锁定"),
    "user.manage": Verb("110113", "110137", _ADMIN, _SECURITY, "变更账户"),
    "user.recover": Verb("110113", "110137", _ADMIN, _SECURITY, "恢复账户"),
    "user.roles": Verb("110113", "110137", _ADMIN, _SECURITY, "变更角色"),
    "user.unlock": Verb("110113", "110137", _ADMIN, _SECURITY, "解锁账户"),
    "log.forgive": Verb("110113", "110129", _COMPLY, _SECURITY, "医院决定继续采用日志"),
    "log.refused": Verb("110113", "110132", _COMPLY, _SECURITY, "医院发现日志分叉或回退"),
    "log.seen": Verb("110101", "read", _COMPLY, _SECURITY, "医院首次查验日志"),
    "maintenance.record": Verb("110100", "operation", _ADMIN, _SECURITY, "运维操作记录被拒"),
    "vault.export": Verb("110106", "operation", _ADMIN, _SECURITY, "导出密钥域"),
    "vault.import": Verb("110107", "operation", _ADMIN, _SECURITY, "导入密钥域"),
    "vault.retire": Verb("110113", "110129", _ADMIN, _SECURITY, "销毁旧密钥"),
    "vault.rotate": Verb("110113", "110129", _ADMIN, _SECURITY, "轮换密钥"),
}


def coding(verb: str) -> dict[str, str]:
    """The record's `type`: event id and event type code with their systems. Raises `KeyError` for a verb nobody declared."""
    found = VERBS[verb]
    return {"system": CODES[found.code][0], "code": found.code, "subsystem": SUBCODES[found.sub][0], "subcode": found.sub}

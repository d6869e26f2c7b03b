"""The plan of a federation in plain words: what a hospital reads before it signs."""

from __future__ import annotations

import math
from collections import OrderedDict
from decimal import Decimal
from typing import Any

from medmesh.contracts.data import pipeline_of
from medmesh.contracts.federation.common import RoundKind
from medmesh.contracts.plan import Plan, RangeName, canonical, plan_hash
from medmesh.federated.privacy import words
from medmesh.figures import size
from medmesh.memo import by_identity
from medmesh.pipelines import words as pipelines

__all__ = ["Plan", "after_training", "canonical", "evaluates", "explain", "plan_hash", "plan_of"]

_MOST_PLANS = 256
_read: OrderedDict[str, Plan] = OrderedDict()


def plan_of(row: Any) -> Plan:
    """The plan in a federation's row, where it is a document or its text. Its hash names it: what was read once is not read again for
    every answer."""
    if (plan := _read.get(row.plan_hash)) is None:
        found = row.plan
        plan = Plan.model_validate_json(found) if isinstance(found, str) else Plan.model_validate(found)
        _read[row.plan_hash] = plan
        while len(_read) > _MOST_PLANS:
            _read.popitem(last=False)
    return plan


def after_training(plan: Plan) -> tuple[RoundKind, ...]:
    """The rounds after the training rounds. Where tensors never leave a hospital, neither does a whole model that was trained alone."""
    if plan.baseline and not plan.local:
        return (RoundKind.BASELINE, RoundKind.EVALUATE)
    return (RoundKind.EVALUATE,) if plan.baseline or plan.evaluate_every else ()


def last_round(plan: Plan) -> int:
    """The number of the last round, where none is left out."""
    return plan.rounds + len(after_training(plan))


def evaluates(plan: Plan, number: int) -> bool:
    """Whether hospitals evaluate the model that training round `number` begins with."""
    return 0 < number <= plan.rounds and plan.evaluate_every > 0 and (number - 1) % plan.evaluate_every == 0


@by_identity()
def update_bytes(plan: Plan) -> int:
    """How many bytes one round's update has as it travels, headers aside; a baseline's models travel whole, and under secure sums every
    number has the bytes of the ring, those beside the model too."""
    from medmesh.federated.aggregation import upload_signature  # numpy: not before there is a plan
    from medmesh.federated.codecs import sent, wire_bytes

    if plan.secure is None:
        return wire_bytes(upload_signature(plan) if plan.baseline else sent(plan))
    from medmesh.federated.secure import counts, vectors

    beside = counts.width(plan, RoundKind.TRAIN, 1, 0)  # of an evaluation round it is the whole vector
    return wire_bytes(vectors.signature(upload_signature(plan), beside, plan.secure.ring))


def least(plan: Plan) -> Plan:
    """The plan as the round that asks for least: of what may change between rounds, the lower ends. A plan that lets nothing change is
    itself."""
    low: dict[str, int] = {name: max(1, math.ceil(Decimal(plan.ranges[name].low))) for name in _COUNTED if name in plan.ranges}
    return plan.model_copy(update=low) if low else plan


def fixed(plan: Plan) -> Plan:
    """The plan of one round, in which nothing may change any more."""
    return plan.model_copy(update={"ranges": {}}) if plan.ranges else plan


def steps_of(plan: Plan, samples: int) -> int:
    """How many steps a hospital with so many samples trains in a round of a plan, by its algorithm."""
    from medmesh.federated.aggregation import algorithm_of  # numpy: not before there is a plan

    return algorithm_of(plan).steps(plan, samples)


_COUNTED: tuple[RangeName, ...] = ("local_steps", "batch_size")
_CODECS = {
    "fp16": ("as their difference from the round's model in 16-bit numbers", "以与本轮模型之差的 16 位浮点数传输"),
    "bf16": ("as their difference from the round's model in 16-bit numbers (bfloat16)", "以与本轮模型之差的 bfloat16 数传输"),
    "int8": ("as their difference from the round's model in 8-bit numbers", "以与本轮模型之差的 8 位整数传输"),
    "topk": ("as the largest differences from the round's model only", "仅传输与本轮模型之差中最大的部分"),
}


def _travels(plan: Plan, language: str) -> list[str]:
    """How updates are shortened, if they are."""
    if plan.codec == "none":
        return []
    en, zh = _CODECS[plan.codec]
    share = f"{float(plan.codec_share) * 100:g} %" if plan.codec == "topk" else ""
    if language == "zh":
        return [f"更新{zh}{f'（{share}）' if share else ''}；未传输的余差留在贵院，并入下一轮。"]
    how = f"{en} ({share})" if share else en
    return [f"Updates travel {how}; what that leaves out stays in the hospital and goes into the next round's."]


def _algorithm(plan: Plan, language: str) -> list[str]:
    """What its parameters and what stays mean, one sentence a line."""
    from medmesh.federated.aggregation import named

    kind, lines, zh = named(plan.algorithm), [], language == "zh"
    if plan.parameters:
        given = ", ".join(f"{name} = {value}" for name, value in sorted(plan.parameters.items()))
        lines.append(f"算法参数：{given}。" if zh else f"Parameters of the algorithm: {given}.")
    if kind.UPLOADS or kind.NUMBERS:
        what = ", ".join([*kind.UPLOADS, *kind.NUMBERS])
        lines.append(f"算法还随更新上传：{what}。" if zh else f"The algorithm also sends, with each update: {what}.")
    if plan.local:
        names = ", ".join(plan.local[:8]) + (" …" if len(plan.local) > 8 else "")
        lines.append(f"始终留在贵院的张量：{names}。" if zh else f"Tensors that never leave your hospital: {names}.")
    if kind.PERSONAL:
        text = "Your hospital ends with a model of its own beside the global one."
        lines.append("除全局模型外，贵院还将得到一个本院专属模型。" if zh else text)
    return lines


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _leaves(plan: Plan, language: str) -> str:
    """What a round sends, and how much it is."""
    from medmesh.federated.aggregation import upload_signature

    much, zh = size(update_bytes(plan)), language == "zh"
    if plan.secure is None:
        tensors = len(upload_signature(plan))
        if zh:
            return f"离开医院的内容：每轮 {tensors} 个张量（{much}）{'' if plan.privacy else '、样本数与损失'}；{_counts(plan, language)}"
        told = "" if plan.privacy else ", the number of samples and the loss"
        return f"What leaves: {_many(tensors, 'tensor')} a round ({much}){told}; {_counts(plan, language)}"
    # A private plan tells neither samples nor evaluates; otherwise a loss goes with the counts.
    if zh:
        within = "模型" if plan.privacy else "模型、样本数及评估轮的损失" if plan.evaluate_every else "模型与样本数"
        return f"离开医院的内容：每轮一个加掩码的向量（{much}），内含{within}；{_counts(plan, language)}"
    told = ", the number of samples and the loss of rounds that evaluate" if plan.evaluate_every else " and the number of samples"
    return f"What leaves: one masked vector a round ({much}), in it the model{'' if plan.privacy else told}; {_counts(plan, language)}"


def _counts(plan: Plan, language: str) -> str:
    """What an evaluation tells."""
    zh = language == "zh"
    if not after_training(plan):
        return "别无其他。" if zh else "nothing else."
    every, cell = plan.evaluate_every, plan.small_cell
    if zh:
        when = f"每 {every} 轮及结束时" if every > 1 else "每轮及结束时" if every else "结束时"
        how = f"，按患者计，均为 {cell} 的倍数，小于 {cell} 的计数不外传" if cell > 1 else "，为精确数值，不作小单元格处理"
        only = "；计数加掩码后离开，平台只能得到各院之和" if plan.secure is not None else ""
        return f"{when}另有留出样本的混淆矩阵计数{how}{only}。"
    when = f"every {every} rounds and at the end" if every > 1 else "every round and at the end" if every else "at the end"
    how = f"of patients as multiples of {cell}, none below it" if cell > 1 else "exactly as they are, however small"
    only = "; they leave masked, and the platform learns their sum over the hospitals only" if plan.secure is not None else ""
    return f"{when}, counts of a confusion matrix over held-out samples, {how}{only}."


def _stops(plan: Plan, language: str) -> list[str]:
    if plan.stop is None:
        return []
    stop, metric = plan.stop, plan.stop.metric.replace("_", " ")
    if language == "zh":
        name = {"balanced accuracy": "平衡准确率", "accuracy": "准确率"}[metric]
        return [f"若 {name} 连续 {stop.patience} 次评估提升不超过 {stop.min_delta}，则提前结束，并保留评估最好的模型。"]
    return [
        f"Training ends early when {metric} has not risen by more than {stop.min_delta} for {_many(stop.patience, 'evaluation')}; "
        "the best model is kept."
    ]


def _drops(plan: Plan, language: str) -> list[str]:
    if not plan.max_drops:
        return []
    text = f"A hospital that drops out {_many(plan.max_drops, 'time')} is not asked again; until then it may return at the next round."
    return [f"掉线或失败满 {plan.max_drops} 次的医院不再参加；此前可在下一轮返回。" if language == "zh" else text]


def _protection(plan: Plan, language: str) -> str:
    """What the platform sees of a single hospital."""
    if plan.secure is None and plan.privacy is not None:
        if language == "zh":
            return "本方案不含安全聚合：平台可见单家医院的更新，更新在本轮结束后删除。"
        return "There is no secure aggregation in this plan: the platform sees a single hospital's update and deletes it after the round."
    if plan.secure is None:
        if language == "zh":
            return "本方案不含差分隐私与安全聚合：平台可见单家医院的更新，更新在本轮结束后删除。"
        return (
            "This plan has neither differential privacy nor secure aggregation: the platform sees a single hospital's update "
            "and deletes it after the round."
        )
    least, count = plan.secure.threshold, len(plan.participants)
    if language == "zh":
        without = "；本方案不含差分隐私" if plan.privacy is None else ""
        short = "；以 32 位数传输" if plan.secure.ring == 32 else ""
        return f"安全聚合：更新与样本数加掩码后离开医院，平台只能得到 {count} 家中至少 {least} 家之和，且每轮只打开一次{short}{without}。"
    without = " There is no differential privacy in this plan." if plan.privacy is None else ""
    short = " Numbers travel in 32 bits: what does not fit is not sent." if plan.secure.ring == 32 else ""
    return (
        f"Secure aggregation: updates and sample counts leave masked; the platform learns one sum a round, over at least {least} of the "
        f"{count} hospitals, and no single one.{short}{without}"
    )


def _rehearsed(plan: Plan, language: str) -> list[str]:
    """What running it took on invented data."""
    if (found := plan.rehearsal) is None:
        return []
    seconds = plan.local_steps * found.step_microseconds / 1e6
    took = f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    if language == "zh":
        took = took.replace(" s", " 秒").replace(" min", " 分钟")
        return [
            f"邀请前已在虚构数据上演练（报告 {found.report[:16]}…）：在平台的机器上，每轮训练约 {took}，内存约 {found.memory_mib} MiB。"
        ]
    return [
        f"It was rehearsed on invented data before you were asked (report {found.report[:16]}…): on the platform's machine a round's "
        f"training takes about {took} and {found.memory_mib} MiB of memory."
    ]


_RANGES = {
    "learning_rate": ("the learning rate", "学习率"),
    "local_steps": ("steps a round", "每轮步数"),
    "batch_size": ("the batch size", "批量大小"),
}


def _ranges(plan: Plan, language: str) -> list[str]:
    """What may change between rounds."""
    if not plan.ranges:
        return []
    zh = language == "zh"
    said = [f"{_RANGES[name][zh]} {wanted.low}–{wanted.high}" for name, wanted in sorted(plan.ranges.items())]
    if zh:
        return [f"发起人可在轮次之间调整而无需再次征得同意的范围：{'，'.join(said)}；超出者贵院节点拒绝执行。"]
    return [f"The initiator may change between rounds, without asking again: {', '.join(said)}. Your node refuses anything beyond."]


def _pace(plan: Plan, language: str) -> list[str]:
    """Whether rounds wait for the slow."""
    if (pace := plan.pace) is None:
        return []
    if language == "zh":
        return [
            f"每轮收到 {pace.quorum} 家更新即结束，不等待较慢的医院；较慢医院的更新可计入其后 {pace.staleness} 轮之内，"
            f"权重按（1 + 迟到轮数）的 -{pace.decay} 次方递减。"
        ]
    return [
        f"A round ends once {pace.quorum} updates are there and does not wait for the slow; theirs count in one of the {pace.staleness} "
        f"rounds after, with a weight of (1 + rounds late) ^ -{pace.decay}."
    ]


_FLAGGED = {
    "note": ("is recorded, and counts all the same", "仅作记录，仍计入聚合"),
    "exclude": ("does not count in its round", "不计入本轮聚合"),
    "quarantine": (
        "does not count, and its hospital takes no part until others approve its release",
        "不计入聚合，且该医院须经批准解除隔离后方可继续参加",
    ),
}


def _screening(plan: Plan, language: str) -> list[str]:
    """What is looked for in updates, and what follows."""
    zh = language == "zh"
    if (rules := plan.screening) is None:
        if plan.secure is None:
            return []
        text = "No single update is seen, so that a bad one (poisoned, copied, replayed or untrained) can be neither found nor left out."
        return ["单家医院的更新不可见，因此无法发现或剔除异常更新（投毒、复制、重放或未训练）。" if zh else text]
    en_then, zh_then = _FLAGGED[rules.action]
    if zh:
        return [
            f"平台比对各院更新：长度超过中位数 {rules.longer} 倍或不足 {rules.shorter} 倍、与他院方向相反（余弦低于 {rules.opposed}，"
            f"且偏离中位数超过 {rules.deviations} 个稳健标准差）、未训练、复制他院（差距不足其长度的 {rules.alike}）或重放旧更新者，"
            f"标记为异常；异常更新{zh_then}。各院可见被标记的医院及原因。"
        ]
    return [
        f"The platform compares updates and flags one that is longer than {rules.longer} times the median or shorter than {rules.shorter} "
        f"times, against the others' direction (a cosine below {rules.opposed}; this, and too long, only beyond {rules.deviations} robust "
        f"standard deviations), untrained, a copy of another hospital's (nearer than {rules.alike} of its length), or replayed. "
        f"A flagged update {en_then}. Every hospital sees which one was flagged and why."
    ]


def _data(plan: Plan, language: str) -> str:
    data, zh = plan.data, language == "zh"
    if data.kind == "images":
        size = f"{data.image_size}×{data.image_size}"
        return f"{data.modality} 图像，缩放至 {size}" if zh else f"{data.modality} images scaled to {size}"
    if data.kind == "volumes":
        size, mm = "×".join(map(str, data.size)), " × ".join(data.spacing or ())
        if zh:
            return f"{data.volume} 三维体数据，{f'重采样至 {mm} 毫米并' if mm else ''}裁剪或补齐至 {size}"
        return f"{data.volume} volumes{f' at {mm} mm' if mm else ''}, cut or filled to {size} voxels"
    if data.kind == "signals":
        few = ", ".join(data.channels[:20]) + (" …" if len(data.channels) > 20 else "")
        if zh:
            return f"{data.signal} 信号的通道 {few}，{data.rate} 赫兹，{data.length} 个采样点"
        return f"the channels {few} of {data.signal} signals at {data.rate} Hz, {data.length} samples"
    if data.kind == "texts":
        if zh:
            return f"文本 {data.text} 的 {data.size} 个特征值；文本留在院内，特征只用于本院训练，但模型更新可能透露其中出现过哪些词"
        return (
            f"{data.size} features of the notes {data.text}; neither texts nor features leave the hospital, but a model's update may tell "
            f"which words occurred in them"
        )
    names = ", ".join(feature.name for feature in data.features[:20]) + (" …" if len(data.features) > 20 else "")
    if zh:
        return f"表格 {data.table} 的字段 {names}，按方案中写明的常数缩放"
    return f"the columns {names} of the table {data.table}, scaled by constants that the plan states"


def _prepared(plan: Plan, language: str) -> list[str]:
    """What is done with the data before training code sees them."""
    said = pipeline_of(plan.data)
    return [] if said is None else [pipelines.explain(said, language)]


def explain(plan: Plan, language: str = "en") -> list[str]:
    """What code runs, on what data, what leaves the hospital, how often, and when; one sentence a line."""
    rounds = plan.rounds + len(after_training(plan))
    classes = ", ".join(plan.data.classes)
    if language == "zh":
        return [
            f"发起人 {plan.initiator} 邀请 {len(plan.participants)} 家医院共同训练“{plan.name}”：{plan.purpose}",
            f"将运行的代码：训练包 {plan.package[:16]}…（{plan.framework}），须由贵院批准本方案、或策略列出该哈希后方可运行；"
            f"初始权重 {plan.initial[:16]}…。",
            *_rehearsed(plan, language),
            f"使用的数据：{_data(plan, language)}，类别：{classes}。数据不出院。",
            *_prepared(plan, language),
            _leaves(plan, language),
            f"共 {rounds} 轮，每轮本地训练 {plan.local_steps} 步，每步 {plan.batch_size} 个样本，学习率 {plan.learning_rate}，"
            f"每轮时限 {plan.round_deadline_seconds} 秒；算法 {plan.algorithm}。",
            *_ranges(plan, language),
            *_algorithm(plan, language),
            *_pace(plan, language),
            *_travels(plan, language),
            *_stops(plan, language),
            *_drops(plan, language),
            f"{plan.accept_by:%Y-%m-%d %H:%M} UTC 前答复；各院均已答复后开始，不早于 {plan.start_at:%Y-%m-%d %H:%M} UTC；"
            f"至少 {plan.min_participants} 家参与。",
            *words.explain(plan, language),
            _protection(plan, language),
            *_screening(plan, language),
        ]
    return [
        f"{plan.initiator} invites {_many(len(plan.participants), 'hospital')} to train {plan.name!r} together: {plan.purpose}",
        f"Code that will run: training package {plan.package[:16]}… ({plan.framework}), only after you approved this plan or your policy "
        f"names this hash; it begins with the weights {plan.initial[:16]}….",
        *_rehearsed(plan, language),
        f"Data it uses: {_data(plan, language)}, classes {classes}. They stay in the hospital.",
        *_prepared(plan, language),
        _leaves(plan, language),
        f"{_many(rounds, 'round')} of {_many(plan.local_steps, 'local step')} on {_many(plan.batch_size, 'sample')} each, "
        f"learning rate {plan.learning_rate}, each round within {plan.round_deadline_seconds} s; algorithm {plan.algorithm}.",
        *_ranges(plan, language),
        *_algorithm(plan, language),
        *_pace(plan, language),
        *_travels(plan, language),
        *_stops(plan, language),
        *_drops(plan, language),
        f"Answer before {plan.accept_by:%Y-%m-%d %H:%M} UTC; it starts when all have answered, not before "
        f"{plan.start_at:%Y-%m-%d %H:%M} UTC; "
        f"at least {plan.min_participants} take part.",
        *words.explain(plan, language),
        _protection(plan, language),
        *_screening(plan, language),
    ]

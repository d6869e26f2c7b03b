"""A plan's differential privacy in plain words: what is hidden, from whom, at what price, and what is not."""

from __future__ import annotations

from medmesh.contracts.plan import Plan
from medmesh.contracts.privacy import Privacy
from medmesh.federated.privacy.budget import rounds_within, spent


def explain(plan: Plan, language: str) -> list[str]:
    """One sentence a line; none without privacy in the plan."""
    if (privacy := plan.privacy) is None:
        return []
    fits = rounds_within(plan)
    now = f"{spent(plan, fits):.2f}"
    lines = _chinese(plan, privacy, fits, now) if language == "zh" else _english(plan, privacy, fits, now)
    return [lines[0], *_where(plan, privacy, language), *lines[1:]]


def _english(plan: Plan, privacy: Privacy, fits: int, now: str) -> list[str]:
    who = "a whole hospital" if privacy.unit == "hospital" else "a single patient"
    what = "each hospital's update" if privacy.unit == "hospital" else "each patient's part in each step"
    kept = "; the norm then follows the updates" if privacy.adaptive else ""
    rounds = (
        f"{fits} rounds spend epsilon {now}" if fits == plan.rounds else f"it ends after at most {fits} of {plan.rounds} rounds ({now})"
    )
    return [
        f"Differential privacy for {who}: epsilon at most {privacy.epsilon} at delta {privacy.delta}; {what} is clipped to {privacy.clip}"
        f" and noised with {privacy.noise} times that{kept}.",
        f"A ledger counts every attempt at a round before it begins; {rounds}. A round that would exceed the budget is not begun.",
        _NOT[privacy.unit][0],
    ]


def _chinese(plan: Plan, privacy: Privacy, fits: int, now: str) -> list[str]:
    who = "整家医院" if privacy.unit == "hospital" else "单个患者"
    what = "每家医院的更新" if privacy.unit == "hospital" else "每一步中每位患者的贡献"
    kept = "，此后裁剪范数随更新自适应" if privacy.adaptive else ""
    rounds = f"{fits} 轮共支出 ε={now}" if fits == plan.rounds else f"{plan.rounds} 轮中最多进行 {fits} 轮（ε={now}）"
    return [
        f"差分隐私（保护单位：{who}）：δ={privacy.delta} 时 ε 不超过 {privacy.epsilon}；{what}被裁剪至 {privacy.clip}，"
        f"并加入其 {privacy.noise} 倍的噪声{kept}。",
        f"账本在每次尝试开始前记账；{rounds}。将超出预算的轮次不会开始。",
        _NOT[privacy.unit][1],
    ]


_NOT = {
    "hospital": (
        "It hides what a hospital contributed, not that it takes part; the same data in other federations is counted there, not here.",
        "所隐藏的是医院贡献的内容，而非其参与这一事实；同一数据用于其他联邦时，在其他联邦中另行计算。",
    ),
    "patient": (
        "It hides whether a patient was among the training data; it does not hide what is true of the hospital's patients as a whole, and "
        "the same patient at two hospitals, or in another federation, is counted at each.",
        "所隐藏的是某位患者是否在训练数据之中；不隐藏该院患者总体的特征；同一患者在两家医院或其他联邦中分别计算。",
    ),
}


def _where(plan: Plan, privacy: Privacy, language: str) -> list[str]:
    """Where the noise is added, and so whom one has to trust."""
    if privacy.unit == "patient":
        en = (
            "The noise is added in your hospital, in the process that runs the package: nobody outside has to be trusted, but the approved "
            "code has."
        )
        zh = "噪声在贵院内、运行训练包的进程中加入：无需信任院外任何一方，但须信任所批准的代码。"
    elif plan.secure is not None:
        least = plan.secure.threshold
        en = (
            f"Each hospital adds its share of the noise before masking, so that any {least} make up the whole: the platform never holds a "
            "sum without noise. Hospitals that tell each other their shares can take those away."
        )
        zh = (
            f"各院在加掩码前加入各自份额的噪声，任意 {least} 家即构成全部噪声：平台从不持有无噪声之和。"
            "若有医院相互透露份额，则该部分噪声可被去除。"
        )
    else:
        en = (
            "The noise is added by the platform: it protects against everybody who gets the model, not against the platform, which sees "
            "single clipped updates."
        )
        zh = "噪声由平台加入：可防范获得模型的各方，但不防范平台本身，平台可见单家医院裁剪后的更新。"
    return [zh if language == "zh" else en]

"""The hospital's policy: a file it owns, read anew for every decision. What it does not allow does not happen.

`DEFAULT` is the file a node begins with, and says what each rule means. A list that is missing allows nothing; a floor or a limit that is
missing asks for nothing, but `small_cell`, `min_hospitals` and what keeps an update from being the gradient of a few samples (`min_batch`,
`min_steps`, `min_seen`): those are as in `DEFAULT` where nothing else is written.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from medmesh.contracts.data import sample_bytes
from medmesh.contracts.ingestion import SMALL_CELL
from medmesh.contracts.plan import LEAST_PARTICIPANTS, Plan
from medmesh.errors import Problem
from medmesh.federated.plan import least, steps_of, update_bytes
from medmesh.federated.privacy.accountant import Part
from medmesh.federated.privacy.budget import part, rounds_within, together
from medmesh.learning.isolation import Limits
from medmesh.quality.rules import BLOCKING, known

USUAL = "default"
"""Among the rules of quality of a data set: those that block by themselves."""

DEFAULT = """\
# 本院策略：本文件由医院所有，平台无权更改。 The hospital's policy: this file is the hospital's; the platform cannot change it.
[federation]
initiators = ["*"]        # 允许的发起人 who may invite, such as ["person:li@platform"]
packages = []             # 其方案免确认的训练包哈希 code whose plans, any that this policy allows, are accepted without asking
other_code = "ask"        # 其余：ask 逐个方案待本院批准，refuse 一律拒绝 other plans wait for `medmesh edge approve`, or are refused
environment = "ask"       # 解释器或软件包变化后：ask 须重新批准，any 不问 other interpreter or packages than approved: ask anew, or any
reviewers = 2             # 自有代码须经几人审查且不超出声明，0 不要求 people who read code that does only what it declares; 0: not asked
algorithms = ["*"]        # 允许的聚合算法 algorithms, such as ["fedavg", "fedprox"]
modalities = ["*"]        # 允许的数据类型；自由文本须写明 kinds of data; notes must be named, such as ["*", "text:note"]
tensors = ["*"]           # 允许出院的张量名 names of tensors that may leave, such as ["encoder.*"]
min_samples = 20          # 本院最少样本数 this hospital's matching samples, at least
min_patients = 0          # 本院最少患者数 and the patients they are of
min_hospitals = 3         # 每轮最少参与医院数 hospitals in every round, at least
min_batch = 8             # 每步训练的最少样本数 samples in a step of training, at least
min_steps = 2             # 每轮最少本地步数，一步即原始梯度 steps in a round, at least: one step alone is a raw gradient
min_seen = 1000           # 每轮须看过的样本数，不足此数则为全部 samples that a round sees, at least, or all there are where they are fewer
max_update_mib = 512
max_rounds = 1000
small_cell = 5            # 评估计数与样本数取整后外传，以若干患者为单位 evaluations and samples are told in multiples of so many patients
secure = false            # 必须使用安全聚合 only where the platform sees sums
privacy = "none"          # none、any、hospital、patient：必须的差分隐私 the differential privacy that a plan must have
max_epsilon = "1000"      # 差分隐私预算上限 where a plan has it, its budget at most
max_delta = "0.1"
total_epsilon = "1000"    # 同一患者（或本院）在全部联邦中合计的预算 all federations over the same patients together
total_delta = "0.00001"   # 合计预算所用的 δ at this delta
total_days = 0            # 合计的周期（天），0 为永久 within so many days; 0: ever
memorised = "off"         # off、note、refuse：更新出院前检查是否记住了患者 whether a model that memorised its patients is noted or refused
max_memorised = "0.2"     # 拒绝的界限，0 至 1 what is refused: told apart from others by so much more than chance
hours = "00:00-24:00"     # 允许训练的本地时间 local time at which training may run

[worker]
memory_mib = 0            # 训练进程内存上限，0 为节点设置 of each process of a worker; 0: as the node is set
cpu_seconds = 3600        # 每轮训练中每个进程的 CPU 秒数上限 of each process of a worker in one round
threads = 1
data_mib = 0              # 交给训练进程的样本上限，0 为不限 of the samples that a worker maps from the disk; 0: however many there are

[models]
install = true            # 自动安装已验证的模型 install releases that verify

[patients]
ethics = true                 # 须有有效的伦理批件方可导入和使用 nothing is taken in or used without an ethics committee's approval
forget_second_person = true   # 遗忘患者须本院第二人批准 forgetting a patient waits for a second person

[quality]                     # 各数据集的阻断规则 the rules of quality that keep an object out, by data set; "*": of every other one
"*" = ["default"]             # 规则名见 the rules' names: `medmesh edge quality --help`；default 为默认的一组 stands for the usual ones
"""


@dataclass(frozen=True, slots=True)
class Policy:
    """See `DEFAULT`."""

    initiators: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    other_code: str = "ask"
    environment: str = "ask"
    reviewers: int = 2
    algorithms: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ("*",)
    min_samples: int = 20
    min_patients: int = 0
    min_hospitals: int = LEAST_PARTICIPANTS
    min_batch: int = 8
    min_steps: int = 2
    min_seen: int = 1000
    max_update_mib: int = 0
    max_rounds: int = 0
    small_cell: int = SMALL_CELL
    secure: bool = False
    privacy: str = "none"
    max_epsilon: str = "1000"
    max_delta: str = "0.1"
    total_epsilon: str = "1000"
    total_delta: str = "0.00001"
    total_days: int = 0
    memorised: str = "off"
    max_memorised: str = "0.2"
    hours: tuple[int, int] = (0, 1440)
    memory_mib: int = 0
    cpu_seconds: int = 3600
    threads: int = 1
    data_mib: int = 0
    install: bool = False
    ethics: bool = False
    forget_second_person: bool = True
    quality: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def blocking(self, dataset: str) -> frozenset[str]:
        """The rules of quality (`medmesh.quality.rules`) that keep an object out of a data set."""
        words = self.quality.get(dataset, self.quality.get("*", (USUAL,)))
        return frozenset(words) - {USUAL} | (BLOCKING if USUAL in words else frozenset())


@dataclass(frozen=True, slots=True)
class Cohort:
    """What this hospital has under a plan's data schema, and what of its privacy is taken."""

    samples: int
    patients: int
    taken: tuple[Part, ...] = ()
    """What other federations put into the account that the plan would go on (`medmesh_edge.privacy.taken`)."""
    begun: int = 0
    """Attempts at the plan's own training rounds that are in it already."""


_TABLES = {"worker": ("memory_mib", "cpu_seconds", "threads", "data_mib"), "models": ("install",)}
_TABLES["patients"] = ("ethics", "forget_second_person")
_TABLES["quality"] = ("quality",)
_TABLES["federation"] = tuple(f.name for f in fields(Policy) if f.name not in {name for table in _TABLES.values() for name in table})
_CHOICES = {"other_code": ("ask", "refuse"), "privacy": ("none", "any", "hospital", "patient"), "memorised": ("off", "note", "refuse")}
_CHOICES["environment"] = ("ask", "any")


def read(path: Path) -> Policy:
    """Raises `Problem` (`policy.invalid`) with the place at fault; a policy that cannot be read allows nothing."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem("policy.invalid", reason=f"{path}: {error.strerror}") from None


def parse(text: str) -> Policy:
    """As `read`, of what the file says."""
    values: dict[str, Any] = {}
    try:
        for table, given in tomllib.loads(text).items():
            if table not in _TABLES or not isinstance(given, dict):
                raise ValueError(f"unknown table {table}")
            if table == "quality":
                values[table] = _quality(given)
                continue
            for name, value in given.items():
                if name not in _TABLES[table]:
                    raise ValueError(f"[{table}] {name} is unknown")
                values[name] = _value(table, name, value)
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise Problem("policy.invalid", reason=str(error)) from None
    return Policy(**values)


def _quality(given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The lists of rules by data set. Raises `ValueError`."""
    for dataset, words in given.items():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"[quality] {dataset} is a list of rules")
        try:
            known(set(words) - {USUAL})
        except Problem as problem:
            raise ValueError(f"[quality] {dataset}: {problem.detail()}") from None
    return {dataset: tuple(words) for dataset, words in given.items()}


def _value(table: str, name: str, value: Any) -> Any:
    """A value of the kind that the rule's default has. Raises `ValueError`."""
    kind = type(getattr(Policy(), name))
    if name == "hours" and isinstance(value, str) and (found := re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", value)):
        a, b, c, d = map(int, found.groups())
        return a * 60 + b, c * 60 + d
    if kind is tuple and name != "hours" and isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    if type(value) is kind and (kind is bool or (kind is int and value >= 0) or (kind is str and _said(name, value))):
        return value
    wanted = f"one of {', '.join(_CHOICES[name])}" if name in _CHOICES else "another kind of value"
    raise ValueError(f"[{table}] {name} is {wanted}")


def _said(name: str, value: str) -> bool:
    if name in _CHOICES:
        return value in _CHOICES[name]
    try:
        return Decimal(value) >= 0 and (name != "total_delta" or 0 < Decimal(value) < 1)
    except InvalidOperation:
        return False


Check = Callable[[Policy, Plan, Cohort], Problem | None]


def _initiators(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    allowed = {"*", plan.initiator} & set(policy.initiators)
    return None if allowed else Problem("policy.initiator", initiator=plan.initiator)


def _other_code(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    known = policy.other_code == "ask" or plan.package in policy.packages
    return None if known else Problem("policy.code", package=plan.package[:16])


def _algorithms(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    return None if {"*", plan.algorithm} & set(policy.algorithms) else Problem("policy.algorithm", algorithm=plan.algorithm)


def _modalities(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    # Words say more of people than pixels: a hospital that lets everything out has not thought of its notes.
    enough = {plan.data.modality} if plan.data.kind == "texts" else {"*", plan.data.modality}
    return None if enough & set(policy.modalities) else Problem("policy.modality", modality=plan.data.modality)


def _tensors(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    leaving = [tensor.name for tensor in plan.signature if tensor.name not in plan.local]
    other = [] if "*" in policy.tensors else [name for name in leaving if not any(fnmatchcase(name, pattern) for pattern in policy.tensors)]
    return Problem("policy.tensor", tensor=other[0]) if other else None


def _min_samples(policy: Policy, _: Plan, cohort: Cohort) -> Problem | None:
    return Problem("policy.samples", limit=policy.min_samples) if cohort.samples < max(1, policy.min_samples) else None


def _min_patients(policy: Policy, _: Plan, cohort: Cohort) -> Problem | None:
    return Problem("policy.patients", limit=policy.min_patients) if cohort.patients < policy.min_patients else None


def _data_mib(policy: Policy, plan: Plan, cohort: Cohort) -> Problem | None:
    size = cohort.samples * sample_bytes(plan.data)
    over = policy.data_mib and size > policy.data_mib * 2**20
    return Problem("policy.data", mib=-(-size // 2**20), limit=policy.data_mib) if over else None


def _min_hospitals(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    few = plan.min_participants < policy.min_hospitals
    return Problem("policy.hospitals", hospitals=plan.min_participants, limit=policy.min_hospitals) if few else None


def _in_bulk(plan: Plan) -> bool:
    """Whether rules on how much an update is made of apply: where each step is noised for the patient in it, fewer samples say no more."""
    return plan.privacy is None or plan.privacy.unit != "patient"


def _min_batch(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    batch = least(plan).batch_size
    few = batch < policy.min_batch and _in_bulk(plan)
    return Problem("policy.batch", batch=batch, limit=policy.min_batch) if few else None


def _min_steps(policy: Policy, plan: Plan, cohort: Cohort) -> Problem | None:
    steps = steps_of(least(plan), cohort.samples)
    return Problem("policy.steps", steps=steps, limit=policy.min_steps) if steps < policy.min_steps and _in_bulk(plan) else None


def _min_seen(policy: Policy, plan: Plan, cohort: Cohort) -> Problem | None:
    asked = least(plan)
    seen, wanted = steps_of(asked, cohort.samples) * asked.batch_size, min(policy.min_seen, cohort.samples)
    return Problem("policy.seen", seen=seen, limit=wanted) if seen < wanted and _in_bulk(plan) else None


def _max_update_mib(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    size = update_bytes(plan)
    return Problem("policy.bytes", mib=-(-size // 2**20), limit=policy.max_update_mib) if size > policy.max_update_mib * 2**20 else None


def _max_rounds(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    return Problem("policy.rounds", rounds=plan.rounds, limit=policy.max_rounds) if plan.rounds > policy.max_rounds else None


def _secure(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    return Problem("policy.secure") if policy.secure and plan.secure is None else None


def _privacy(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    unit = plan.privacy.unit if plan.privacy is not None else "none"
    enough = policy.privacy in ("none", unit) or (policy.privacy == "any" and unit != "none")
    return None if enough else Problem("policy.privacy", wanted=policy.privacy, found=unit)


def _max_epsilon(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    if plan.privacy is None or Decimal(plan.privacy.epsilon) <= Decimal(policy.max_epsilon):
        return None
    return Problem("policy.epsilon", what="epsilon", found=plan.privacy.epsilon, limit=policy.max_epsilon)


def _max_delta(policy: Policy, plan: Plan, _: Cohort) -> Problem | None:
    if plan.privacy is None or Decimal(plan.privacy.delta) <= Decimal(policy.max_delta):
        return None
    return Problem("policy.epsilon", what="delta", found=plan.privacy.delta, limit=policy.max_delta)


def _total_epsilon(policy: Policy, plan: Plan, cohort: Cohort) -> Problem | None:
    if plan.privacy is None:
        return None
    return over_total(policy, cohort.taken, part(plan, max(cohort.begun, rounds_within(plan))))


def over_total(policy: Policy, taken: tuple[Part, ...], more: Part) -> Problem | None:
    """Whether `more` does not fit into what all federations over the same patients may spend together."""
    delta = float(policy.total_delta)
    before, after = together(taken, delta), together((*taken, more), delta)
    if after <= float(policy.total_epsilon):
        return None
    return Problem("policy.total", before=f"{before:.3f}", after=f"{after:.3f}", limit=policy.total_epsilon, delta=policy.total_delta)


RULES: dict[str, Check] = {
    "initiators": _initiators,
    "other_code": _other_code,
    "algorithms": _algorithms,
    "modalities": _modalities,
    "tensors": _tensors,
    "max_rounds": _max_rounds,
    "max_update_mib": _max_update_mib,
    "min_hospitals": _min_hospitals,
    "min_batch": _min_batch,
    "min_steps": _min_steps,
    "min_seen": _min_seen,
    "secure": _secure,
    "privacy": _privacy,
    "max_epsilon": _max_epsilon,
    "max_delta": _max_delta,
    "total_epsilon": _total_epsilon,
    "min_samples": _min_samples,
    "min_patients": _min_patients,
    "data_mib": _data_mib,
}
"""By the name each has in the file."""


def refusals(policy: Policy, plan: Plan, cohort: Cohort) -> dict[str, Problem]:
    """Every rule by which the hospital does not take part in a plan, whatever of its ranges a round may ask for."""
    found = {name: check(policy, plan, cohort) for name, check in RULES.items()}
    return {name: problem for name, problem in found.items() if problem is not None}


def refusal(policy: Policy, plan: Plan, cohort: Cohort) -> Problem | None:
    """The first of them; None when there is none."""
    return next(iter(refusals(policy, plan, cohort).values()), None)


def in_hours(policy: Policy, now: datetime) -> bool:
    """Whether training may run at the local time `now`; hours may wrap around midnight."""
    minute, (begin, end) = now.hour * 60 + now.minute, policy.hours
    return begin <= minute < end if begin <= end else minute >= begin or minute < end


def hours_begin(policy: Policy, now: datetime) -> datetime:
    """When training may run next; `now` where it may. Where no minute is allowed, in a year."""
    if in_hours(policy, now):
        return now
    if policy.hours[0] == policy.hours[1]:
        return now + timedelta(days=365)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return next(at for days in (0, 1) if (at := day + timedelta(days=days, minutes=policy.hours[0])) > now)


ROUNDS_OF_TIME = 2
"""How many rounds' processor time a worker has that stays for the next: it is replaced when less than one round's is left, so that code
which evades the limit of a round has at most so many."""


def worker_limits(policy: Policy, memory_bytes: int, mapped_bytes: int = 0) -> Limits:
    """What each process of a worker may use: the node's own setting for memory, unless the policy allows less, and what it maps."""
    memory = min(memory_bytes, policy.memory_mib * 2**20) if policy.memory_mib else memory_bytes
    return Limits(
        memory_bytes=memory,
        cpu_seconds=policy.cpu_seconds,
        threads=policy.threads,
        mapped_bytes=mapped_bytes,
        operations=ROUNDS_OF_TIME,
    )

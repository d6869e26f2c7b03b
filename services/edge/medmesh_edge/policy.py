"""The hospital's policy: a file it owns, read anew for every decision. What it does not allow does not happen.

[federation]
initiators = ["person:li@platform"]   # "*" allows everybody
packages = []                         # hashes accepted without asking; others wait for `medmesh edge approve`
algorithms = ["*"]                    # or a list such as ["fedavg", "fedprox"]
modalities = ["*"]
min_samples = 20                      # refuse to take part with fewer
max_update_mib = 512
max_rounds = 1000
small_cell = 0                        # counts of evaluations leave as multiples of this at least, whatever a plan says
hours = "00:00-24:00"                 # training only between these local times

[models]
install = true

[patients]
forget_second_person = true           # forgetting a patient waits for a second person of this hospital
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.plan import update_bytes

DEFAULT = """\
# 本院策略：本文件由医院所有，平台无权更改。 The hospital's policy: this file is the hospital's; the platform cannot change it.
[federation]
initiators = ["*"]        # 允许的发起人 who may invite
packages = []             # 免确认的训练包哈希 code accepted without asking; everything else waits for `medmesh edge approve`
algorithms = ["*"]        # 允许的聚合算法 algorithms, such as ["fedavg", "fedprox"]
modalities = ["*"]
min_samples = 20
max_update_mib = 512
max_rounds = 1000
small_cell = 0            # 评估计数至少按此数的倍数外传 counts of evaluations leave as multiples of this at least, whatever a plan says
hours = "00:00-24:00"     # 允许训练的本地时间 local time at which training may run

[models]
install = true            # 自动安装已验证的模型 install releases that verify

[patients]
forget_second_person = true   # 遗忘患者须本院第二人批准 forgetting a patient waits for a second person
"""


@dataclass(frozen=True, slots=True)
class Policy:
    """See the module."""

    initiators: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    min_samples: int = 20
    max_update_mib: int = 0
    max_rounds: int = 0
    small_cell: int = 0
    hours: tuple[int, int] = (0, 1440)
    install: bool = False
    forget_second_person: bool = True


_LISTS = ("initiators", "packages", "algorithms", "modalities")
_NUMBERS = ("min_samples", "max_update_mib", "max_rounds", "small_cell")


def read(path: Path) -> Policy:
    """Raises `Problem` (`policy.invalid`) with the place at fault; a policy that cannot be read allows nothing."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        federation, models = dict(document.pop("federation", {})), dict(document.pop("models", {}))
        patients = dict(document.pop("patients", {}))
        second = patients.pop("forget_second_person", True)
        if patients or not isinstance(second, bool):
            raise ValueError("[patients] has forget_second_person = true or false and nothing else")
        if document:
            raise ValueError(f"unknown table {sorted(document)[0]}")
        values = _federation(federation)
        install = models.pop("install", False)
        if models or not isinstance(install, bool):
            raise ValueError("[models] has install = true or false and nothing else")
    except OSError as error:
        raise Problem("policy.invalid", reason=error.strerror or "unreadable") from None
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise Problem("policy.invalid", reason=str(error)) from None
    return Policy(**values, install=install, forget_second_person=second)


def _federation(given: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name in _LISTS and isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            values[name] = tuple(value)
        elif name in _NUMBERS and type(value) is int and value >= 0:
            values[name] = value
        elif name == "hours" and isinstance(value, str) and (found := re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", value)):
            a, b, c, d = map(int, found.groups())
            values[name] = (a * 60 + b, c * 60 + d)
        else:
            raise ValueError(f"[federation] {name} is unknown or has the wrong kind of value")
    return values


def refusal(policy: Policy, plan: Plan, samples: int) -> Problem | None:
    """The rule by which the hospital does not take part in a plan; None when there is none."""
    if "*" not in policy.initiators and plan.initiator not in policy.initiators:
        return Problem("policy.initiator", initiator=plan.initiator)
    if "*" not in policy.algorithms and plan.algorithm not in policy.algorithms:
        return Problem("policy.algorithm", algorithm=plan.algorithm)
    if "*" not in policy.modalities and plan.data.modality not in policy.modalities:
        return Problem("policy.modality", modality=plan.data.modality)
    if plan.rounds > policy.max_rounds:
        return Problem("policy.rounds", rounds=plan.rounds, limit=policy.max_rounds)
    if update_bytes(plan) > policy.max_update_mib * 2**20:
        return Problem("policy.bytes", mib=update_bytes(plan) // 2**20 + 1, limit=policy.max_update_mib)
    if samples < policy.min_samples:
        return Problem("policy.samples", limit=policy.min_samples)
    return None


def in_hours(policy: Policy, now: datetime) -> bool:
    """Whether training may run at the local time `now`; hours may wrap around midnight."""
    minute, (begin, end) = now.hour * 60 + now.minute, policy.hours
    return begin <= minute < end if begin <= end else minute >= begin or minute < end

"""Differential privacy of a plan: whose contribution is hidden, how, and how much may be spent."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import ValidationInfo, field_validator, model_validator

from medmesh.contracts.message import Record
from medmesh.contracts.refusals import decimal, refusal

_BOUNDS = {
    "epsilon": "0 < x <= 1000",
    "delta": "0 < x <= 0.1",
    "clip": "0 < x <= 1000000",
    "noise": "0 < x <= 1000",
    "rate": "0 < x <= 1",
    "quantile": "0 <= x < 1",
}


class Privacy(Record):
    """(epsilon, delta) differential privacy of what leaves a hospital. Numbers are decimal strings, as everywhere in a plan.

    `unit` says whose contribution is hidden, against none at all in its place. Of a `hospital`: each update's difference from the round's
    model is clipped to the L2 norm `clip`, and the sum over hospitals gets Gaussian noise of standard deviation `noise` x `clip`
    (DP-FedAvg, McMahan et al., ICLR 2018). Of a `patient`: each step takes every patient with probability `rate`, clips the gradient of
    each patient's samples to `clip`, adds noise of `noise` x `clip` to their sum and divides by the plan's batch size (DP-SGD, Abadi et
    al., CCS 2016). A run ends before it spends more than `epsilon` at `delta`.
    """

    unit: Literal["hospital", "patient"]
    epsilon: str
    delta: str
    clip: str
    noise: str
    rate: str = "1"
    """Of a patient: the probability to be in a step."""
    quantile: str = "0"
    """Of a hospital: the share of updates that the clipping norm shall leave whole; it then follows that quantile of their norms (Andrew
    et al., NeurIPS 2021). 0: the norm stays as it is."""

    @field_validator(*_BOUNDS)
    @classmethod
    def _decimal(cls, value: str, info: ValidationInfo) -> str:
        name = str(info.field_name)
        return decimal(f"privacy.{name}", value, _BOUNDS[name])

    @model_validator(mode="after")
    def _consistent(self) -> Privacy:
        if self.unit == "hospital" and Decimal(self.rate) != 1:
            raise refusal("plan.privacy_rate", rate=self.rate)
        if self.unit == "patient" and self.adaptive:
            raise refusal("plan.privacy_quantile", quantile=self.quantile)
        return self

    @property
    def adaptive(self) -> bool:
        """Whether the clipping norm changes from round to round."""
        return Decimal(self.quantile) > 0

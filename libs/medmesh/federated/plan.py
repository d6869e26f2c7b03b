"""A plan in plain words. The plan itself and its hash are contracts: `medmesh.contracts.plan`."""

from __future__ import annotations

from medmesh.contracts.plan import Plan, plan_hash

__all__ = ["Plan", "plan_hash"]

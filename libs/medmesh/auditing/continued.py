"""Whether hospitals trained on what was committed: the coordinator's records of rounds held against the hospitals' records of training.

A node refuses a round that does not begin with the model that the round before it left, by the chain that it is told
(`medmesh.federated.chain`). What it was told stands in its record; what the coordinator committed stands in the coordinator's, before
witnesses. A coordinator that tells hospitals another chain than it writes down is found here, where the two lie beside each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
VERBS = ("federation.round", "federation.rollback", "federation.move", "federation.train")
_LAST = 1 << 31


@dataclass(frozen=True, slots=True)
class _Trained:
    seq: int
    round: int
    base: str
    committed: str
    plan: str


@dataclass(frozen=True, slots=True)
class _Link:
    round: int | None
    """None where the federation went back."""
    value: str
    model: str


@dataclass
class _Federation:
    links: list[_Link] = field(default_factory=list)
    waiting: list[_Trained] = field(default_factory=list)

    def right(self, one: _Trained) -> bool:
        """Whether the training began with what stood when its round was opened: the newest link before, or one that went back since."""
        before = [n for n, link in enumerate(self.links) if link.round is not None and link.round < one.round]
        since = [n for n, link in enumerate(self.links) if link.round is not None and link.round >= one.round]
        if not before:
            return one.committed == one.plan  # its first weights are looked at by the node, which has the plan
        return (one.committed, one.base) in {(link.value, link.model) for link in self.links[before[-1] : since[0] if since else None]}

    def contradicted(self, one: _Trained) -> bool:
        """Whether one of the records that are here says otherwise, whichever are not."""
        return any(link.value == one.committed and link.model != one.base for link in self.links)


class Continued:
    """Looks at records in the log's order, of which the coordinator's are in the order in which it acted."""

    def __init__(self) -> None:
        self._federations: defaultdict[str, _Federation] = defaultdict(_Federation)

    def look(self, seq: int, record: Record, *, whole: bool) -> Iterator[tuple[int, str, int]]:
        """(record, federation, round) of each training that is found to have begun with something else, once a later round is committed.
        Without `whole` nothing is concluded from what is absent. Raises `StopIteration`, `KeyError`, `TypeError` or `ValueError` for a
        record whose fields do not fit."""
        about = next(entity for entity in record["entities"] if entity["type"] == "federation")
        known, detail, over = self._federations[about["id"]], record["detail"], 0
        match record["sub"]:
            case "federation.train":
                if detail.get("kind") == "train" and detail.get("committed"):
                    one = _Trained(seq, int(detail["round"]), detail["base"], detail["committed"], about["digest"])
                    known.waiting.append(one)
                    over = max((link.round or 0 for link in known.links), default=0)
            case "federation.move":
                over = _LAST if detail.get("to") in ("completed", "failed") else 0
            case "federation.round":
                over = int(detail["round"])
                known.links.append(_Link(over, detail["chain"], detail["model"]))
            case "federation.rollback" if "chain" in detail:  # the coordinator's: hospitals write down that they saw it
                known.links.append(_Link(None, detail["chain"], detail["model"]))
        due = [one for one in known.waiting if one.round < over]
        known.waiting = [one for one in known.waiting if one.round >= over]
        return iter([(one.seq, about["id"], one.round) for one in due if (not known.right(one) if whole else known.contradicted(one))])

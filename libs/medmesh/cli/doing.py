"""What hospitals are doing in a round, and how fast, as people read it.  各院在本轮中的进度。"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medmesh.cli import say
from medmesh.figures import size

if TYPE_CHECKING:
    from medmesh.contracts.federation import AnswerView, FederationView, ParticipantView, ProgressView

WORK = {
    "prepare": ("prepare", "预处理"),
    "fetch": ("fetch", "下载"),
    "evaluate": ("evaluate", "评估"),
    "train": ("train", "训练"),
    "store": ("store", "存盘"),
    "send": ("send", "上传"),
}
MOVING = ("fetch", "send")
"""Work of which the progress is in bytes."""
NOTHING_SEEN: Mapping[str, float] = {}


def seconds(value: float) -> str:
    """A duration as people say it."""
    whole = round(value)
    if whole < 120:
        return say(f"{whole} s", f"{whole} 秒")
    if whole < 7200:
        return say(f"{whole // 60} min", f"{whole // 60} 分钟")
    return say(f"{value / 3600:.1f} h", f"{value / 3600:.1f} 小时")


def spent(answer: AnswerView) -> str:
    """Where a hospital's time went in a round."""
    told = {str(work): value / 1000 for work, value in answer.milliseconds.items()}
    return ", ".join(f"{say(*words)} {told[work]:.1f}" for work, words in WORK.items() if work in told)


class Speeds:
    """How fast hospitals move bytes, from views of one federation that are seen one after another: a view itself says only how far they
    are."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, ProgressView, ProgressView]] = {}  # when it was first seen, and then, and last

    def seen(self, view: FederationView, at: float) -> dict[str, float]:
        """Bytes a second by hospital, of those seen moving since they began; `at` is the clock's seconds."""
        found = {}
        for hospital, told in ((one.hospital, one.progress) for one in view.participants):
            if told is None or told.phase not in MOVING:
                continue
            when, begun, last = self._known.get(hospital, (at, told, told))
            # Another transfer, or the same once more from its beginning.
            if (told.round, told.phase, told.total) != (begun.round, begun.phase, begun.total) or told.done < last.done:
                when, begun = at, told
            self._known[hospital] = when, begun, told
            if at > when and told.done > begun.done:
                found[hospital] = (told.done - begun.done) / (at - when)
        return found


def doing(view: FederationView, one: ParticipantView, speeds: Mapping[str, float] = NOTHING_SEEN) -> str:
    """The round a hospital works on, with what, and how far it is; nothing where it told nothing."""
    told = one.progress
    if told is None or view.state != "running" or _answered(view, one.hospital, told.round):
        return ""
    return f"{told.round} {say(*WORK.get(told.phase, (told.phase, told.phase)))} {_far(told, speeds.get(one.hospital))}"


def _answered(view: FederationView, hospital: str, number: int) -> bool:
    """Whether a hospital is done with this round, whatever it said last of it: by the round's newest attempt."""
    newest = next((one for one in reversed(view.rounds) if one.round == number), None)
    return newest is not None and any(answer.hospital == hospital for answer in newest.answers)


def _far(told: ProgressView, speed: float | None) -> str:
    """Steps are counted; of bytes, and of a pipeline's tenths, a share says more."""
    if told.phase not in (*MOVING, "prepare") or told.total <= 0:
        return f"{told.done}/{told.total}"
    share = f"{100 * told.done // told.total} %"
    if told.phase not in MOVING:
        return share
    share += say(f" of {size(told.total)}", f"（共 {size(told.total)}）")
    if speed is None or told.done >= told.total:
        return share
    left = seconds((told.total - told.done) / speed)
    return share + say(f", {size(speed)}/s, about {left} left", f"，{size(speed)}/s，约剩 {left}")

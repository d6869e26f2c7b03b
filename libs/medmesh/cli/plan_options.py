"""Options of a plan that creating a federation and simulating one share: what is tried is what can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from medmesh.cli import say
from medmesh.cli.switches import under
from medmesh.contracts.ingestion import SMALL_CELL
from medmesh.contracts.plan import LEAST_PARTICIPANTS

F = TypeVar("F", bound=Callable[..., Any])


def _parameters(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = [part.partition("=") for part in given]
    if wrong := next((name for name, sign, value in pairs if not (name and sign and value)), None):
        raise click.BadParameter(say(f"{wrong!r}: NAME=VALUE, for example mu=0.01", f"{wrong!r}：应为 NAME=VALUE，例如 mu=0.01"))
    return {name: value for name, _, value in pairs}


def _ranges(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, dict[str, str]]:
    found = {}
    for part in given:
        name, _, bounds = part.partition("=")
        low, colon, high = bounds.partition(":")
        if not (name and low and colon and high):
            form = "NAME=LOW:HIGH"
            raise click.BadParameter(
                say(f"{part!r}: {form}, for example learning_rate=0.01:0.1", f"{part!r}：应为 {form}，例如 learning_rate=0.01:0.1")
            )
        found[{"steps": "local_steps"}.get(name, name)] = {"low": low, "high": high}
    return found


_TRAINING = (
    click.option("--rounds", default=10, show_default=True, help="How often models are averaged.  共几轮，每轮平均一次模型。"),
    click.option("--steps", default=50, show_default=True, help="Local steps a round.  每轮本地训练步数。"),
    click.option("--batch-size", default=32, show_default=True, help="Samples in a step.  每步样本数。"),
    click.option("--learning-rate", default="0.05", show_default=True, help="Of each step.  每步的学习率。"),
    click.option(
        "--seed", default=1, show_default=True, help="The same one ends in the same model, bit for bit.  种子相同，所得模型逐位相同。"
    ),
    click.option(
        "--baseline", is_flag=True, help="Also train alone and evaluate every model everywhere.  另在各院单独训练，并在各院评估每个模型。"
    ),
    click.option(
        "--evaluate-every",
        default=0,
        show_default=True,
        metavar="ROUNDS",
        help="Evaluate the model so often; 0: never.  每隔多少轮评估一次；0 为不评估。",
    ),
    click.option(
        "--stop-after",
        type=int,
        metavar="EVALUATIONS",
        help="End early when so many in a row were no better; keep the best.  连续若干次评估无改进即提前结束，保留最佳模型。",
    ),
    under(
        "stop_after", "--stop-metric", type=click.Choice(["balanced_accuracy", "accuracy"]), default="balanced_accuracy", show_default=True
    ),
    under("stop_after", "--stop-delta", default="0", show_default=True, help="Better means by more than this.  改进须超过此值。"),
    click.option(
        "--algorithm",
        default="fedavg",
        show_default=True,
        help="How updates become a model: docs/federation/algorithms.md.  聚合算法，见 docs/federation/algorithms.md。",
    ),
    click.option(
        "--parameter",
        "parameters",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_parameters,
        help="Of the algorithm, as mu=0.01; may be repeated.  算法参数，如 mu=0.01；可重复。",
    ),
    click.option(
        "--range",
        "ranges",
        multiple=True,
        metavar="NAME=LOW:HIGH",
        callback=_ranges,
        help="learning_rate, steps or batch_size may change so far between rounds; may be repeated."
        "  轮间可调整的范围：learning_rate、steps 或 batch_size；可重复。",
    ),
    click.option("--local", multiple=True, metavar="TENSOR", help="Never leaves a hospital; may be repeated.  不出院的张量；可重复。"),
    click.option(
        "--codec",
        type=click.Choice(["none", "fp16", "bf16", "int8", "topk"]),
        default="none",
        show_default=True,
        help="How an update is made smaller before it is sent.  更新在传输前如何压缩。",
    ),
    under(
        "codec",
        "--codec-share",
        of=("topk",),
        default="0.01",
        show_default=True,
        help="The share of an update's numbers that is sent, the largest.  每次更新只传输其中最大的这一比例的数值。",
    ),
    click.option(
        "--secure",
        type=int,
        metavar="THRESHOLD",
        help="Open sums over at least so many hospitals, and no single update.  安全聚合：只公开至少这么多家医院之和，不公开单院更新。",
    ),
    under(
        "secure",
        "--secure-ring",
        type=click.Choice(["64", "32"]),
        default="64",
        show_default=True,
        help="Bits of a masked number. 32 takes half the bytes; samples x value x 2^bits x hospitals stays below 2^31, or"
        " a node declines its round.  掩码数的位数；32 位字节减半，但样本数×数值×2^位数×医院数须小于 2^31，否则该节点拒绝本轮。",
    ),
    under(
        "secure",
        "--secure-bits",
        type=click.IntRange(8, 40),
        help="Bits after the point: 24, or 12 with 32-bit numbers.  安全聚合的小数位数；默认 24，32 位时为 12。",
    ),
    click.option(
        "--pace",
        type=int,
        metavar="QUORUM",
        help="A round closes with so many updates; later ones count later, with less weight."
        "  收到这么多更新即结束本轮；迟到者计入后续轮次，权重降低。",
    ),
    under(
        "pace",
        "--pace-staleness",
        type=click.IntRange(1, 100),
        metavar="ROUNDS",
        default=3,
        show_default=True,
        help="A late update counts for at most so many rounds after its own; then it is dropped."
        "  迟到的更新在其后至多这么多轮内计入，再晚即作废。",
    ),
    under(
        "pace",
        "--pace-decay",
        metavar="DECAY",
        default="0.5",
        show_default=True,
        help="A late update weighs (1 + rounds late)^-DECAY, from 0 (as much as others) to 10."
        "  迟到更新的权重为（1 + 迟到轮数）的 -DECAY 次方；0（不降权）至 10。",
    ),
    click.option(
        "--screening",
        type=click.Choice(["off", "note", "exclude", "quarantine"]),
        help="What becomes of updates that look wrong. By default they are noted wherever single updates may be seen."
        "  异常更新的处理方式；能看到单院更新时默认仅标注。",
    ),
    click.option(
        "--privacy",
        type=click.Choice(["hospital", "patient"]),
        help="Differential privacy: whose contribution is hidden.  差分隐私：保护单位（医院或患者）。",
    ),
    under(
        "privacy",
        "--epsilon",
        default="8",
        show_default=True,
        help="Its budget: the federation ends before it spends more.  隐私预算：用尽前联邦即结束。",
    ),
    under(
        "privacy",
        "--delta",
        default="0.00001",
        show_default=True,
        help="Of its budget: the probability that more is told than epsilon says.  隐私预算：泄露超出 ε 的概率。",
    ),
    under(
        "privacy",
        "--clip",
        default="1",
        show_default=True,
        help="L2 norm to which an update, or a patient's gradient, is clipped.  裁剪范数（L2），对更新或单个患者的梯度。",
    ),
    under(
        "privacy",
        "--noise",
        default="1",
        show_default=True,
        help="Standard deviation of the noise over the clipping norm.  噪声标准差与裁剪范数之比。",
    ),
    under(
        "privacy",
        "--rate",
        of=("patient",),
        default="1",
        show_default=True,
        help="Of patients: the probability to be in a step.  患者级：每步被抽中的概率。",
    ),
    under(
        "privacy",
        "--quantile",
        of=("hospital",),
        default="0",
        show_default=True,
        help="Of hospitals: the clipping norm follows this quantile of updates; 0 not.  医院级：裁剪范数跟随更新的该分位数；0 为固定。",
    ),
    click.option(
        "--min-participants",
        type=int,
        help="How many must answer a round; by default 3, or the threshold of --secure.  每轮至少多少家答复；默认 3，或 --secure 的阈值。",
    ),
    click.option(
        "--max-drops",
        default=0,
        show_default=True,
        help="A hospital that drops out so often is not asked again; 0: always.  掉线达此次数的医院不再参加；0 为不限。",
    ),
    click.option(
        "--small-cell",
        default=SMALL_CELL,
        show_default=True,
        help="Evaluations count patients in multiples of this; 0: samples, exactly.  评估按患者计数并以此数取整后出院；0 为样本的精确数。",
    ),
)
_PRIVACY = ("epsilon", "delta", "clip", "noise", "rate", "quantile")


def training(command: F) -> F:
    """How is trained, evaluated, protected and sent, and who must answer."""
    for option in reversed(_TRAINING):
        command = option(command)
    return command


def _secure(options: dict[str, Any]) -> dict[str, Any]:
    short = options["secure_ring"] == "32"
    return {"threshold": options["secure"], "bits": options["secure_bits"] or (12 if short else 24)} | ({"ring": 32} if short else {})


def training_of(options: dict[str, Any]) -> dict[str, Any]:
    """Their part of a plan."""
    stop = {"metric": options["stop_metric"], "patience": options["stop_after"], "min_delta": options["stop_delta"]}
    pace = {"quorum": options["pace"], "staleness": options["pace_staleness"], "decay": options["pace_decay"]}
    hidden = options["secure"] is not None or options["privacy"] == "hospital"
    screening = options["screening"] or ("off" if hidden else "note")
    same = (
        "rounds",
        "batch_size",
        "learning_rate",
        "seed",
        "baseline",
        "evaluate_every",
        "algorithm",
        "parameters",
        "local",
        "codec",
        "codec_share",
        "ranges",
        "max_drops",
        "small_cell",
    )
    return {
        **{name: options[name] for name in same},
        "local_steps": options["steps"],
        "min_participants": options["min_participants"]
        if options["min_participants"] is not None
        else options["secure"] or LEAST_PARTICIPANTS,
        "stop": None if options["stop_after"] is None else stop,
        "secure": None if options["secure"] is None else _secure(options),
        "pace": None if options["pace"] is None else pace,
        "screening": None if screening == "off" else {"action": screening},
        "privacy": {"unit": options["privacy"], **{name: options[name] for name in _PRIVACY}} if options["privacy"] else None,
    }

"""Options of a plan that creating a federation and simulating one share: what is tried is what can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _parameters(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = [part.partition("=") for part in given]
    if wrong := next((name for name, sign, value in pairs if not (name and sign and value)), None):
        raise click.BadParameter(f"{wrong!r}: NAME=VALUE, for example mu=0.01")
    return {name: value for name, _, value in pairs}


_TRAINING = (
    click.option("--rounds", default=10, show_default=True),
    click.option("--steps", default=50, show_default=True, help="Local steps a round."),
    click.option("--batch-size", default=32, show_default=True),
    click.option("--learning-rate", default="0.05", show_default=True),
    click.option("--seed", default=1, show_default=True),
    click.option("--baseline", is_flag=True, help="Also train alone and evaluate every model everywhere."),
    click.option("--evaluate-every", default=0, show_default=True, metavar="ROUNDS", help="Evaluate the model so often; 0: never."),
    click.option("--stop-after", type=int, metavar="EVALUATIONS", help="End early when so many in a row were no better; keep the best."),
    click.option("--stop-metric", type=click.Choice(["balanced_accuracy", "accuracy"]), default="balanced_accuracy", show_default=True),
    click.option("--stop-delta", default="0", show_default=True, help="Better means by more than this."),
    click.option("--algorithm", default="fedavg", show_default=True, help="How updates become a model: docs/federation/algorithms.md."),
    click.option(
        "--parameter",
        "parameters",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_parameters,
        help="Of the algorithm, as mu=0.01; may be repeated.",
    ),
    click.option("--local", multiple=True, metavar="TENSOR", help="Never leaves a hospital; may be repeated."),
    click.option("--codec", type=click.Choice(["none", "fp16", "bf16", "int8", "topk"]), default="none", show_default=True),
    click.option("--secure", type=int, metavar="THRESHOLD", help="Open sums over at least so many hospitals, and no single update."),
    click.option(
        "--pace", type=int, metavar="QUORUM", help="A round closes with so many updates; later ones count later, with less weight."
    ),
    click.option(
        "--screening",
        type=click.Choice(["off", "note", "exclude", "quarantine"]),
        help="What becomes of updates that look wrong. By default they are noted wherever single updates may be seen.",
    ),
    click.option("--privacy", type=click.Choice(["hospital", "patient"]), help="Differential privacy: whose contribution is hidden."),
    click.option("--epsilon", default="8", show_default=True, help="Its budget: the federation ends before it spends more."),
    click.option("--delta", default="0.00001", show_default=True),
    click.option("--clip", default="1", show_default=True, help="L2 norm to which an update, or a patient's gradient, is clipped."),
    click.option("--noise", default="1", show_default=True, help="Standard deviation of the noise over the clipping norm."),
    click.option("--rate", default="1", show_default=True, help="Of patients: the probability to be in a step."),
    click.option(
        "--quantile", default="0", show_default=True, help="Of hospitals: the clipping norm follows this quantile of updates; 0 not."
    ),
)
_PRIVACY = ("epsilon", "delta", "clip", "noise", "rate", "quantile")


def training(command: F) -> F:
    """How is trained, evaluated, protected and sent."""
    for option in reversed(_TRAINING):
        command = option(command)
    return command


def training_of(options: dict[str, Any]) -> dict[str, Any]:
    """Their part of a plan."""
    stop = {"metric": options["stop_metric"], "patience": options["stop_after"], "min_delta": options["stop_delta"]}
    hidden = options["secure"] is not None or options["privacy"] == "hospital"
    screening = options["screening"] or ("off" if hidden else "note")
    same = ("rounds", "batch_size", "learning_rate", "seed", "baseline", "evaluate_every", "algorithm", "parameters", "local", "codec")
    return {
        **{name: options[name] for name in same},
        "local_steps": options["steps"],
        "stop": None if options["stop_after"] is None else stop,
        "secure": None if options["secure"] is None else {"threshold": options["secure"]},
        "pace": None if options["pace"] is None else {"quorum": options["pace"]},
        "screening": None if screening == "off" else {"action": screening},
        "privacy": {"unit": options["privacy"], **{name: options[name] for name in _PRIVACY}} if options["privacy"] else None,
    }

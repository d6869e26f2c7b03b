"""Options of a plan that creating a federation and simulating one share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_EVALUATION = (
    click.option("--evaluate-every", default=0, show_default=True, metavar="ROUNDS", help="Evaluate the model so often; 0: never."),
    click.option("--stop-after", type=int, metavar="EVALUATIONS", help="End early when so many in a row were no better; keep the best."),
    click.option("--stop-metric", type=click.Choice(["balanced_accuracy", "accuracy"]), default="balanced_accuracy", show_default=True),
    click.option("--stop-delta", default="0", show_default=True, help="Better means by more than this."),
)


def evaluation(command: F) -> F:
    """Evaluation while training, and early stopping."""
    for option in reversed(_EVALUATION):
        command = option(command)
    return command


def evaluation_of(options: dict[str, Any]) -> dict[str, Any]:
    """Their part of a plan."""
    stop = {"metric": options["stop_metric"], "patience": options["stop_after"], "min_delta": options["stop_delta"]}
    return {"evaluate_every": options["evaluate_every"], "stop": None if options["stop_after"] is None else stop}

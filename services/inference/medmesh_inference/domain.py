"""Rules of inference, as functions of values."""

from __future__ import annotations

from enum import StrEnum

from medmesh.errors import Problem


class ReleaseState(StrEnum):
    """Where a release stands here."""

    SERVING = "serving"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"


def admit(model: str, version: int, *, withdrawn: bool, serving: int | None) -> None:
    """Raise `Problem` unless a verified release may be served: facts can arrive late, but a version never comes back by that.

    `serving` is the version that is served now. The same version under another release takes its place.
    """
    if withdrawn:
        raise Problem("serving.withdrawn", model=model, version=version)
    if serving is not None and serving > version:
        raise Problem("serving.older", model=model, version=version, serving=serving)

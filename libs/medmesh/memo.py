"""What was made of something that never changes, remembered with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def by_identity(most: int = 16) -> Callable[[Callable[[T], R]], Callable[[T], R]]:
    """`@by_identity()`: of the last `most` things, the function is asked once each. For pure functions of things that nobody alters, and of
    which it would cost as much to compare them as to ask again: two that are equal are two. What it raises is not remembered."""

    def of(make: Callable[[T], R]) -> Callable[[T], R]:
        known: OrderedDict[int, tuple[T, R]] = OrderedDict()  # with the thing itself: while it is here no other has its number

        @wraps(make)
        def remembered(thing: T) -> R:
            if (found := known.get(id(thing))) is not None:
                return found[1]
            made = make(thing)
            known[id(thing)] = thing, made
            while len(known) > most:
                known.popitem(last=False)
            return made

        return remembered

    return of

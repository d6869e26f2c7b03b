"""What a message's own rules refuse, in words of the catalogue.

A validator raises `refusal(code, ...)`. pydantic gathers it like every other fault, and whoever validates says it as a `Problem`, in the
language of who reads it: `stated`, or for a plan `contradiction`, which has words for what pydantic itself finds, too.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from medmesh.errors import Problem, catalogue

_LONGEST = 60
"""Characters of a wrong value that are shown."""


def refusal(code: str, **params: Any) -> PydanticCustomError:
    """What a validator raises for a fault that has its text in the catalogue."""
    return PydanticCustomError(code, catalogue()[code].en, params)


def decimal(field: str, value: str, bounds: str) -> str:
    """`value`, when it is a decimal number as `bounds` say, such as "0 < x <= 1". Raises `refusal`."""
    low, below, _, above, high = bounds.split()
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal("NaN")
    if not (number.is_finite() and _in_order(Decimal(low), below, number) and _in_order(number, above, Decimal(high))):
        raise refusal("plan.number", field=field, given=value[:_LONGEST], bounds=bounds.replace("x", field))
    return value


def _in_order(one: Decimal, sign: str, other: Decimal) -> bool:
    return one < other or (sign == "<=" and one == other)


def stated(error: ValidationError) -> Problem | None:
    """The first fault for which the catalogue has a text."""
    for found in error.errors(include_url=False, include_input=False):
        if found["type"] in catalogue():
            return Problem.from_document({"code": found["type"], "params": found.get("ctx", {})})
    return None


def contradiction(error: ValidationError) -> Problem:
    """The first fault of a plan, whoever found it."""
    if (problem := stated(error)) is not None:
        return problem
    found = error.errors(include_url=False)[0]
    field, given, ctx = ".".join(map(str, found["loc"])), str(found["input"])[:_LONGEST], found.get("ctx", {})
    match found["type"]:
        case "missing":
            return Problem("plan.missing", field=field)
        case "extra_forbidden":
            return Problem("plan.unknown", field=field)
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            sign, bound = next((sign, ctx[key]) for key, sign in {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}.items() if key in ctx)
            return Problem("plan.bound", field=field, given=given, bound=f"{sign} {bound}")
        case "string_too_short" | "too_short":
            return Problem("plan.length", field=field, bound=f">= {ctx['min_length']}")
        case "string_too_long" | "too_long":
            return Problem("plan.length", field=field, bound=f"<= {ctx['max_length']}")
        case "literal_error":
            return Problem("plan.choice", field=field, given=given, known=ctx["expected"].replace(" or ", ", ").replace("'", ""))
        case _:
            return Problem("plan.form", field=field, given=given)

"""Which entries a rule might have something to say about, asked of the database: nearly all say that something usual went well.

It may choose too much and never too little: what `medmesh_audit.rules` looks at has its counterpart here. Bodies are canonical JSON, so a
part of one is found by its spelling; texts cannot imitate it, because their quotation marks are escaped.
"""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import ColumnElement, Interval, LargeBinary, and_, exists, func, literal, not_, or_, select

from medmesh_audit.rules import SKEW, VERBS
from medmesh_audit.tables import entries, facts


@lru_cache(maxsize=4)  # a busy log asks the same some times a second, and building it takes longer than a record
def remarkable(policies: frozenset[tuple[str, str]], roles: frozenset[str]) -> ColumnElement[bool]:
    """Of a row of `entries`. `policies`: (emitter, digest of the role table it is known to use); `roles`: those whose work is watched."""
    usual = [and_(entries.c.emitter == emitter, _says(f'"out":0,"policy":{{"bundle":"{bundle}",')) for emitter, bundle in sorted(policies)]
    future = exists(select(facts.c.seq).where(facts.c.seq == entries.c.seq, facts.c.recorded > entries.c.at + literal(SKEW, Interval)))
    parts = ['"decision":"deny"', *(f'"sub":"{verb}' for verb in VERBS), *sorted(roles)]
    return or_(not_(or_(*usual)) if usual else literal(True), future, *map(_says, parts))


def _says(part: str) -> ColumnElement[bool]:
    return func.position(literal(part.encode(), LargeBinary).op("IN")(entries.c.body)) > 0

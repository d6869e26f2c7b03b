"""智能编码, coding with help: suggestions of standard codes for what a hospital calls things, confirmed by a person and by nobody else.

The list of codes is the hospital's own (ICD-10-CN, a SNOMED-like list): none is shipped. Terms are compared by the n-grams of their
characters, weighted by how rare they are (TF-IDF), by the cosine between them: Chinese has no blanks between words, and a misspelt word
still shares most of its characters. A suggestion changes nothing. A confirmation is a row that is never altered; from
then on the events under the local code are read under the standard one, those that come later too, until it is taken back.
"""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import func, insert, select

from medmesh.errors import Problem
from medmesh.store.unit import UnitOfWork
from medmesh.timeline.codes import coded, spell, system
from medmesh.timeline.tables import codings, events

LOCAL = ("LOCAL", "TEXT")
_HAN = re.compile(r"[\u3400-\u9fff]+")
_LATIN = re.compile(r"[a-z0-9]+")
_LARGEST = 1_000_000


class Term(NamedTuple):
    """An entry of a list: code, code system (our name of it), and what it is called."""

    code: str
    system: str
    term: str


class Suggestion(NamedTuple):
    """`score` is the cosine, 0 to 1: 1 is the same characters, not a probability."""

    term: Term
    score: float


def grams(text: str) -> Counter[str]:
    """How often each n-gram of a term stands in it: one and two characters of Chinese, three of Latin words with their ends."""
    text = unicodedata.normalize("NFKC", text).lower()
    found: Counter[str] = Counter()
    for run in _HAN.findall(text):
        found.update(run)
        found.update(run[at : at + 2] for at in range(len(run) - 1))
    for word in _LATIN.findall(text):
        padded = f"<{word}>"
        found.update(padded[at : at + 3] for at in range(max(1, len(padded) - 2)))
    return found


class Vocabulary:
    """A list of terms, ready to be asked. An entry may have several terms (synonyms): give each a line."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        counted = [grams(one.term) for one in self.terms]
        seen = Counter(gram for one in counted for gram in one)
        self._rare = {gram: math.log(1 + len(self.terms) / number) for gram, number in seen.items()}
        self._by: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, one in enumerate(counted):
            for gram, weight in self._weighed(one).items():
                self._by[gram].append((place, weight))

    def _weighed(self, counted: Counter[str]) -> dict[str, float]:
        unknown = math.log(1 + len(self.terms))  # what no entry has takes from the score
        weights = {gram: (1 + math.log(number)) * self._rare.get(gram, unknown) for gram, number in counted.items()}
        length = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {gram: weight / length for gram, weight in weights.items()}

    def suggest(self, text: str, count: int = 5) -> list[Suggestion]:
        """The nearest codes, best first, each once."""
        scores: dict[int, float] = defaultdict(float)
        for gram, weight in self._weighed(grams(text)).items():
            for place, other in self._by.get(gram, ()):
                scores[place] += weight * other
        found: dict[tuple[str, str], Suggestion] = {}
        for place, score in sorted(scores.items(), key=lambda one: (-one[1], self.terms[one[0]].code)):
            term = self.terms[place]
            found.setdefault((term.system, term.code), Suggestion(term, min(round(score, 4), 1.0)))
            if len(found) == count:
                break
        return list(found.values())


def read(path: Path, default_system: str = "") -> Vocabulary:
    """A list from a CSV file with the columns code and term, and system where one file has several. Raises `Problem`
    (`timeline.vocabulary`)."""
    terms: list[Term] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"code", "term"} <= set(reader.fieldnames or ()):
                raise Problem("timeline.vocabulary", row=1)
            for row in reader:
                name = system(row.get("system") or default_system)
                code, term = (row["code"] or "").strip(), (row["term"] or "").strip()
                if not code or not term or name == "LOCAL" or len(terms) >= _LARGEST:
                    raise Problem("timeline.vocabulary", row=reader.line_num)
                terms.append(Term(spell(code, name), name, term))
    except (UnicodeDecodeError, csv.Error):
        raise Problem("timeline.vocabulary", row=0) from None
    return Vocabulary(terms)


async def uncoded(uow: UnitOfWork[Any], project: str) -> list[tuple[str, int]]:
    """(code, events) of what stands under the hospital's own words or codes and has no confirmation, the most frequent first."""
    known = await confirmed(uow, project)
    number = func.count().label("number")
    asked: Any = select(events.c.code, number).where(events.c.project == project, events.c.code_system.in_(LOCAL)).group_by(events.c.code)
    rows = [(row.code, row.number) for row in await uow.all(asked) if row.code not in known]
    return sorted(rows, key=lambda one: (-one[1], one[0]))


def words(code: str) -> str:
    """What a local code says: its last part, as words."""
    return code.rpartition("//")[2].replace("_", " ")


async def confirm(uow: UnitOfWork[Any], project: str, local: str, name: str, code: str, by: str) -> str:
    """Say that a local code means a standard one; answers the code under which its events are read from now on. An empty `code` takes an
    earlier confirmation back. Raises `Problem` (`timeline.not_local`)."""
    kind, _, rest = local.partition("//")
    used = await uow.first(select(events.c.event_id).where(events.c.project == project, events.c.code == local).limit(1))
    if used is None or rest.partition("//")[0] in ("", system(name) if code else ""):
        raise Problem("timeline.not_local", kind=kind)
    standard = coded(kind, system(name), code) if code else ""
    await uow.execute(insert(codings).values(project=project, code=local, standard=standard, confirmed_by=by[:80], at=uow.now))
    return standard or local


async def confirmed(uow: UnitOfWork[Any], project: str) -> dict[str, str]:
    """Standard code by local code, as it stands."""
    rows = await uow.all(select(codings.c.code, codings.c.standard).where(codings.c.project == project).order_by(codings.c.n))
    found = {row.code: row.standard for row in rows}
    return {local: standard for local, standard in found.items() if standard}


def meaning(known: Mapping[str, str], codes: Iterable[str]) -> list[str]:
    """The local codes that are read as one of these."""
    wanted = tuple(codes)
    return sorted(local for local, standard in known.items() if standard.startswith(wanted))

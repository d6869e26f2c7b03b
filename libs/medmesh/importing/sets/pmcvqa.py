"""PMC-VQA: questions with four choices about figures of articles, version 1 (parts of figures) and version 2 (whole figures).

X. Zhang et al., "PMC-VQA", arXiv:2305.10415. The number of the article in a figure's name is what a split keeps together; the questions
of `test_clean.csv` are some of `test.csv`, checked by people.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from medmesh.importing.port import File, Importer, Item, Label, Report, Source
from medmesh.importing.reading import Row, folder_of, published, rows, within_zip

CHOICES = ("A", "B", "C", "D")
_V1 = ("Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label")
_V2 = ("index", "Figure_path", "Caption", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer", "split")
TABLES = {"train.csv": 176_946, "test.csv": 50_000, "test_clean.csv": 2_000, "train_2.csv": None, "test_2.csv": None}
"""Published rows of version 1."""
_ARTICLE = re.compile(r"(?:.*/)?(PMC\d+)_")


class PMCVQA(Importer):
    name = "pmcvqa"
    title = "PMC-VQA"
    licence = "CC BY-SA; figures under the licences of their articles"
    looked_for = "train.csv, test.csv, test_clean.csv, train_2.csv or test_2.csv with the columns Figure_path, Question, Choice A"
    target = "answer"
    texts: ClassVar = {one: one for one in ("question", "choices", "answer", "caption")}
    same_side: ClassVar = {"test_clean": "test"}

    def sniff(self, source: Source) -> float:
        return 0.95 if any(_header(source, name) for name in source.names if name.rpartition("/")[2] in TABLES) else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        for name in source.names:
            table = name.rpartition("/")[2]
            if table not in TABLES or not _header(source, name):
                continue
            second, count = table.endswith("_2.csv"), 0
            figures = _Figures(source, folder_of(name), "images_2" if second else "images")
            for row in rows(source, name, report, columns=_V2 if second else _V1, aliases={"Anwser": "Answer"}):
                count += 1
                if (item := _item(name, table, row, figures, report, second=second)) is not None:
                    yield item
            if (expected := TABLES[table]) is not None:
                published(report, source, f"{table} rows", count, expected)


def _header(source: Source, name: str) -> bool:
    with source.open(name) as file:
        return {"Figure_path", "Question", "Choice A"} <= set(file.readline(4096).decode("utf-8-sig", "replace").strip().split(","))


def _item(name: str, table: str, row: Row, figures: _Figures, report: Report, *, second: bool) -> Item | None:
    figure, letter = row["Figure_path"].strip(), row["Answer" if second else "Answer_label"].strip()
    article = _ARTICLE.match(figure)
    if article is None:
        report.error("importing.value", name, line=row.line, column="Figure_path", expected="PMC<number>_<figure>")
        return None
    if letter not in CHOICES:
        report.error("importing.value", name, line=row.line, column="Answer" if second else "Answer_label", expected="A, B, C, D")
        return None
    choices = {one: _choice(row[f"Choice {one}"], one) for one in CHOICES}
    split = table.removesuffix(".csv").removesuffix("_2")
    found = figures.find(figure)
    if found is None and figures.here:
        report.error("importing.named_missing", name, line=row.line, named=figure)
        return None
    meta = {"figure": figure, "question": row["Question"].strip(), "choices": choices, "version": 2 if second else 1}
    meta |= {"caption": row["Caption"].strip()} if second else {"answer": _choice(row["Answer"], letter)}
    missing = () if found else ("image",)
    files, key = (found,) if found else (), f"{name}#{row.number}"
    pictures = ((f"{figures.folder}/{figure.rpartition('/')[2]}", found),)
    labels: dict[str, Label] = {"answer": letter}
    return Item(key, "question", files, None, article[1], split, labels, meta, missing, pictures)


def _choice(text: str, letter: str) -> str:
    """` A:Text` as `Text`: blanks and prefixes are ragged."""
    return re.sub(rf"^\s*{letter}\s*[:.]\s*", "", text).strip()


class _Figures:
    """The figures of one version: a folder, or the zip as it was published."""

    def __init__(self, source: Source, top: str, folder: str) -> None:
        self.folder, self._zip = folder, f"{top}{folder}.zip"
        self._known: dict[str, str] = {}
        if self._zip in source.names:
            with within_zip(source, self._zip) as archive:
                self._known = {name.rpartition("/")[2]: name for name in archive.namelist() if not name.endswith("/")}
            self.here, self._packed = True, True
        else:
            inside = [name for name in source.names if name.startswith(f"{top}{folder}/")]
            self._known = {name.rpartition("/")[2]: name for name in inside}
            self.here, self._packed = bool(inside), False

    def find(self, figure: str) -> File | None:
        found = self._known.get(figure.rpartition("/")[2])
        if found is None:
            return None
        return File(self._zip, "image", found) if self._packed else File(found, "image")

"""MedMD and RadMD of RadFM: CSV and JSON lists over images of some twenty other sets, one form of columns for each loader.

C. Wu et al., "Towards generalist foundation model for radiology", arXiv:2308.02463. Images that are not in the source are pending.
Lists written as Python literals are parsed as such and never evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from medmesh.importing.port import File, Importer, Item, Kind, Label, Report, Source
from medmesh.importing.reading import Row, folder_of, json_of, rows

_NAME = re.compile(
    r"(?:.*/)?(?:(?:chestxray|pcxr|mammo|spinexr)_balance|mimic_caption|pmcvqa|vqarad|slakevqa|pmcoa_image_caption|paper|filtered_case_report"
    r"|(?:.*_)?(?:MedPix|medpix|radiopaedia|Radiopaedia)[A-Za-z_]*?)(?:_(?P<split>train|test)(?:_new)?)?\.(?P<kind>csv|json)"
)
_ARTICLE = re.compile(r"PMC\d+")
_WORST = (ValueError, SyntaxError, MemoryError, RecursionError)
_LONGEST_LITERAL = 100_000


@dataclass(frozen=True, slots=True)
class Form:
    """Columns by which a loader's table is known, the kind of its items, and its columns with images, texts and classes."""

    columns: tuple[str, ...]
    kind: Kind
    images: str
    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    article: str = ""
    split: Callable[[str], list[str]] = lambda cell: [cell.strip()]


def _literal(cell: str) -> list[str]:
    """Raises `ValueError`."""
    if len(cell) > _LONGEST_LITERAL:
        raise ValueError("too long")
    found = ast.literal_eval(cell.strip())
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise ValueError("no list of strings")
    return list(found)


def _commas(cell: str) -> list[str]:
    return [one.strip() for one in cell.split(",") if one.strip()]


_REPORT = ("context", "question", "answer")
_MEDPIX = ("question", "answer", "explanation")
FORMS = (
    Form(("PMC_id", "img_ref", *_REPORT), "question", "img_ref", _REPORT, article="PMC_id", split=_literal),
    Form(("img_root_dir", "Figure_path", "Question", "Answer"), "question", "Figure_path", ("Question", "Answer")),
    Form(("PMC_ID", "Figure_path", "Question", "Answer"), "question", "Figure_path", ("Question", "Answer"), article="PMC_ID"),
    Form(("PMC_ID", "Figure_path", "Caption"), "image", "Figure_path", ("Caption",), article="PMC_ID"),
    Form(("image_path", "question", "answer"), "question", "image_path", ("question", "answer")),
    Form(("image_path", "answer"), "volume", "image_path", ("answer",)),
    Form(("image_path", "disease", "label"), "question", "image_path", (), ("disease", "label")),
    Form(("image_path", "label"), "image", "image_path", (), ("label",)),
    Form(("name", "type", "context", "history"), "image", "name", ("context", "history"), ("type",), split=_commas),
    Form(("name", *_MEDPIX), "question", "name", _MEDPIX, split=_commas),
    Form(_MEDPIX, "question", "", _MEDPIX),
)
"""First match wins: a form stands before those whose columns are some of its own."""


class MedMD(Importer):
    name = "medmd"
    title = "MedMD / RadMD"
    licence = "that of each source data set"
    target = "label"
    texts: ClassVar = {
        **{one: one for one in ("question", "answer", "explanation", "context", "history", "text", "finding")},
        "Question": "question",
        "Answer": "answer",
        "Caption": "caption",
        "pre": "presentation",
    }
    looked_for = "RadFM's lists: chestxray_balance_train_new.csv, pmcoa_image_caption_train.csv, paper_train.csv, ..."

    def sniff(self, source: Source) -> float:
        return 0.9 if any(_NAME.fullmatch(name) for name in source.names) else 0.0

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        images: dict[str, str] = {}
        for name in source.names:
            if not name.endswith((".csv", ".json")):
                images.setdefault(name.rpartition("/")[2], name)
        for name in source.names:
            if (match := _NAME.fullmatch(name)) is None:
                continue
            if match["kind"] == "json":
                yield from _reports(source, name, match["split"], images, report)
            elif name.rpartition("/")[2].startswith("paper_"):
                yield from _papers(source, name, match["split"], images, report)
            else:
                yield from _table(source, name, match["split"], images, report)


def _table(source: Source, name: str, split: str | None, images: Mapping[str, str], report: Report) -> Iterator[Item]:
    form: Form | None = None
    for row in rows(source, name, report):
        form = form or next((form for form in FORMS if set(form.columns) <= row.cells.keys()), None)
        if form is None:
            known = " / ".join(",".join(form.columns) for form in FORMS)
            report.error("importing.value", name, line=1, column="header", expected=known)
            return
        try:
            pictures = form.split(row[form.images]) if form.images else []
        except _WORST:
            report.error("importing.value", name, line=row.line, column=form.images, expected="['...', ...]")
            continue
        if empty := [column for column in form.labels if not row[column].strip()]:
            report.error("importing.value", name, line=row.line, column=empty[0], expected="not empty")
            continue
        article = row[form.article].strip() if form.article else ""
        if form.images == "img_ref":
            pictures = [f"{article}_{figure}.jpg" for figure in pictures]
        files, missing, about = _found(pictures, images)
        labels: dict[str, Label] = {column: row[column].strip() for column in form.labels}
        meta = {column: _said(row, column) for column in form.texts} | {"images": pictures}
        group, key = _group(article, pictures), f"{name}#{row.number}"
        yield Item(key, form.kind, files, None, group, split, labels, meta, missing, about)


def _papers(source: Source, name: str, split: str | None, images: Mapping[str, str], report: Report) -> Iterator[Item]:
    """One JSON a paper: a list of {"text", "img_ref"}."""
    known = {file.rpartition("/")[2]: file for file in source.names if file.endswith(".json")}
    for row in rows(source, name, report, columns=("PMC_path",)):
        path = row["PMC_path"].strip()
        if (file := known.get(path.rpartition("/")[2])) is None:
            report.error("importing.named_missing", name, line=row.line, named=path)
            continue
        found, article = json_of(source, file, report), _ARTICLE.search(path)
        if not isinstance(found, list) or article is None:
            report.error("importing.json_key", file, key="", expected="a list, in a file named after its article (PMC...)")
            continue
        for number, piece in enumerate(found):
            figures = piece.get("img_ref") if isinstance(piece, dict) else None
            if not isinstance(figures, list) or not isinstance(piece.get("text"), str) or not all(isinstance(one, str) for one in figures):
                report.error("importing.json_key", file, key=f"[{number}]", expected='{"text": "...", "img_ref": ["...", ...]}')
                continue
            pictures = [f"{article[0]}_{figure}.jpg" for figure in figures]
            files, missing, about = _found(pictures, images)
            meta = {"text": piece["text"], "images": pictures}
            yield Item(f"{file}#{number + 1}", "text", files, None, article[0], split, {}, meta, missing, about)


def _reports(source: Source, name: str, split: str | None, images: Mapping[str, str], report: Report) -> Iterator[Item]:
    """Radiopaedia's reports: a list of {"npy_path", "finding", ...}."""
    found = json_of(source, name, report)
    if found is not None and not isinstance(found, list):
        report.error("importing.json_key", name, key="", expected="a list")
    for number, piece in enumerate(found if isinstance(found, list) else ()):
        if not isinstance(piece, dict) or not isinstance(piece.get("npy_path"), str) or not isinstance(piece.get("finding"), str):
            report.error("importing.json_key", name, key=f"[{number}]", expected='{"npy_path": "...", "finding": "...", ...}')
            continue
        path = piece["npy_path"]
        files, missing, about = _found([path], images)
        meta: dict[str, Any] = {key: value for key, value in piece.items() if isinstance(value, str)}
        yield Item(f"{name}#{number + 1}", "volume", files, None, _group("", [path]), split, {}, meta, missing, about)


_Found = tuple[tuple[File, ...], tuple[str, ...], tuple[tuple[str, File | None], ...]]


def _found(pictures: list[str], images: Mapping[str, str]) -> _Found:
    """Files that are there, what is missing, and each picture with its file: sets are known by the names of their pictures alone."""
    names = [path.rpartition("/")[2] for path in pictures]
    about = tuple((name, File(images[name], "image") if name in images else None) for name in names)
    files = tuple(file for _, file in about if file is not None)
    return files, ("image",) if len(files) < len(about) else (), about


def _group(article: str, pictures: list[str]) -> str | None:
    """The article where there is one; else the case: the picture's name or, of a volume, its folder."""
    if match := _ARTICLE.search(article or (pictures[0] if pictures else "")):
        return match[0]
    return article or (folder_of(pictures[0]).rstrip("/") + "/" + pictures[0].rpartition("/")[2] if pictures else None)


def _said(row: Row, column: str) -> str:
    """A text without the `Q:` or `A:` before it."""
    prefix = {"question": "Q:", "answer": "A:"}.get(column, "")
    return row[column].strip().removeprefix(prefix).strip()

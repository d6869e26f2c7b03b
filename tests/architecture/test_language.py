"""The project speaks of itself alone: of no machine it was written on, and of no host its parts were fetched from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.architecture.sources import relative, tracked_files

# Each word is cut in two, so that this file does not hold it.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/\w+|Us" + r"ers/\w+)(?:/|\b)",
    "a host of packages": r"(?:pyp"
    + r"i\.org|pythonho"
    + r"sted|npm"
    + r"js\.|deb\.deb"
    + r"ian|mirr"
    + r"or\.|mirr"
    + r"ors\.|proxy\.gol"
    + r"ang)",
    "how it was written": r"(?i:\bcla"
    + r"ude\b|\banthro"
    + r"pic\b|\bchat"
    + r"gpt\b|\bcop"
    + r"ilot\b|language mo"
    + r"del\b|DESI"
    + r"GN\.md|BRI"
    + r"EF\.md)",
}
BINARY = {".png", ".dcm", ".zip", ".gz", ".onnx", ".safetensors", ".woff2", ".ico"}


def texts() -> list[tuple[Path, str]]:
    return [(path, path.read_text(encoding="utf-8")) for path in tracked_files() if path.suffix not in BINARY]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_speaks_of(what: str) -> None:
    forbidden = re.compile(FORBIDDEN[what])
    found = [
        f"{relative(path)}:{number}: {match.group()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := forbidden.search(line))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("a path of one machine", "see /wo" + "rk/main/libs"),
        ("a path of one machine", "target=/ro" + "ot/.cache"),
        ("a host of packages", "https://pyp" + "i.org/simple"),
        ("how it was written", "see DESI" + "GN.md"),
    ],
)
def test_the_words_are_recognised(what: str, sentence: str) -> None:
    assert re.search(FORBIDDEN[what], sentence)
    assert len(texts()) > 300

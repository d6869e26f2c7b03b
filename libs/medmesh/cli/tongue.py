"""Help in the language of the terminal. A text in two languages has the Chinese two spaces or a line after the English, or a paragraph."""

from __future__ import annotations

import copy
import inspect
import re

import click

_CHINESE = re.compile(r"[\u3400-\u9fff]")


def said(text: str, tongue: str) -> str:
    """A paragraph in `tongue` ("en" or "zh"); as it is where it has one language only."""
    if not _CHINESE.search(text) or "\b" in text:
        return text
    lines = re.sub(r"\s*\n\s*(?=[\u3400-\u9fff])", "  ", text.strip())
    english, _, chinese = re.sub(r"\s*\n\s*", " ", lines).partition("  ")
    if not chinese or _CHINESE.search(english):
        return text
    return chinese.strip() if tongue == "zh" else english


def helped(text: str | None, tongue: str) -> str | None:
    """A help text: each of its paragraphs in `tongue`, as far as it is there."""
    made: list[str] = []
    before = ""
    for paragraph in re.split(r"\n[ \t]*\n", inspect.cleandoc(text or "")):  # before paragraphs are joined, and have no indentation
        if made and _says_again(paragraph, before):
            made[-1] = _joined(paragraph) if tongue == "zh" else made[-1]
        else:
            made.append(said(paragraph, tongue))
        before = paragraph
    return "\n\n".join(made) if text is not None else None


def _says_again(paragraph: str, before: str) -> bool:
    """Whether it is in Chinese what the one before it says: a paragraph that begins so, or lines as they are after such lines."""
    lines = "\b" in paragraph and "\b" in before and not _CHINESE.search(before)
    return bool(_CHINESE.search(paragraph) if lines else _CHINESE.match(paragraph.strip()))


def _joined(paragraph: str) -> str:
    """Chinese has no spaces where a line ends."""
    if "\b" in paragraph:
        return paragraph
    signs = r"(?<=[^\x00-\x7f])\s*\n\s*(?=[^\x00-\x7f])|(?<=[，。；：、）])\s*\n\s*"
    return re.sub(r"\s*\n\s*", " ", re.sub(signs, "", paragraph.strip()))


def spoken(command: click.Command, tongue: str) -> click.Command:
    """A copy of a command, its options and the commands within it, that speaks `tongue`."""
    made = copy.copy(command)
    made.help, made.short_help = helped(command.help, tongue), helped(command.short_help, tongue)
    made.params = [copy.copy(one) for one in command.params]
    for option in (one for one in made.params if isinstance(one, click.Option)):
        option.help = said(option.help, tongue) if option.help else option.help
    if isinstance(made, click.Group):
        made.commands = {name: spoken(one, tongue) for name, one in made.commands.items()}
    return made

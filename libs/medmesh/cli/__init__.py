"""The `medmesh` command. Each group lives in a module of its own and is imported only when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from medmesh.cli.tongue import spoken
from medmesh.errors import Problem

GROUPS = {
    "up": "medmesh.cli.platform",
    "down": "medmesh.cli.platform",
    "status": "medmesh.cli.platform",
    "logs": "medmesh.cli.platform",
    "setup": "medmesh.cli.setup",
    "topology": "medmesh.cli.platform",
    "vault": "medmesh.cli.vault",
    "backup": "medmesh.cli.backup",
    "dead": "medmesh.cli.dead",
    "audit": "medmesh.cli.audit",
    "witness": "medmesh.cli.witness",
    "edge": "medmesh.cli.edge",
    "login": "medmesh.cli.account",
    "logout": "medmesh.cli.account",
    "account": "medmesh.cli.account",
    "key": "medmesh.cli.key",
    "roster": "medmesh.cli.roster",
    "program": "medmesh.cli.program",
    "user": "medmesh.cli.people",
    "hospital": "medmesh.cli.people",
    "approval": "medmesh.cli.people",
    "label": "medmesh.cli.access",
    "policy": "medmesh.cli.access",
    "emergency": "medmesh.cli.emergency",
    "federation": "medmesh.cli.federation",
    "model": "medmesh.cli.model",
    "dataset": "medmesh.cli.data",
    "annotation": "medmesh.cli.data",
    "package": "medmesh.cli.package",
    "demo": "medmesh.cli.demo",
    "develop": "medmesh.cli.develop",
}
"""Command to the module that defines it (as a function of that name)."""


def language() -> str:
    """The language to speak: `MEDMESH_LANG`, else the terminal's."""
    wanted = os.environ.get("MEDMESH_LANG") or os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return "zh" if wanted.lower().startswith("zh") else "en"


def say(en: str, zh: str) -> str:
    """The sentence in the language of the terminal."""
    return zh if language() == "zh" else en


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(GROUPS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        module = GROUPS.get(name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), name)
        return spoken(command, language())


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="medmesh")
def _root() -> None:
    """medmesh: hospitals keep their data and train, approve and use models together.

    医学人工智能公共服务平台：数据不出院，模型集中训。

    Begin with `medmesh up`, look with `medmesh status`, see everything with `medmesh demo`.
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point. A Problem is printed as a sentence with what to do, and ends with code 1."""
    try:
        code: Any = _root.main(arguments, prog_name="medmesh", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except Problem as problem:
        tongue = language()
        click.secho(problem.detail(tongue), fg="red", err=True)
        if hint := problem.hint(tongue):
            click.echo(hint, err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)

"""Commands on the platform's own machine, on the record (`medmesh.embedded.maintenance`)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from medmesh.cli import say
from medmesh.contracts.audit import MaintenanceVerb
from medmesh.embedded import maintenance
from medmesh.embedded.maintenance import Act


@contextmanager
def on_record(data: Path, verb: MaintenanceVerb) -> Iterator[Act]:
    """Do it on the record, and hand that to the log where it can be reached."""
    try:
        with maintenance.on_record(data, verb) as act:
            yield act
    finally:
        hand_in(data)


def hand_in(data: Path) -> None:
    """Hand over what waits, and say so where that is later."""
    if not asyncio.run(maintenance.hand_in(data)):
        click.echo(
            say("recorded; the log gets it when the platform runs: medmesh up", "已记录；平台运行后（medmesh up）将写入审计日志"), err=True
        )

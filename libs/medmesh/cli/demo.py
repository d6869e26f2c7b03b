"""`medmesh demo`: the whole story on real images, with real nodes, on this machine.  演示。"""

from __future__ import annotations

import asyncio
import fcntl
import time
from pathlib import Path

import click

from medmesh.cli import say
from medmesh.errors import Problem

_HELD: list[object] = []


def _place(folder: Path, report: Path) -> tuple[Path, Path]:
    """Where this run works: two demonstrations side by side do not touch each other's folders."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 100):
        suffix = "" if number == 1 else f"-{number}"
        lock = folder.with_name(f"{folder.name}{suffix}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _HELD.append(lock)  # for as long as this process lives
        return folder.with_name(folder.name + suffix), report.with_name(report.name + suffix)
    raise Problem("demo.never", what="a free folder", seconds=0)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True, help="Where everything runs.")
@click.option("--report", type=click.Path(path_type=Path), default=Path("demo-report"), show_default=True)
@click.option("--images", default=1400, show_default=True, help="About how many of the 3,000 images.")
@click.option("--seed", default=7, show_default=True, help="Of the split and of the training.")
@click.option("--keep", is_flag=True, help="Start the platform again at the end and leave it running to look at.")
def demo(folder: Path, report: Path, images: int, seed: int, keep: bool) -> int:
    """Four hospitals that keep their data train one model together: enrolment, de-identification, a federation in which one hospital
    and the coordinator are killed, conversion, release, inference, audit, and a scan that nothing leaked.  完整演示。"""
    from medmesh.demo.report import KEPT, failures, table, write
    from medmesh.demo.stage import Stage
    from medmesh.demo.story import tell as whole_story

    folder, report = _place(folder, report)
    began = time.monotonic()

    def tell(en: str, zh: str) -> None:
        click.echo(f"{time.monotonic() - began:6.1f} s  {say(en, zh)}")

    stage = Stage(folder.absolute(), tell, images=images, seed=seed)
    try:
        summary = asyncio.run(whole_story(stage))
    except BaseException:
        from medmesh.embedded.run import stop

        asyncio.run(stop(stage.data))
        raise
    page = write(stage, report)
    click.echo()
    for line in table(summary):
        click.echo(f"  {line}")
    click.echo()
    click.echo(f"  {'pipeline':<24}{summary['pipeline']['name']} {summary['pipeline']['hash']}")
    for name in ("rounds", "parity_max_abs_diff", "released_model", "edge_installs", "audit_entries", *KEPT, "canary_hits", "seconds"):
        click.echo(f"  {name:<24}{summary[name]}")
    click.echo(f"\n  {page}")
    if keep:
        from medmesh.cli import main

        try:
            main(["up", "--data", str(stage.data)])
        except SystemExit:
            pass
    wrong = failures(summary)
    for name in wrong:
        click.secho(say(f"not as promised: {name}", f"未达预期：{name}"), fg="red")
    return 1 if wrong else 0

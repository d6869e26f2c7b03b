"""Files that a command writes.  命令写出的文件。"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from medmesh.cli import say


class Written(click.Path):
    """A path that a command writes at its end: that its folder is there, and may be written to, is asked before anything begins."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click's. Raises `click.BadParameter`."""
        path: Path = Path(str(value))
        folder = path.parent
        if not folder.is_dir():
            self.fail(say(f"there is no folder {folder}; make it first.", f"文件夹 {folder} 不存在，请先创建。"), param, ctx)
        if not os.access(folder, os.W_OK):
            self.fail(say(f"nothing can be written into the folder {folder}.", f"文件夹 {folder} 不可写。"), param, ctx)
        if path.is_dir():
            self.fail(say(f"{path} is a folder; name a file in it.", f"{path} 是文件夹，请指定其中的文件名。"), param, ctx)
        return path

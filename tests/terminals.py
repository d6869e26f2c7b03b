"""What a person does at a terminal: a shell of their own, lines typed into it, questions answered when they stand there."""

from __future__ import annotations

import codecs
import contextlib
import os
import pty
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

_DONE = re.compile(r"⟦(\d+)⟧$")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Answer = Callable[["Terminal", str], str | None]
"""What to type in a terminal to a question (the last line on its screen); None where it is none."""


class Terminal:
    """bash on a pseudo-terminal, as commands ask for passwords on none but one. What is printed is read, and questions are answered, all
    the time. A wait of more than `seconds` raises `AssertionError` with what is on the screen."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str], answer: Answer) -> None:
        self.name, self.answer, self.typed, self.screen = name, answer, "", ""
        self._changed = threading.Condition()
        self._pid, self._file = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "--noediting"], environment)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self._write("stty -echo; bind 'set enable-bracketed-paste off' 2>/dev/null; PS2=; PS1='⟦$?⟧'")
        self.until(_DONE, 30)

    def type(self, line: str) -> None:
        """Type a line (or several that belong together) and wait for nothing."""
        with self._changed:
            self.typed, self.screen = line, ""
        self._write(line)

    def run(self, line: str, seconds: float) -> str:
        """Type it; what was printed, once the shell is back. It must have ended with 0."""
        self.type(line)
        return self.finish(seconds)

    def finish(self, seconds: float) -> str:
        """Wait for the shell to be back. What the last line printed."""
        found = self.until(_DONE, seconds)
        assert found[1] == "0", f"$ {self.typed}\n{self.screen[-4000:]}"
        return self.screen[: found.start()]

    def until(self, pattern: re.Pattern[str], seconds: float) -> re.Match[str]:
        """Wait until it stands on the screen."""
        with self._changed:
            self._changed.wait_for(lambda: pattern.search(self.screen), seconds)
            found = pattern.search(self.screen)
        assert found, f"not in {seconds:.0f} s: $ {self.typed}\n{self.screen[-4000:]}"
        return found

    def interrupt(self, seconds: float = 30) -> None:
        """Ctrl-C, and the shell is back."""
        os.write(self._file, b"\x03")
        self.until(_DONE, seconds)

    def close(self) -> None:
        """The window is closed: what runs in it is hung up."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.tcgetpgrp(self._file), signal.SIGHUP)
            os.kill(self._pid, signal.SIGHUP)
        os.waitpid(self._pid, 0)
        self._reading.join(10)
        os.close(self._file)

    def _write(self, line: str) -> None:
        os.write(self._file, line.encode() + b"\n")

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            try:
                said = os.read(self._file, 65536)
            except OSError:  # everything at the other end is gone
                return
            with self._changed:
                self.screen += _COLOURS.sub("", decoder.decode(said)).replace("\r", "")
                asked = self.screen.rpartition("\n")[2]
                if asked.endswith(": ") and (given := self.answer(self, asked)) is not None:
                    self.screen += "\n"
                    self._write(given)
                self._changed.notify_all()

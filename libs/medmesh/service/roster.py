"""The roster this process goes by: the file that the operator lays down beside the trust bundle, read again when it changes.

It is not asked for by message and lies in no database: whoever owns those could say what they like. A forged file on the platform is found
by hospitals and auditors, who have pinned theirs.
"""

from __future__ import annotations

from pathlib import Path

from medmesh.security.roster_file import NAME, RosterFile


def beside(trust: Path) -> RosterFile:
    """The roster beside a trust bundle."""
    return RosterFile(trust.with_name(NAME))

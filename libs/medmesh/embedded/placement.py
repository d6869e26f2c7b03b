"""Where PostgreSQL's files lie: below the data folder, or, when its account cannot pass the folders above that one, in the
machine's state folder. The folders above are never changed: making a private home passable would expose all of it.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from medmesh.embedded import files
from medmesh.embedded.accounts import Account, reaches
from medmesh.errors import Problem

STATE = Path("/var/lib/medmesh")


def home(folder: Path, account: Account | None, state: Path = STATE) -> Path:
    """The private folder of the database of the data folder `folder`, owned by `account`; the same at every start.

    Raises `Problem`: `embedded.state_unsafe` when the state folder is needed and cannot be trusted, `embedded.state_gone` when the
    place used before has vanished.
    """
    own, pointer = folder / "postgres", folder / "postgres.elsewhere"
    if pointer.exists():
        place = Path(pointer.read_text(encoding="utf-8").strip())
        if not place.is_dir():
            raise Problem("embedded.state_gone", folder=folder, place=place)
    elif account is None or own.exists() or reaches(account, own):
        place = own
    else:
        place = _trusted(state, folder, account) / uuid.uuid4().hex
        files.write(pointer, str(place))
    files.folder(place)
    if account is not None:
        os.chown(place, account.uid, account.gid)
    return place


def _trusted(state: Path, folder: Path, account: Account) -> Path:
    """`state`, made if absent, when only root can change it and the account can pass it."""
    try:
        files.folder(state, 0o711)
        found = state.stat()
    except OSError as error:
        raise Problem("embedded.state_unsafe", account=account.name, folder=folder, place=state, reason=error.strerror) from None
    if found.st_uid != os.geteuid() or not reaches(account, state / "database"):
        reason = "its owner is somebody else" if found.st_uid != os.geteuid() else "the account cannot reach it either"
        raise Problem("embedded.state_unsafe", account=account.name, folder=folder, place=state, reason=reason)
    return state

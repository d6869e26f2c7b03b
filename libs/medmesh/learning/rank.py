"""One of several processes that train together: `python -P -m medmesh.learning.rank`, started by `medmesh.learning.ranks`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from medmesh.errors import Problem
from medmesh.learning.protocol import read_frame, write_frame
from medmesh.learning.ranks import SCHEDULER
from medmesh.learning.worker import Session, bound, place, take_pipes, train


def main() -> int:
    """Do what the one frame on standard input says, and answer as a worker does."""
    stream_in, stream_out = take_pipes()

    def tell(document: dict[str, Any]) -> None:
        write_frame(stream_out, document)

    call = read_frame(stream_in)
    assert call is not None
    bound(call["cpu"])
    try:
        if call["rank"] == SCHEDULER:
            from medmesh.learning.mindspore_adapter import schedule_ranks

            schedule_ranks()
            return 0
        session = Session(Path(call["package"]), call["framework"], call["told"], call["ranks"])
        tell({"event": "done", "result": train(session, call, tell)})
    except Problem as problem:
        tell({"event": "problem", "document": problem.document()})
    except BaseException as error:
        tell({"event": "failed", "error": type(error).__name__, "at": place(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

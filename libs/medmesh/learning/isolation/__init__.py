"""Runs code that a researcher brought: no network, bounded memory, CPU and files, and nothing to see but what it is given.

    argv = wrap([python, "-m", "worker"], sandbox)
    process = subprocess.Popen(argv, env=environment(sandbox), stdin=PIPE, stdout=PIPE)

With namespaces (the rule, as root and as an ordinary account) the worker has a root folder, a network and a process table of its own
and, from root, another account; Landlock and seccomp come on top. Where only Landlock works it has neither sockets nor shared
semaphores. Where nothing works, `wrap` refuses.

Start the worker from a thread that lives as long as it should: the kernel ends it with that thread. Descriptors 0, 1 and 2 go along
and must not lead anywhere secret. What the worker leaves in its folder is untrusted, links included.
"""

from __future__ import annotations

from collections.abc import Sequence

from medmesh.learning.isolation.probe import capability
from medmesh.learning.isolation.sandbox import Capability, Limits, Sandbox, account, command, environment

__all__ = ["Capability", "Limits", "Sandbox", "account", "capability", "environment", "wrap"]


def wrap(argv: Sequence[str], sandbox: Sandbox) -> list[str]:
    """The command that isolates itself, then becomes `argv`; from root it gives `sandbox.write` to the worker's account.

    It ends as `argv` does, or with code 125 and one line on stderr, {"isolation": <step>, "reason": ...}. Ending it ends everything
    that the worker started. Raises `Problem`: `isolation.unavailable`, `isolation.account_missing`, `isolation.folder_missing`.
    """
    return command(argv, sandbox, capability())
